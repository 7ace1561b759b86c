"""What long work tells whoever waits for it: callbacks, given by the caller."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what, how many are done, of how many
Note = Callable[[str], None]  # a sentence worth knowing, beside the result


def no_progress(what: str, done: int, total: int) -> None:
    """Reports nothing."""


def no_note(text: str) -> None:
    """Says nothing."""


def duration(seconds: float) -> str:
    """45 -> 45 s, 200 -> 3 min, 5000 -> 1.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
