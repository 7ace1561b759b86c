"""A picture of a plan: what each candidate gives for what it costs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from .errors import UsageError
from .plan import Candidate, Plan

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> Path:
    """``path``; refuses what could not be drawn, before any work is done.  Raises ``UsageError``."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        import_module("matplotlib")
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib, which is not installed", hint="pip install matplotlib"
        ) from None
    return path


def draw_plan(plan: Plan, file: BinaryIO, kind: str) -> None:
    """Draws accuracy against added MACs, the frontier and the choice marked, into ``file``.

    ``kind`` is one of ``FORMATS``.
    """
    from matplotlib.figure import Figure

    from .placement.ranking import frontier, worth

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    share = [c.macs / plan.target_macs for c in plan.candidates]
    axes.scatter(share, [worth(c) for c in plan.candidates], s=14, color="0.7", label="candidates")
    best = frontier(plan.candidates)
    axes.plot(
        [c.macs / plan.target_macs for c in best],
        [worth(c) for c in best],
        "o-",
        ms=4,
        color="tab:blue",
        label="nothing as cheap is better",
    )
    for c in best:
        axes.annotate(
            _named(c),
            (c.macs / plan.target_macs, worth(c)),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=6,
        )
    chosen, against = plan.candidates[plan.chosen], plan.held_against
    marked = [] if against is None else [(against, "s", 8, "tab:blue", "held against")]
    marked.append((chosen, "*", 14, "tab:red", "chosen"))
    for c, marker, size, colour, what in marked:
        at = (c.macs / plan.target_macs, worth(c))
        axes.plot(*at, marker, ms=size, color=colour, label=f"{what}: {_named(c)}")
    axes.set_xlabel("MACs added, of the target's")
    axes.set_ylabel(_axis(plan))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, format=kind.lower().lstrip("."), dpi=150)


def _named(c: Candidate) -> str:
    return c.kept if c.place.is_head_only else f"{c.tap} → {c.cut}, {c.kept}"


def _axis(plan: Plan) -> str:
    if plan.data == "generated":
        return "share of the source's pre-logits that survives"
    seen = "images that were partly fitted on" if plan.fitted else "held-out images"
    return f"average accuracy, {seen}" if plan.original_images else f"branch accuracy, {seen}"
