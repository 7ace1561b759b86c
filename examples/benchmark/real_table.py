"""The rows of real_sizes.py, in a file and as tables, those of each label side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .watched import Ran

GB = 1e9
ORDER = ("before", "after")  # other labels come behind
NOTHING = "-"
AIMS = {"search": (3, 10), "closed": (8, 20), "clone": (16, 20)}  # so many F, and seconds


@dataclass(frozen=True)
class Plain:
    """One forward pass of both networks over the images, and what it takes to hold them."""

    cpu: float  # seconds; F
    wall: float
    decoding: float  # processor seconds, not in F
    images: int
    held: int  # bytes of both networks' weights and of the images as uint8
    resident: int  # bytes of a process that holds just these, PyTorch and timm imported


@dataclass(frozen=True)
class Row:
    """One command, measured once."""

    label: str
    pair: str
    command: str
    images: int  # a class; for eval in all; 0 where there are none
    options: str
    threads: int
    processors: int
    commit: str
    ran: Ran
    plain: Plain | None = None  # of search and clone
    beside: Ran | None = None  # what eval, inject and eject are compared with
    found: dict[str, float] = field(default_factory=dict)  # what the command itself says
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        return self.label, self.pair, self.command, self.images, self.options

    @property
    def passes(self) -> float | None:
        """Processor seconds in units of F, also of a command that was ended: until then."""
        return self.ran.cpu / self.plain.cpu if self.plain else None

    @property
    def of_aim(self) -> float | None:
        """Processor seconds as a share of those that are aimed at."""
        if self.plain is None:
            return None
        passes, seconds = AIMS[self.command]
        return self.ran.cpu / (passes * self.plain.cpu + seconds)

    @property
    def above(self) -> int | None:
        """Bytes at the peak beyond those of the two networks and the images."""
        return self.ran.peak - self.plain.held if self.plain else None

    @property
    def above_plain(self) -> int | None:
        """Bytes at the peak beyond a process that holds these and has imported what they need."""
        return self.ran.peak - self.plain.resident if self.plain else None

    @property
    def speed(self) -> float | None:
        """Images of a wall second, of eval."""
        return self.found["images"] / self.ran.wall if "images" in self.found else None

    @property
    def plain_speed(self) -> float | None:
        if self.beside is None or "loop_images" not in self.found:
            return None
        return self.found["loop_images"] / self.beside.wall


def append(path: Path, row: Row) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The last row of each key, in the order in which keys came first."""
    rows: dict[tuple, Row] = {}
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            d = json.loads(text)
            d["ran"] = Ran(**d["ran"])
            d["plain"] = Plain(**d["plain"]) if d["plain"] else None
            d["beside"] = Ran(**d["beside"]) if d["beside"] else None
            row = Row(**d)
            rows[row.key] = row
    return list(rows.values())


def line(row: Row) -> str:
    """A row as printed while the script runs."""
    parts = [f"{row.label}: {row.pair}, {row.command}, {row.images} images, {ended(row.ran)}"]
    parts.append(f"{row.ran.cpu:.1f} s CPU, {row.ran.wall:.1f} s, {row.ran.peak / GB:.2f} GB")
    if row.plain:
        parts.append(f"F {row.plain.cpu:.1f} s, {row.passes:.1f} F, {row.above / GB:.2f} GB above")
    if row.beside:
        parts.append(f"beside: {ended(row.beside)}, {row.beside.wall:.1f} s")
    return "; ".join(parts) + (f"\n  {row.ran.said}" if row.ran.said else "")


def ended(ran: Ran) -> str:
    """How a command ended, in words."""
    if ran.outcome == "killed":
        return f"**killed at {ran.peak / GB:.1f} GB** after {ran.wall:.0f} s"
    if ran.outcome == "timed out":
        return f"**stopped after {ran.wall:.0f} s**"
    return ran.outcome if ran.done else f"**failed** (exit {ran.code})"


def write(path: Path) -> None:
    """Makes the table from the rows in ``path``, beside it."""
    rows = read_rows(path)
    found = {r.label for r in rows}
    labels = [*(n for n in ORDER if n in found), *sorted(found - set(ORDER))]
    lines = ["# Real sizes", "", INTRODUCTION, "", *measured_with(rows, labels), ""]
    for title, belongs, columns in SECTIONS:
        if some := [r for r in rows if belongs(r)]:
            lines += [f"## {title}", "", *table(some, labels, columns), ""]
    path.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


def measured_with(rows: list[Row], labels: list[str]) -> list[str]:
    """What each label's rows were measured with, in a line."""
    lines = []
    for label in labels:
        some = [r for r in rows if r.label == label]
        commits = ", ".join(dict.fromkeys(r.commit or "no commit" for r in some))
        threads = ", ".join(dict.fromkeys(f"{r.threads} of {r.processors}" for r in some))
        versions = dict.fromkeys(f"{n} {v}" for r in some for n, v in r.versions.items())
        lines.append(f"- *{label}*: {', '.join((commits, *versions))}; {threads} processors")
    return lines


Column = tuple[str, Callable[[Row], str]]


