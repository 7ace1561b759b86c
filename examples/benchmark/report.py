"""RESULTS.md from the rows in results.jsonl: an overview, and two tables for each scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from .overview import overview
from .pictures import plots
from .row import Row
from .rows import Group, groups_of, read_rows

QUALITY = [
    ("average", "average_accuracy"),
    ("original", "original_accuracy"),
    ("clone", "clone_accuracy"),
    ("joint", "joint_accuracy"),
    ("locality", "locality"),
    ("right to wrong", "right_to_wrong"),
    ("ECE", "calibration_error"),
    ("forgetting", "forgetting"),
    ("after undo", "forgetting_undone"),
]


def line(row: Row) -> str:
    """A row as printed while the benchmark runs."""

    def part(name, v):
        return f"{name} {'-' if v is None else format(v, '.3f')}"

    made = f"{row.cpu_seconds:.1f} s CPU" + (
        f" (+{row.tuning_seconds:.1f} s tuning)" if row.tuning_seconds else ""
    )
    return "  ".join(
        [
            part("average", row.average_accuracy),
            part("original", row.original_accuracy),
            part("clone", row.clone_accuracy),
            part("locality", row.locality),
            f"MACs +{row.added_macs / row.target_macs:.2f}",
            made,
            " ".join(str(v) for v in row.settings.values()),
        ]
    )


def write(out: Path) -> None:
    """Writes RESULTS.md and plots/*.png beside ``out``/results.jsonl."""
    found = groups_of(read_rows(out / "results.jsonl"))
    if not found:
        return
    pictures = plots(found, out / "plots")
    text = [
        "# Results",
        "",
        "Made by `python -m examples.benchmark`; README.md says what the columns mean. "
        "Mean ± standard deviation over seeds (seeds draw the few images and the starting values). "
        "Costs are beside the target's own; seconds and latency are of the machine it ran on.",
        "",
    ]
    text += overview(found)
    for (name, amount), groups in sorted(found.items()):
        text += _section(name, amount, groups, pictures.get((name, amount), []))
    text += [f"![]({p})\n" for p in pictures.get(("", 0), [])]
    (out / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"wrote {out / 'RESULTS.md'}")


def _section(name: str, amount: int, groups: list[Group], pictures: list[str]) -> list[str]:
    seeds = max(len(g.rows) for g in groups)
    first = groups[0].rows[0]
    text = [
        f"## {name}, {amount} images a class",
        "",
        f"`python -m examples.benchmark {name}`: {seeds} seeds; target {first.target_parameters:,} parameters, "
        f"{first.target_macs:,} MACs, {first.target_accuracy:.3f} on its classes.",
        "",
        "| method | " + " | ".join(h for h, _ in QUALITY) + " |",
        "|---" * (len(QUALITY) + 1) + "|",
    ]
    for g in groups:
        text.append(
            f"| {_titled(g, seeds)} | "
            + " | ".join(_spread(g.values(n)) for _, n in QUALITY)
            + " |"
        )
    costs: list[tuple[str, Callable[[Group], str]]] = [
        (
            "parameters",
            lambda g: f"+{mean(r.added_parameters / r.target_parameters for r in g.rows):.3f}",
        ),
        ("MACs", lambda g: f"+{g.macs:.3f}"),
        ("latency", lambda g: f"x {v:.2f}" if (v := g.mean("latency")) else "-"),
        ("shipped", lambda g: _bytes(g.mean("bytes_shipped"))),
        ("kept for undo", lambda g: _bytes(g.mean("bytes_to_undo"))),
        ("seconds", lambda g: f"{g.mean('seconds'):.1f}"),
        ("CPU seconds", lambda g: f"{g.mean('cpu_seconds'):.1f}"),
        ("tuning seconds", lambda g: f"{max(g.values('tuning_seconds')):.1f}"),
        ("peak memory", lambda g: f"{g.mean('peak_megabytes'):.0f} MB"),
        ("settings", lambda g: "; ".join(dict.fromkeys(_settings(r) for r in g.rows))),
    ]
    text += [
        "",
        "| method | " + " | ".join(h for h, _ in costs) + " |",
        "|---" * (len(costs) + 1) + "|",
    ]
    for g in groups:
        text.append(f"| {_titled(g, seeds)} | " + " | ".join(f(g) for _, f in costs) + " |")
    return [*text, "", *(f"![]({p})" for p in pictures), ""]


def _titled(group: Group, seeds: int) -> str:
    """A row's name, with its seeds where the others have more."""
    few = len(group.rows)
    return group.method + ("" if few == seeds else f" ({few} seed{'s' * (few > 1)})")


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    middle = f"{mean(values):.3f}".replace("-0.000", "0.000")
    return middle if len(values) == 1 else f"{middle} ± {stdev(values):.3f}"


def _settings(row: Row) -> str:
    return ", ".join(
        f"{k.replace('_', ' ')} {', '.join(v) if isinstance(v, list) else v}"
        for k, v in row.settings.items()
    )


def _bytes(n: float | None) -> str:
    if not n:
        return "0"
    return f"{n / 1e6:.2f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
