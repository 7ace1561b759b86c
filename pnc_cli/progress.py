"""What long work tells whoever waits for it: callbacks, given by the caller."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what, how many are done, of how many
Note = Callable[[str], None]  # a sentence worth knowing, beside the result


def no_progress(what: str, done: int, total: int) -> None:
    """Reports nothing."""


def no_note(text: str) -> None:
    """Says nothing."""