def table(rows: list[Row], labels: list[str], columns: Sequence[Column]) -> list[str]:
    """A line for each command; ``columns`` once for each label."""
    titles = [f"{label}: {title}" for label in labels for title, _ in columns]
    lines = [
        f"| pair | images | command | {' | '.join(titles)} |",
        f"|---|---|---|{'---|' * len(titles)}",
    ]
    lines_of: dict[tuple, dict[str, Row]] = {}
    for r in rows:
        lines_of.setdefault(r.key[1:], {})[r.label] = r
    for (pair, command, images, options), of_label in lines_of.items():
        cells = [
            show(of_label[label]) if label in of_label else ""
            for label in labels
            for _, show in columns
        ]
        what = f"{NAMES.get(command, command)} {options}".strip()
        lines.append(f"| {pair} | {images or NOTHING} | {what} | {' | '.join(cells)} |")
    return lines


def passes(row: Row) -> str:
    """A command that was ended has at least these."""
    if row.ran.done:
        return f"{row.passes:.1f}"
    return f"> {row.passes:.1f}, {ended(row.ran)}"


def aim(row: Row) -> str:
    return f"{row.of_aim:.2f}" if row.ran.done else f"> {row.of_aim:.2f}"


def above(row: Row) -> str:
    return f"{gigabytes(row.above)}, {gigabytes(row.above_plain)}"


def accuracy(row: Row) -> str:
    if row.found.get("tested") == 0:
        return "**test failed**"
    if "average_accuracy" not in row.found:
        return NOTHING
    return f"{row.found['average_accuracy']:.3f}, {row.found['locality']:.3f}"


def speed(row: Row) -> str:
    if row.found.get("prepared") == 0:
        return f"making the model: {ended(row.ran)}"
    return f"{row.speed:.1f}" if row.speed else ended(row.ran)


def plain_speed(row: Row) -> str:
    if row.plain_speed:
        return f"{row.plain_speed:.1f}"
    return ended(row.beside) if row.beside else NOTHING


def speed_ratio(row: Row) -> str:
    both = row.speed and row.plain_speed
    return f"{row.speed / row.plain_speed:.2f}" if both else NOTHING


def file_time(row: Row) -> str:
    if not row.ran.done:
        return ended(row.ran)
    same = {0.0: ", **not the same file**", 1.0: ", the same file"}
    return f"{row.ran.wall:.1f} s" + same.get(row.found.get("same", -1), "")


def file_ratio(row: Row) -> str:
    if not (row.ran.done and row.beside and row.beside.done):
        return NOTHING
    return f"{row.ran.wall / row.beside.wall:.2f}"


def gigabytes(value: float | None) -> str:
    return NOTHING if value is None else f"{value / GB:.2f}"


def weights_above(row: Row) -> str:
    """Peak memory of loading above what importing takes, times the file and times the weights."""
    if row.command != "load" or not row.ran.done:
        return NOTHING
    above = row.ran.peak - row.found["before"]
    return f"{above / row.found['bytes']:.2f}, {above / row.found['weights']:.2f}"


NAMES = {"closed": "clone --epochs 0"}
SECTIONS: tuple[tuple[str, Callable[[Row], bool], Sequence[Column]], ...] = (
    (
        "Search and clone",
        lambda r: r.plain is not None,
        (
            ("F, s", lambda r: f"{r.plain.cpu:.1f}"),
            ("CPU / F", passes),
            ("CPU / aim", aim),
            ("CPU, wall, s", lambda r: f"{r.ran.cpu:.0f}, {r.ran.wall:.0f}"),
            ("peak, GB", lambda r: gigabytes(r.ran.peak)),
            ("above, GB", above),
            ("average, locality", accuracy),
        ),
    ),
    (
        "Evaluating the target with the whole source on top",
        lambda r: r.command == "eval",
        (
            ("images a second", speed),
            ("timm's loop", plain_speed),
            ("ratio", speed_ratio),
            ("peak, GB", lambda r: gigabytes(r.ran.peak)),
        ),
    ),
    (
        "A large target",
        lambda r: r.plain is None and r.command != "eval",
        (
            ("wall", file_time),
            ("times cp, sync, sha256sum", file_ratio),
            ("file, GB", lambda r: gigabytes(r.found.get("bytes"))),
            ("peak, GB", lambda r: gigabytes(r.ran.peak)),
            ("loading, times the file and the weights in memory", weights_above),
        ),
    ),
)
INTRODUCTION = """\
Made by `python -m examples.benchmark.real_sizes` (what it measures stands there) from the rows in
the `.jsonl` file beside this one.

- *Images*: of each class; for eval all.
- *F*: processor seconds of one plain forward pass of both networks over the images that the command
  reads. *CPU / F*: the command's own processor seconds in these, decoding, importing and loading
  included (`>`: it was ended, and these are until then). *Aim*: for search 3 F + 10 s, for clone
  without refining 8 F + 20 s, with it 16 F + 20 s.
- *Peak*: the largest resident memory of the command's process, mapped files (PyTorch's libraries)
  included. *Above*: beyond the bytes of both networks' weights and the images as uint8; and beyond a
  process that holds just these and has imported PyTorch and timm.
- *Average, locality*: on test images, where a pair has real ones.
- Rates of eval and of the loop beside it include importing and loading."""
