"""Plots of the rows: cost and locality of each scenario, and accuracy by the number of images."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

from .rows import KINDS, Group

COLOURS = dict(zip(KINDS, ["black", "tab:purple", "tab:orange", "tab:blue", "tab:green"]))
MARKERS = "osD^v<>PX*hp"


def plots(
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
