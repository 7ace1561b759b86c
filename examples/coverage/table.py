"""The report, as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch

from .family import Family
from .structure import Structure


def table(structures: Sequence[Structure], families: Sequence[Family]) -> str:
    """One row a family, and every name that is not both target and source, with the reason."""
    by_family: dict[str, list[Structure]] = {}
    for s in structures:
        by_family.setdefault(s.family, []).append(s)
    rows = [_row(f, by_family[f.family]) for f in families]
    targets, sources = (
        sum(getattr(s, way) == "yes" for s in structures) for way in ("target", "source")
    )
    ran = [sum(getattr(f, way) == "yes" for f in families) for way in ("target", "source")]
    lines = [
        "# Coverage of timm's registry",
        "",
        f"Made by `python -m examples.coverage` with timm {timm.__version__} and torch "
        f"{torch.__version__.split('+')[0]}.",
        "",
        f"Of {len(structures)} names, all on shapes alone: {targets} can be targets, {sources} can "
        f"be sources ([names.jsonl](names.jsonl)). Of {len(families)} model files, one small "
        f"network each with real weights, cloned, injected, run and ejected with every promise "
        f"checked: {ran[0]} as target, {ran[1]} as source ([families.jsonl](families.jsonl)).",
        "",
        "Taps: of the network that was run, each of which was recorded, and of the family's names. "
        "Cuts: of the family's names. Prunable: the share of the parameters after the middle cut "
        "that can be removed, median of the family. Seconds: processor time of both runs.",
        "",
        "| family | names | network that was run | target | source | taps | cuts | prunable | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "## Not both target and source",
        "",
        *(_refused(structures) or ["All are."]),
    ]
    return "\n".join(lines) + "\n"


def _row(f: Family, of: Sequence[Structure]) -> str:
    able = [s for s in of if s.target == "yes"] or list(of)
    prunable = sorted(s.prunable for s in of if s.prunable is not None)
    cells = [
        f.family,
        str(len(of)),
        f"{f.model}, {f.size} px",
        f.target,
        f.source,
        f"{f.taps} ({_span([s.taps for s in able])})",
        _span([s.cuts for s in able]),
        f"{prunable[len(prunable) // 2]:.2f}" if prunable else "-",
        f"{f.seconds:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _refused(structures: Sequence[Structure]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for s in structures:
        for role in ("target", "source"):
            if getattr(s, role) != "yes":
                reasons.setdefault((getattr(s, role), s.family), []).append(f"{s.name} ({role})")
    return [
        f"- {family}: {reason}: {', '.join(names)}" for (reason, family), names in reasons.items()
    ]
