"""Files from strangers are opened and read within bounds: regular files only, no more than so many bytes.

A pipe or a device would be waited for without end; a sparse file of terabytes takes no room on a
disk, and all of a machine's memory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import BadInput

MAX_SIDECAR = 16_000_000  # bytes of config.json and the like: labels of 21,841 classes take 1 MB
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, buffering: int = -1) -> BinaryIO:
    """``path`` opened for reading, links followed.  Raises ``OSError`` as ``open`` does, ``BadInput`` for
    what is no regular file, which is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = next((what for is_so, what in KINDS if is_so(mode)), "something else")
        raise BadInput(
            f"{path}: is {kind}, expected a regular file",
            hint="copy what it gives into a file, and give that",
        )
    return os.fdopen(fd, "rb", buffering=buffering)


def read_bounded(path: Path, most: int) -> bytes:
    """All of a regular file.  Raises ``OSError``, and ``BadInput`` where it has more than ``most`` bytes."""
    with open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
        if size <= most:
            data = f.read(most + 1)
            size = max(size, len(data))
    if size > most:
        raise BadInput(
            f"{path}: has {size:,} bytes; pnc reads at most {most:,} of such a file",
            hint="is it the right file?",
        )
    return data
