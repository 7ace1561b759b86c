"""Outputs that appear complete under their names, or not at all.

Everything is written to files without a name (``O_TMPFILE``), flushed to disk, and given its name
when all of it is there; so whatever ends the process, nothing lies about.  Where the system has no
such files they have hidden names beside the outputs until then.  An exception, a signal that
raises, or a full disk leaves the folder as it was; what a killed process left under a hidden name
is removed by the next run to the same output.  Signals that come while names are given are
answered when that is done.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import BinaryIO

from ..errors import UsageError
from .inputs import current

SIGNALS = [
    s for s in (getattr(signal, n, None) for n in ("SIGINT", "SIGTERM", "SIGHUP")) if s is not None
]
NAMELESS = getattr(os, "O_TMPFILE", 0)  # 0: this system has none
WITHOUT = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST = 200  # bytes of an output's name in a hidden one: a file system allows 255

appeared: list[Path] = []  # outputs that this process completed, for whoever is interrupted later
_hidden: set[Path] = set()  # names in a folder that are ours, and only for a while


class Outputs:
    """A set of files that appear together; use as a context manager.

    The first file opened is the main one; the others (sidecars) may be missing for an instant,
    but are never older than it.  What the call that is running has read (:mod:`.inputs`) is never
    written to, not even with ``force``.
    Raises ``UsageError`` for an output that exists (without ``force``), that is an input, or
    whose folder does not exist or is not writable.
    """

    def __init__(self, *, force: bool = False) -> None:
        self._force = force
        self._staged: list[_Staged] = []

    def open(self, path: Path, *, beside: Path | None = None) -> BinaryIO:
        """A binary file that becomes ``path`` on success; ``beside`` as for :func:`check_output`."""
        final = check_output(path, force=self._force, beside=beside)
        if any(final == s.final for s in self._staged):
            raise UsageError(f"{path}: named twice as an output", hint="give each its own name")
        with undisturbed():
            sweep(final)
            try:
                self._staged.append(_Staged(final))
            except OSError as e:
                raise _cannot_write(path, e) from e
        return self._staged[-1].file

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            done: list[Path] = []
            try:
                if kind is None:
                    self._commit(done)
                    appeared.extend(done)
            except OSError as e:
                raise _cannot_write(self._staged[0].final, e, done) from e
            finally:
                for staged in self._staged:
                    staged.discard()
        if isinstance(error, OSError) and error.errno in FULL and self._staged:
            raise _cannot_write(self._staged[0].final, error) from error

    def _commit(self, done: list[Path]) -> None:
        """Gives all files their names; ``done`` are those that have theirs, also where it fails."""
        for staged in self._staged:
            staged.file.flush()
            os.fsync(staged.file.fileno())
        aside: list[_Aside] = []
        try:
            if self._force:  # an old sidecar never stands beside a new main file
                aside += filter(None, (_Aside.of(s.final) for s in self._staged[1:]))
            for staged in self._staged:
                staged.publish(replace=self._force)
                done.append(staged.final)
        except BaseException:
            if not self._force:
                while done:  # only what this very call created
                    os.unlink(done.pop())
            elif not done:
                for old in aside:
                    old.back()
            raise
        finally:
            for old in aside:
                old.drop()
        for folder in {s.final.parent for s in self._staged}:
            with contextlib.suppress(OSError):  # not every file system can
                fd = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)


class _Staged:
    """A file that is to be called ``final``."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.hidden: Path | None = None  # its name, if it has one already
        fd = _nameless(final.parent)
        if fd is None:
            self.hidden, fd = _create(final)
        self.file: BinaryIO = os.fdopen(fd, "wb")

    def publish(self, *, replace: bool) -> None:
        """Gives the file its name; an older file of that name only goes if it is to be replaced."""
        if replace:
            os.replace(self.named(), self.final)
            self._renamed()
            return
        try:
            self._link(self.final)
        except FileExistsError:
            raise _exists(self.final) from None
        except OSError:  # no hard links here
            if self.final.exists():
                raise _exists(self.final) from None
            os.rename(self.named(), self.final)
            self._renamed()

    def named(self) -> Path:
        """A hidden name of the file, which it gets if it has none."""
        if self.hidden is None:
            hidden = _hidden_name(self.final, "tmp")
            _hidden.add(hidden)
            try:
                self._link(hidden)
            except OSError:
                _hidden.discard(hidden)
                self.hidden, fd = _create(self.final)  # a copy, then: no hard links here
                with os.fdopen(fd, "wb") as copy, open(self._way, "rb") as written:
                    shutil.copyfileobj(written, copy, 1 << 20)
                    copy.flush()
                    os.fsync(copy.fileno())
            else:
                self.hidden = hidden
        return self.hidden

    @property
    def _way(self) -> str:
        return f"/proc/self/fd/{self.file.fileno()}"

    def _link(self, name: Path) -> None:
        if self.hidden is not None:
            os.link(self.hidden, name)
            return
        # with a folder's descriptor, of which an absolute path makes no use, links are followed
        os.link(self._way, name, src_dir_fd=self.file.fileno(), follow_symlinks=True)

    def _renamed(self) -> None:
        if self.hidden is not None:
            _hidden.discard(self.hidden)
            self.hidden = None

    def discard(self) -> None:
        """Closes the file, and takes its hidden name away."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self.hidden is not None:
            _remove(self.hidden)


class _Aside:
    """An old file that has been moved to a hidden name, and may come back."""

    def __init__(self, final: Path, hidden: Path, fd: int | None) -> None:
        self.final, self.hidden, self.fd = final, hidden, fd

    @classmethod
    def of(cls, final: Path) -> _Aside | None:
        fd, hidden = None, _hidden_name(final, "old")
        with contextlib.suppress(OSError):  # a file that may not be read can be renamed
            fd = os.open(final, os.O_RDONLY | os.O_CLOEXEC)
            _lock(fd)
        try:
            os.rename(final, hidden)
        except OSError as e:
            if fd is not None:
                os.close(fd)
            if isinstance(e, FileNotFoundError):
                return None
            raise
        return cls(final, hidden, fd)

    def back(self) -> None:
        os.rename(self.hidden, self.final)

    def drop(self) -> None:
        _remove(self.hidden)
        if self.fd is not None:
            os.close(self.fd)


def _nameless(folder: Path) -> int | None:
    """A new file in ``folder`` that has no name; None where there are no such files."""
    if not NAMELESS or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        fd = os.open(folder, os.O_WRONLY | NAMELESS | os.O_CLOEXEC, 0o666)
    except OSError as e:
        if e.errno in WITHOUT:
            return None
        raise
    _lock(fd)
    return fd


def _create(final: Path) -> tuple[Path, int]:
    """A new file with a hidden name beside ``final``, locked as long as this process lives."""
    while True:
        hidden = _hidden_name(final, "tmp")
        _hidden.add(hidden)
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(fd)
        if os.fstat(fd).st_nlink:  # nobody has taken it for a stray meanwhile
            return hidden, fd
        os.close(fd)


def _lock(fd: int) -> None:
    with contextlib.suppress(OSError):  # not every file system has locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _prefix(final: Path) -> str:
    """What hidden names of ``final`` begin with: its own, or as many of its bytes as fit."""
    return "." + os.fsdecode(os.fsencode(final.name)[:LONGEST]) + "."


def _hidden_name(final: Path, suffix: str) -> Path:
    return final.with_name(f"{_prefix(final)}{secrets.token_hex(6)}.{suffix}")


def sweep(final: Path) -> None:
    """Removes what processes that are gone have left of ``final`` under hidden names: a living one
    holds a lock on its own."""
    stray = re.compile(re.escape(_prefix(final)) + r"[0-9a-f]{12}\.(tmp|old)")
    with contextlib.suppress(OSError):
        for name in os.listdir(final.parent):
            if stray.fullmatch(name) and (path := final.with_name(name)) not in _hidden:
                with contextlib.suppress(OSError):
                    _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(fd)


def _remove(hidden: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(hidden)
    _hidden.discard(hidden)


@atexit.register
def _remove_all() -> None:
    for path in list(_hidden):
        _remove(path)


os.register_at_fork(after_in_child=_hidden.clear)  # they are the parent's


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What is done inside is done whole: signals that come are answered at its end.

    Blocking them would not do: any thread may get one, and its Python handler then runs in the main
    thread all the same.  Other threads than that one are never disturbed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    before = {}
    try:
        for s in SIGNALS:
            handler = signal.getsignal(s)
            if handler not in (signal.SIG_IGN, None):
                before[s] = handler
                signal.signal(s, note)
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
        for signum in dict.fromkeys(came):
            signal.raise_signal(signum)


def check_output(path: Path, *, force: bool = False, beside: Path | None = None) -> Path:
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
    if final.is_file() and final in current():
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


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path}: exists", hint="give --force to replace it, or another -o")


def _cannot_write(path: Path, e: OSError, done: Iterable[Path] = ()) -> UsageError:
    """``done`` are files that had been replaced before it failed."""
    there = ", ".join(p.name for p in done)
    left = f"only {there} was replaced, and is complete" if there else "nothing was left behind"
    return UsageError(f"{path}: cannot be written: {e.strerror}; {left}")
