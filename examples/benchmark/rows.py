"""The rows in results.jsonl, and those of one method taken together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from .row import Row

KINDS = ["reference", "both", "tuning", "pnc", "bound"]  # as they stand in the tables


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file.  A line cut short by an interruption is passed over."""
    rows = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(Row(**json.loads(text)))
            except (ValueError, TypeError):  # cut short, or of another version of the harness
                continue
    return rows


def append(path: Path, row: Row) -> None:
    """Adds a row, in one write: several processes may do so at once."""
    with open(path, "ab+") as f:
        cut_short = f.seek(0, 2) and (f.seek(-1, 2), f.read(1))[1] != b"\n"
        text = json.dumps(asdict(row), allow_nan=False) + "\n"
        f.write((b"\n" if cut_short else b"") + text.encode())


@dataclass(frozen=True)
class Group:
    """The rows of one method in one scenario, one a seed."""

    method: str
    kind: str
    rows: list[Row]

    def values(self, name: str) -> list[float]:
        return [v for r in self.rows if (v := getattr(r, name)) is not None]

    def mean(self, name: str) -> float | None:
        return mean(v) if (v := self.values(name)) else None

    @property
    def macs(self) -> float:
        return mean(r.added_macs / r.target_macs for r in self.rows)


def groups_of(rows: list[Row]) -> dict[tuple[str, int], list[Group]]:
    """Scenario and images per class -> methods.

    Of rows made twice the last one counts; those of rivals that were trained under other rules not
    at all, nor those of another target than the newest row's: a network that the harness trains
    itself comes out differently on another machine.
    """
    rows = [r for r in rows if r.comparable]
    target = {(r.scenario, r.images_per_class): _target(r) for r in rows}
    last = {
        (r.scenario, r.images_per_class, r.method, r.seed): r
        for r in rows
        if _target(r) == target[r.scenario, r.images_per_class]
    }
    found: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for r in last.values():
        found.setdefault((r.scenario, r.images_per_class), {}).setdefault(r.method, []).append(r)
    return {
        key: sorted(
            (Group(m, rs[0].kind, rs) for m, rs in methods.items()),
            key=lambda g: KINDS.index(g.kind),
        )
        for key, methods in found.items()
    }


def _target(row: Row) -> tuple[int, float]:
    """What tells two targets apart: the test images are the same for all rows of a scenario."""
    return row.target_parameters, row.target_accuracy
