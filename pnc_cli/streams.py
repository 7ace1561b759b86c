"""Standard streams as they are: closed, full, a pipe that nobody reads, or shared with libraries.

A result that cannot be written is an error; a note that cannot is not.  While a command works, what
libraries print (progress of theirs, warnings, messages of C code) never gets between its results.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper

from .errors import UsageError

STREAMS = ("standard input", "standard output", "standard error")


def open_streams() -> list[str]:
    """Puts the null device where a standard stream is closed, and makes all of them able to write
    any label.  Which were closed: a file that is opened would get their number, and what is printed."""
    closed = []
    for fd, name in enumerate(STREAMS):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            closed.append(name)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    for fd, stream in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(fd, "w", closefd=False))
        if isinstance(found := getattr(sys, stream), TextIOWrapper):
            found.reconfigure(errors="backslashreplace")  # a label must not crash a C locale
    return closed


def put(text: str, end: str = "\n") -> None:
    """Writes a result.  Raises ``UsageError`` where it cannot be written; a reader that went away
    is ``BrokenPipeError``."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as e:
        raise unwritable(e) from None


def unwritable(e: Exception) -> UsageError:
    why = e.strerror if isinstance(e, OSError) else e
    return UsageError(
        f"standard output cannot be written: {why}",
        hint="send it to a file or a pipe that takes it, or to /dev/null",
    )


def say(text: str) -> None:
    """Writes a line to standard error, if that takes it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def output_fails() -> Exception | None:
    """What goes wrong in writing what is left for standard output, if anything does."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as e:
        return e
    return None


def let_go() -> None:
    """What could not be written is given up, so that the interpreter does not try it again when it
    ends, and ends with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def libraries_apart(quiet: bool) -> Iterator[None]:
    """Within it nothing that others print reaches standard output, and with ``quiet`` nothing
    reaches standard error either, whether it is printed from Python or by C code."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as undo:
        for stream in before:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        null = open(os.devnull, "w", encoding="utf-8") if quiet else None
        if null is not None:
            undo.enter_context(null)
        for fd in (1, 2) if quiet else (1,):
            with contextlib.suppress(OSError):
                kept = os.dup(fd)
                undo.callback(_put_back, kept, fd)
                os.dup2(2 if null is None else null.fileno(), fd)
        sys.stdout = null or sys.stderr
        sys.stderr = null or sys.stderr
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            sys.stdout, sys.stderr = before


def _put_back(kept: int, fd: int) -> None:
    os.dup2(kept, fd)
    os.close(kept)
