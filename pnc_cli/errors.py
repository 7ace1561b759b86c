"""One tree of errors, each with its exit code: what a user can meet, and what to do about it.

==== ====================================================================
exit meaning
==== ====================================================================
0    done
1    a requested check failed (``pnc eval --fail-under ... --fail-over ...``)
2    usage: an unknown option, a missing argument, an output that exists, a package that is missing
3    bad input: a file that is corrupt, unreadable, or not what it should be
4    incompatible: source, target, patch or labels do not fit together
70   a fault of pnc itself
130  interrupted
==== ====================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence

INTERNAL = 70
_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")


def in_words(error: BaseException) -> str:
    """What another's error says, without objects at addresses, which tell nobody anything and are
    others each time."""
    return _ADDRESS.sub("", str(error)).strip(" :") or type(error).__name__


def some_of(names: Sequence[str], most: int = 10) -> str:
    """The first of a list, and how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class PncError(Exception):
    """A refusal.  ``message`` says what was expected and found; ``hint`` the next step."""

    exit_code = INTERNAL
    code = "internal"
    reported = False

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class OutOfMemory(PncError):
    """The machine, or what the process may have of it, is too small: no fault of a file's."""

    code = "out_of_memory"

    @classmethod
    def of(cls, error: BaseException) -> OutOfMemory | None:
        """What ``error`` is if a lack of memory is behind it: Python's own, or torch's."""
        said = " ".join(str(error).split())[:300]
        words = ("can't allocate memory", "out of memory", "not enough memory")
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and any(w in said for w in words)
        ):
            return cls(
                f"out of memory{f': {said}' if said else ''}; nothing was left behind",
                hint="give --memory, --limit-per-class or smaller images, or a machine with more",
            )
        return None


class CheckFailed(PncError):
    """A check that was asked for did not hold."""

    exit_code = 1
    code = "check_failed"

    def __init__(self, message: str, hint: str | None = None, *, reported: bool = False) -> None:
        super().__init__(message, hint)
        self.reported = reported  # the JSON object, with the figures, is on stdout already


class UsageError(PncError):
    """The command was given something it cannot work with."""

    exit_code = 2
    code = "usage"


class Interrupted(PncError):
    """A signal, or a reader of our output that went away."""

    exit_code = 130
    code = "interrupted"


class BadInput(PncError):
    """A file or folder that is missing, corrupt, or not what it should be."""

    exit_code = 3
    code = "bad_input"


class Incompatible(PncError):
    """Source, target, patch, positions or labels that do not fit together."""

    exit_code = 4
    code = "incompatible"
