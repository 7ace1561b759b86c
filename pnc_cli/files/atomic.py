"""Outputs that appear complete under their names, or not at all.

Everything is written to hidden files beside the outputs, flushed to disk, and renamed when all
of it is there.  An exception, a signal that raises, or a full disk leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import UsageError
from .inputs import Inputs, current


class Outputs:
    """A set of files that appear together; use as a context manager.

    The first file opened is the main one; the others (sidecars) may be missing for an instant,
    but are never older than it.  What the call that is running has read (:mod:`.inputs`), and
    ``inputs``, are never written to, not even with ``force``.
    Raises ``UsageError`` for an output that exists (without ``force``), that is an input, or
    whose folder does not exist or is not writable.
    """

    def __init__(self, *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
        self._force = force
        self._inputs = [Path(p) for p in inputs]
        self._staged: list[tuple[Path, Path, BinaryIO]] = []  # final, temporary, file

    def open(self, path: Path, *, beside: Path | None = None) -> BinaryIO:
        """A binary file that becomes ``path`` on success; ``beside`` as for :func:`check_output`."""
        final = check_output(path, force=self._force, inputs=self._inputs, beside=beside)
        if any(final == other for other, _, _ in self._staged):
            raise UsageError(f"{path}: named twice as an output", hint="give each its own name")
        temporary = final.with_name(f".{final.name[:200]}.{secrets.token_hex(6)}.tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as e:
            raise _cannot_write(path, e) from e
        f = os.fdopen(fd, "wb")
        self._staged.append((final, temporary, f))
        return f

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        except OSError as e:
            raise _cannot_write(self._staged[0][0], e) from e
        finally:
            for _, temporary, f in self._staged:
                with contextlib.suppress(OSError):
                    f.close()
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _cannot_write(self._staged[0][0], error) from error

    def _commit(self) -> None:
        for _, _, f in self._staged:
            f.flush()
            os.fsync(f.fileno())
            f.close()
        done: list[Path] = []
        aside: list[tuple[Path, Path]] = []  # old sidecars: hidden name, name
        try:
            if self._force:  # an old sidecar never stands beside a new main file
                for final, temporary, _ in self._staged[1:]:
                    old = temporary.with_suffix(".old")
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(final, old)
                        aside.append((old, final))
            for final, temporary, _ in self._staged:
                if self._force:
                    os.replace(temporary, final)
                else:
                    _rename_new(temporary, final)
                done.append(final)
        except BaseException:
            if not self._force:
                for final in done:  # only what this very call created
                    os.unlink(final)
            elif not done:
                while aside:
                    os.rename(*aside.pop())
            raise
        finally:
            for old, _ in aside:
                os.unlink(old)
        for folder in {final.parent for final, _, _ in self._staged}:
            with contextlib.suppress(OSError):  # not every file system can
                fd = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)


def check_output(
    path: Path, *, force: bool = False, inputs: Iterable[Path] = (), beside: Path | None = None
) -> Path:
    """The file that writing to ``path`` would create (symlinks followed), if that may be done.

    For refusing a hopeless output before the work, not after it.  ``beside`` is the output whose
    sidecar it is.
    """
    if str(path) == "-":
        raise UsageError(
            "-o -: this output is a file, it is not written to standard output",
            hint="-o names a file",
        )
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise UsageError(
            f"{path}: the folder {final.parent} does not exist", hint=f"mkdir -p {final.parent}"
        )
    if final.is_file() and (final in current() or final in Inputs(inputs)):
        raise UsageError(
            f"{path}: is an input, which is never written to", hint="choose another -o"
        )
    if final.is_dir():
        raise UsageError(f"{path}: is a folder", hint="-o names a file")
    if final.exists() and not final.is_file():
        raise UsageError(f"{path}: is not a regular file", hint="-o names a regular file")
    if final.exists() and not force:
        what = f"; it is what lies beside {beside.name} and says what that is" if beside else ""
        raise UsageError(f"{path}: exists{what}", hint="give --force to replace it, or another -o")
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {final.parent} is not writable")
    return final


def _rename_new(temporary: Path, final: Path) -> None:
    """Renames without ever replacing a file that somebody created meanwhile."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise UsageError(
            f"{final}: exists", hint="give --force to replace it, or another -o"
        ) from None
    except OSError:  # no hard links here
        if final.exists():
            raise UsageError(f"{final}: exists", hint="give --force to replace it") from None
        os.rename(temporary, final)


def _cannot_write(path: Path, e: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written: {e.strerror}; nothing was left behind")
