"""What images may cost before they are looked at: bytes of a file, pixels, entries of a folder or tar."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from ..errors import BadInput

MAX_PIXELS = 1 << 26  # of an image: 8192 x 8192, some 200 MB once decoded
PIXELS_TOGETHER = 2 * MAX_PIXELS  # of the images that are decoded at one time
MAX_FILE = 1 << 28  # bytes of an image as it is stored
BYTES_TOGETHER = 1 << 26  # of files that are read before they are decoded; or one file
MAX_ENTRIES = 20_000_000  # of a folder or tar
MAX_TAR_NAME = 1 << 20  # bytes of what a tar says of one member besides its first block


def check_pixels(name: str, image: Image.Image) -> int:
    """The image's pixels.  Raises ``BadInput`` where they are more than pnc decodes."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadInput(
            f"{name}: has {width:,} x {height:,} pixels; pnc reads at most {MAX_PIXELS:,} of an image",
            hint="make it smaller, or give --skip-bad to go on without it",
        )
    return width * height


def too_large(name: str, size: int) -> BadInput:
    """The error for a file of ``size`` bytes, more than pnc reads of an image."""
    return BadInput(
        f"{name}: has {size:,} bytes; pnc reads at most {MAX_FILE:,} of an image",
        hint="make it smaller, or give --skip-bad to go on without it",
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine, not the image, is why it did not decode."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and str(error).startswith("out of memory")  # so says Pillow
    )


class Allowance:
    """So much of something for all threads together; each waits until its part is free."""

    def __init__(self, total: int) -> None:
        self._total, self._free = total, total
        self._changed = threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


class Member(tarfile.TarInfo):
    """A tar's member whose name and attributes, which are read whole, are of a reasonable size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        about = self.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if about and self.size > MAX_TAR_NAME:
            raise tarfile.ReadError(
                f"a member's name or attributes take {self.size:,} bytes; pnc reads at most "
                f"{MAX_TAR_NAME:,}"
            )
        return super()._proc_member(tar)  # type: ignore[misc]  # documented as the way in
