"""Tables (RESULTS.md) and plots from the rows in results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from .row import Row

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
COLOURS = {
    "reference": "black",
    "both": "tab:purple",
    "tuning": "tab:orange",
    "pnc": "tab:blue",
    "bound": "tab:green",
}
MARKERS = "osD^v<>PX*hp"


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
    """Scenario and images per class -> methods; of rows made twice the last one counts."""
    last = {(r.scenario, r.images_per_class, r.method, r.seed): r for r in rows}
    found: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for r in last.values():
        found.setdefault((r.scenario, r.images_per_class), {}).setdefault(r.method, []).append(r)
    kinds = list(COLOURS)
    return {
        key: sorted(
            (Group(m, rs[0].kind, rs) for m, rs in methods.items()),
            key=lambda g: kinds.index(g.kind),
        )
        for key, methods in found.items()
    }


def write(out: Path) -> None:
    """Writes RESULTS.md and plots/*.png beside ``out``/results.jsonl."""
    found = groups_of(read_rows(out / "results.jsonl"))
    if not found:
        return
    pictures = _plots(found, out / "plots")
    text = [
        "# Results",
        "",
        "Made by `python -m examples.benchmark`; README.md says what the columns mean. "
        "Mean ± standard deviation over seeds (seeds draw the few images and the starting values). "
        "Costs are beside the target's own; seconds and latency are of the machine it ran on.",
        "",
    ]
    text += _summary(found)
    for (name, amount), groups in sorted(found.items()):
        text += _section(name, amount, groups, pictures.get((name, amount), []))
    text += [f"![]({p})\n" for p in pictures.get(("", 0), [])]
    (out / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"wrote {out / 'RESULTS.md'}")


def _summary(found: dict[tuple[str, int], list[Group]]) -> list[str]:
    """Per scenario: pnc beside the best of its rivals, and what its budgets cost."""
    text = [
        "## Overview",
        "",
        "*pnc* is its first choice without a budget, and beside it stands the best parameter tuning "
        "by average accuracy on the test images. *Gain*: of pnc over that, in average accuracy. *Changed*: predictions "
        "on original classes that pnc changes, as a share of those that this rival changes. *Ahead*: what else has a "
        "higher average, as shown.",
        "",
        "| scenario | best parameter tuning | both networks, calibrated | pnc | gain | changed | ahead |",
        "|---|---|---|---|---|---|---|",
    ]
    gains, changes, alone = [], [], _alone(found)
    for (name, amount), groups in sorted(found.items()):
        scored = [g for g in groups if g.mean("average_accuracy") is not None and g.kind != "bound"]
        scored.sort(key=lambda g: -g.mean("average_accuracy"))
        ours = next((g for g in scored if g.method == "pnc"), None)
        tuned = next((g for g in scored if g.kind == "tuning"), None)
        pair = next((g for g in scored if g.method == "both, calibrated"), None)
        if ours is None:  # a scenario of other questions
            continue
        shown = {g.method: round(g.mean("average_accuracy"), 3) for g in scored if g.kind != "pnc"}
        ahead = [m for m, a in shown.items() if a > round(ours.mean("average_accuracy"), 3)]
        gain = change = None
        if tuned:
            gain = ours.mean("average_accuracy") - tuned.mean("average_accuracy")
            change = (1 - ours.mean("locality")) / max(1 - tuned.mean("locality"), 1e-9)
            if (name, amount) in alone:
                gains, changes = [*gains, gain], [*changes, change]
        cells = [
            _best(tuned),
            _best(pair),
            _best(ours),
            _number(gain, "+.3f"),
            _number(change, ".2f"),
            ", ".join(ahead) or "none",
        ]
        text.append(f"| {name}, {amount} a class | " + " | ".join(cells) + " |")
    if gains:
        text.append(
            f"| **mean**{_of(found)} | | | | **{mean(gains):+.3f}** | **{mean(changes):.2f}** | |"
        )
    return [*text, "", *_budgets(found)]


def _alone(found: dict[tuple[str, int], list[Group]]) -> list[tuple[str, int]]:
    """Scenarios with one amount of images: what is run at several is one of them at others."""
    names = [name for name, _ in found]
    return [key for key in found if names.count(key[0]) == 1]


def _of(found: dict) -> str:
    several = len({name for name, _ in found}) < len(found)
    return " (without the scenario of several amounts)" if several else ""


def _budgets(found: dict[tuple[str, int], list[Group]]) -> list[str]:
    """What is left of the calibrated pair's average accuracy at each budget."""
    found = {k: groups for k, groups in found.items() if any(g.method == "pnc" for g in groups)}
    labels = list(
        dict.fromkeys(g.method for groups in found.values() for g in groups if g.kind == "pnc")
    )
    text = [
        "Average accuracy of each row of pnc as a share of that of both networks, calibrated (added MACs in brackets):",
        "",
        "| scenario | " + " | ".join(labels) + " |",
        "|---" * (len(labels) + 1) + "|",
    ]
    kept: dict[str, list[float]] = {label: [] for label in labels}
    alone = _alone(found)
    for key, groups in sorted(found.items()):
        by_name, cells = {g.method: g for g in groups}, []
        pair = by_name.get("both, calibrated")
        for label in labels:
            g = by_name.get(label)
            if pair is None or g is None:
                cells.append("-")
                continue
            share = g.mean("average_accuracy") / pair.mean("average_accuracy")
            cells.append(f"{share:.3f} (+{g.macs:.2f})")
            if key in alone:
                kept[label].append(share)
        text.append(f"| {key[0]}, {key[1]} a class | " + " | ".join(cells) + " |")
    means = [f"**{mean(shares):.3f}**" if shares else "-" for shares in kept.values()]
    text.append(f"| **mean**{_of(found)} | " + " | ".join(means) + " |")
    return [*text, ""]


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _best(group: Group | None) -> str:
    if group is None:
        return "-"
    return f"{group.method}: **{group.mean('average_accuracy'):.3f}** (locality {group.mean('locality'):.3f}, MACs +{group.macs:.2f})"


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


def _plots(
    found: dict[tuple[str, int], list[Group]], folder: Path
) -> dict[tuple[str, int], list[str]]:
    """Writes the pictures; returns their names relative to ``folder``'s parent, by scenario."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
        return {}
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[tuple[str, int], list[str]] = {}
    amounts: dict[str, dict[int, list[Group]]] = {}
    for (name, amount), groups in found.items():
        amounts.setdefault(name, {})[amount] = groups
    for (name, amount), groups in found.items():
        if len(amounts[name]) > 1:
            continue
        for kind, x, title, label in (
            (
                "cost",
                lambda g: g.macs,
                "what you get for what you pay",
                ("added MACs, times the target's", "average accuracy"),
            ),
            (
                "locality",
                lambda g: g.mean("locality"),
                "new classes, and old answers left alone",
                ("locality", "accuracy on clone classes"),
            ),
        ):
            y = "average_accuracy" if kind == "cost" else "clone_accuracy"
            shown = [
                g
                for g in groups
                if x(g) is not None
                and g.mean(y) is not None
                and g.mean("average_accuracy") is not None
            ]
            file = folder / f"{name}-{kind}.png"
            _scatter(shown, x, y, f"{name}: {title}", label, file)
            names.setdefault((name, amount), []).append(f"plots/{file.name}")
    for name, by_amount in amounts.items():
        if len(by_amount) > 1:
            _by_amount(name, by_amount, folder / f"{name}.png")
            names.setdefault(("", 0), []).append(f"plots/{name}.png")
    return names


def _scatter(
    groups: list[Group], x, y: str, title: str, labels: tuple[str, str], file: Path
) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    counts: dict[str, int] = {}
    for g in groups:
        k = counts[g.kind] = counts.get(g.kind, -1) + 1
        values = g.values(y)
        axes.errorbar(
            x(g),
            mean(values),
            yerr=stdev(values) if len(values) > 1 else None,
            capsize=2,
            ls="none",
            marker=MARKERS[k % len(MARKERS)],
            color=COLOURS[g.kind],
            label=g.method,
            alpha=0.85,
        )
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _by_amount(name: str, by_amount: dict[int, list[Group]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    series: dict[str, list[tuple[int, Group]]] = {}
    for amount, groups in sorted(by_amount.items()):
        for g in groups:
            if g.mean("average_accuracy") is not None and g.kind != "reference":
                series.setdefault(g.method, []).append((amount, g))
    for k, (method, points) in enumerate(series.items()):
        kind = points[0][1].kind
        axes.plot(
            [a for a, _ in points],
            [g.mean("average_accuracy") for _, g in points],
            label=method,
            marker=MARKERS[k % len(MARKERS)],
            color=COLOURS[kind],
            alpha=0.8,
        )
    for label in ("pnc", "pnc, half"):  # where the branch is attached moves with the images
        for amount, g in series.get(label, []):
            where = g.rows[0].settings.get("positions", [""])[0]
            axes.annotate(
                where,
                (amount, g.mean("average_accuracy")),
                fontsize=6,
                xytext=(0, 6 if label == "pnc" else -10),
                textcoords="offset points",
            )
    axes.set(
        xscale="log",
        title=f"{name}: images per class",
        xlabel="images per class",
        ylabel="average accuracy",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)
