"""Everything that is printed: results on stdout, all else on stderr.

With ``--json`` exactly one object goes to stdout, on failure too.  Progress is bars on a terminal and
a line now and then elsewhere.  Labels and names come from files: whatever could steer a terminal is
escaped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .errors import CheckFailed, PncError, UsageError
from .progress import Progress, duration, no_progress
from .streams import libraries_apart, put, say


class Report:
    """One command's output."""

    def __init__(self, command: str, *, as_json: bool = False, quiet: bool = False) -> None:
        self.command = command
        self.as_json = as_json
        self.quiet = quiet

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr; silent with ``-q``."""
        if not self.quiet:
            say(clean(text))

    def result(self, document: dict[str, Any], text: str) -> None:
        """The command's result: ``document`` with ``--json``, ``text`` otherwise."""
        if self.as_json:
            print_json({"schema": f"pnc.{self.command}/1", "ok": True, **document})
        elif text:
            put(clean(text, keep="\n"))

    def failed(self, document: dict[str, Any], message: str, code: str = CheckFailed.code) -> None:
        """The result of a check that did not hold, with ``--json``."""
        fault = {"code": code, "message": message, "hint": None}
        print_json({"schema": f"pnc.{self.command}/1", "ok": False, "error": fault, **document})

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback ``(what, done, total)`` that draws bars on a terminal, with the time that is
        left, and elsewhere prints a line now and then.  What libraries print within it stays out
        of the results, and with ``-q`` unsaid."""
        with libraries_apart(self.quiet):
            if self.quiet:
                yield no_progress
            elif not sys.stderr.isatty():
                yield Lines(lambda line: say(clean(line)))
            else:
                with _bars() as update:
                    yield update


class Lines:
    """Progress as plain lines, where there is no terminal: none for what takes a moment."""

    EVERY = 10.0  # seconds

    def __init__(self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic):
        self.say, self.now = say, now
        self.what, self.began, self.said = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        at = self.now()
        if what != self.what or done == 0:  # something else, or the same begins again
            self.what, self.began, self.said = what, at, at
        elif 0 < done < total and at - self.said >= self.EVERY:
            self.said = at
            left = (at - self.began) / done * (total - done)
            self.say(f"{what}: {done} of {total}, about {duration(left)} left")


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True, no_color="NO_COLOR" in os.environ or None)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            elif done == 0:  # the same begins again
                bars.reset(tasks[what], total=total)
            bars.update(tasks[what], completed=done, total=total, visible=done < total)

        yield update


def print_json(document: dict[str, Any]) -> None:
    put(json.dumps(document, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False))


def print_error(error: PncError, command: str, *, as_json: bool) -> None:
    """An error, on stderr; with ``--json`` as the one object on stdout too."""
    if as_json:
        fault = {"code": error.code, "message": error.message, "hint": error.hint}
        with suppress(UsageError, BrokenPipeError):  # the error itself is what counts
            print_json({"schema": f"pnc.{command}/1", "ok": False, "error": fault})
    say(f"pnc: error: {clean(error.message)}")
    if error.hint:
        say(f"  try: {clean(error.hint)}")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Plain aligned columns, the first ``left`` of them left-aligned; never truncated."""
    cells = [list(headings), *[[clean(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = []
    for row in cells:
        parts = [
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def amount(value: float) -> str:
    """1234567 -> 1.23M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def clean(text: str, keep: str = "") -> str:
    """``text`` with everything unprintable escaped."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )
