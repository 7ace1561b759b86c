"""The tables at the head of RESULTS.md: pnc beside its fairly trained rivals, and what it costs."""

from __future__ import annotations

from statistics import mean

from .rows import Group

Found = dict[tuple[str, int], list[Group]]  # by scenario and images per class

# Rivals that are given what pnc is given: all few images, and as much work (README.md).
FAIR = [
    "linear probe",
    "linear probe, all rows refitted",
    "fine-tuning with replay",
    "LwF",
    "EWC",
    "LoRA",
    "kernel modulation",
    "visual prompts",
]
NEEDED = {"fine-tuning with replay", "LwF", "EWC"}  # a scenario without these counts in no mean
PAIR = "both, calibrated"
Cells = list[float | None]


def overview(found: Found) -> list[str]:
    return [*_against_rivals(found), *_against_pair(found), *_means(found)]


def _against_rivals(found: Found) -> list[str]:
    """Per scenario: pnc beside the best of its fair rivals."""
    text = [
        "## Overview",
        "",
        "*pnc* is its first choice without a budget. Beside it stands the best of the *fair rivals*, by "
        "average accuracy on the test images: tuning of the target that learns from all the few images that "
        "pnc learns from, with a budget of steps that is as much work (" + ", ".join(FAIR) + "). "
        "*Changed*: predictions on original classes that pnc changes, as a share of those that this rival "
        "changes. *Lowest ECE*: of all fair rivals. Means are over the scenarios where these rivals were "
        "run; those of old rows, trained for ten epochs, are left out of all tables.",
        "",
        _head(
            "scenario, images a class",
            "best fair rival",
            *("its average", "pnc's", "gain"),
            *("its locality", "pnc's", "changed"),
            *("its ECE", "lowest ECE", "pnc's"),
        ),
    ]
    lines: list[Cells] = []
    for key, groups in sorted(found.items()):
        by_name = {g.method: g for g in groups}
        fair, ours = fair_of(groups), by_name.get("pnc")
        if not fair:
            continue
        best = fair[0]
        cells = _compared(best, ours, fair)
        if complete(groups) and ours is not None:
            lines.append(cells)
        rival = best.method if complete(groups) else f"{best.method} (of {len(fair)} rows)"
        text.append(_line(_name(key), rival, *_figures(cells)))
    if lines:
        means = [mean([v for v in column if v is not None]) for column in zip(*lines)]
        text.append(_line(f"**mean of {len(lines)}**", "", *(f"**{f}**" for f in _figures(means))))
    return [*text, ""]


def _compared(best: Group, ours: Group | None, fair: list[Group]) -> Cells:
    """The figures of a line of the first table."""

    def pair(name: str) -> tuple[float | None, float | None]:
        return best.mean(name), ours.mean(name) if ours else None

    (average, our_average), (locality, our_locality) = pair("average_accuracy"), pair("locality")
    ece, our_ece = pair("calibration_error")
    lowest = min(v for g in fair if (v := g.mean("calibration_error")) is not None)
    gain = changed = None
    if None not in (average, our_average, locality, our_locality):
        gain = our_average - average
        changed = (1 - our_locality) / max(1 - locality, 1e-9)
    return [average, our_average, gain, locality, our_locality, changed, ece, lowest, our_ece]


def _figures(cells: Cells) -> list[str]:
    how = [".3f", ".3f", "+.3f", ".3f", ".3f", ".2f", ".3f", ".3f", ".3f"]
    return ["-" if v is None else format(v, h) for v, h in zip(cells, how)]


def fair_of(groups: list[Group]) -> list[Group]:
    """The fair rivals, best first."""
    fair = [g for g in groups if g.method in FAIR and g.mean("average_accuracy") is not None]
    return sorted(fair, key=lambda g: -(g.mean("average_accuracy") or 0.0))


def complete(groups: list[Group]) -> bool:
    return {g.method for g in groups} >= NEEDED


def _against_pair(found: Found) -> list[str]:
    """What each row of pnc keeps of the calibrated pair's average accuracy, and what it costs."""
    found = {k: gs for k, gs in found.items() if any(g.method == PAIR for g in gs)}
    count: dict[str, int] = {}
    for groups in found.values():
        for g in groups:
            if g.kind == "pnc":
                count[g.method] = count.get(g.method, 0) + 1
    one = len(found) == 1
    labels = [label for label, n in count.items() if one or n > 1]  # no single question's
    if not labels:
        return []
    text = [
        f"Average accuracy of each row of pnc in % of that of *{PAIR}*, and in brackets what it adds in "
        "MACs as a multiple of what that adds. Means are over the scenarios of the mean above.",
        "",
        _head("scenario, images a class", "the pair's average", *labels),
    ]
    kept: dict[str, list[tuple[float, float]]] = {label: [] for label in labels}
    for key, groups in sorted(found.items()):
        by_name = {g.method: g for g in groups}
        pair, cells = by_name[PAIR], []
        whole = pair.mean("average_accuracy")
        for label in labels:
            g = by_name.get(label)
            if whole is None or g is None or (average := g.mean("average_accuracy")) is None:
                cells.append("-")
                continue
            share, cost = 100 * average / whole, g.macs / max(pair.macs, 1e-9)
            cells.append(f"{share:.1f} ({cost:.2f})")
            if complete(groups):
                kept[label].append((share, cost))
        if set(cells) != {"-"}:
            text.append(_line(_name(key), _figure(whole), *cells))
    means = [
        f"**{mean(s for s, _ in v):.1f} ({mean(c for _, c in v):.2f})**" if v else "-"
        for v in kept.values()
    ]
    return [*text, _line("**mean**", "", *means), ""]


def _means(found: Found) -> list[str]:
    """Each row's figures in the mean of the scenarios that all of these rows were run in."""
    whole = [{g.method: g for g in gs} for gs in found.values() if complete(gs)]
    names = [PAIR, *FAIR, "pnc", "pnc, half", "pnc, quarter"]
    half = len(whole) / 2  # what few scenarios have (prompts need a transformer) has no mean here
    names = [n for n in names if sum(n in s for s in whole) > half]
    common = [s for s in whole if all(n in s for n in names)]
    if not common:
        return []
    columns = ["average", "original", "clone", "locality", "ECE"]
    fields = [
        "average_accuracy",
        "original_accuracy",
        "clone_accuracy",
        "locality",
        "calibration_error",
    ]
    text = [
        f"Means of each row over the {len(common)} scenarios that have all of these:",
        "",
        _head("row", *columns, "lowest average"),
    ]
    for n in names:
        values = [[s[n].mean(f) or 0.0 for s in common] for f in fields]
        text.append(_line(n, *(f"{mean(v):.3f}" for v in values), f"{min(values[0]):.3f}"))
    return [*text, ""]


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]}, {key[1]}"


def _figure(value: float | None) -> str:
    return "-" if value is None else format(value, ".3f")


def _head(*cells: str) -> str:
    return _line(*cells) + "\n" + "|---" * len(cells) + "|"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
