"""Insert(.): where in the target to attach which part of the source.

Every pair of a tap in the target and a cut in the source is scored from one forward pass of each
network: a closed-form adapter, the source's part after the cut on what it gives, and a
closed-form join, all fitted on some images and judged on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Images, Progress, batches, no_progress
from ..errors import Incompatible
from ..manifest import PLAN_SCHEMA, Candidate, Plan
from ..network.adapter import Adapter
from ..network.branch import Head, Module, cuts, find_head, module_after
from ..network.build import Network
from ..network.graph import INPUT, Position, Trace, trace
from ..network.join import GaussianGate
from .adapter import exact_input, kernel_for, ridge
from .features import BATCH, block_positions, source_features, target_features
from .join import discriminant, fit_one_sided
from .probe import probe_images
from .score import Scores, score
from .task import Task, subset

PRICE = 0.02  # accuracy that a candidate must gain for each target's worth of added MACs
PER_CLASS = 100  # images of a class looked at: one half to fit, the other to judge
PROBES = 256  # generated images looked at when there are no others
MEMORY = 3 << 30  # bytes of recorded features
ROWS = 40_000  # of a regression


@dataclass(frozen=True)
class Grid:
    """Both networks traced, and the pairs of positions to try."""

    target: Trace
    source: Trace
    head: Head
    pairs: list[tuple[Position, Position]]


def make_grid(
    source: Network, target: Network, taps: Sequence[str] = (), cut_names: Sequence[str] = ()
) -> Grid:
    """All pairs of block positions, or of the positions named.

    A pair whose tap is coarser than its cut is left out: what the tap has averaged away cannot
    be had back.  ``input`` is paired with ``input`` alone: an image is not a feature map.
    """
    tr_t, tr_s = trace(target.model, target.input_size), trace(source.model, source.input_size)
    head = find_head(tr_s, source.classifier)
    possible = cuts(tr_s, head)
    named = {n for p in possible for n in (p.name, *p.aliases)}
    t = [tr_t.position(n) for n in taps] or block_positions(tr_t)
    s = [tr_s.position(n) for n in cut_names] or [c for c in block_positions(tr_s) if c.name in named]
    pairs = [
        (tap, cut)
        for tap in t
        for cut in s
        if (tap.name == INPUT) == (cut.name == INPUT)
        and tap.layout.kind != "NC"
        and (cut.layout.kind != "NC" or tap.layout.grid[0] <= 16)
        and _finer(tap, cut)
    ]
    if taps and cut_names:
        pairs = [(tap, cut) for tap in t for cut in s]
    if not pairs:
        raise Incompatible(
            "no pair of positions to try",
            hint="taps: " + ", ".join(p.name for p in tr_t.positions)
            + "; cuts: " + ", ".join(p.name for p in possible),
        )  # fmt: skip
    return Grid(tr_t, tr_s, head, pairs)


def search(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    max_macs: float | None = None,
    max_params: float | None = None,
    progress: Progress = no_progress,
) -> list[Candidate]:
    """The candidates, best first; those over a budget (shares of the target's) are left out.

    With images the score is the mean accuracy on original and clone classes that the closed form
    predicts (without original images: the branch's), less ``PRICE`` times the added MACs.
    Without images it is the share of the source's pre-logits' variance that survives the way
    through tap and adapter, on generated images.
    """
    task = _with_probes(task, seed) if task.images is None else _within_memory(task, grid)
    taps = list({t.name: t for t, _ in grid.pairs}.values())
    sources = list({c.name: c for _, c in grid.pairs}.values())
    target_pre, z_t, tap_features = target_features(
        task.target, task.images.views[0], [t.name for t in taps], progress=progress
    )
    _, cut_features = source_features(task.source, task.images.views[1], sources, progress=progress)
    modules = {c.name: module_after(grid.source, grid.head, c, task.columns)[0] for c in sources}
    first = modules[sources[0].name]
    reference, _ = run_module(first, cut_features[sources[0].name])

    found, done, total = [], 0, len(grid.pairs)
    for group in _groups(grid.pairs):
        tap = group[0][0]
        features = tap_features[tap.name]
        adapters = fit_adapters(
            task, tap, [c for _, c in group], features, [cut_features[c.name] for _, c in group], ROWS
        )
        for (_, cut), adapter in zip(group, adapters):
            progress("scoring pairs", done, total)
            done += 1
            module = modules[cut.name]
            pre, z_b = run_module(module, features, adapter)
            scores, fit = _judge(task, target_pre, z_t, pre, z_b, reference)
            found.append(_candidate(task, grid, tap, cut, adapter, module, scores, fit))
    progress("scoring pairs", total, total)
    target_macs = sum(grid.target.macs.values())
    within = [
        c
        for c in found
        if (max_macs is None or c.macs <= max_macs * target_macs)
        and (max_params is None or c.parameters <= max_params * task.target.parameters)
    ]
    if not within:
        cheapest = min(found, key=lambda c: c.macs)
        raise Incompatible(
            f"no pair of positions is within the budget; the cheapest, {cheapest.tap} -> "
            f"{cheapest.cut}, adds {cheapest.macs / target_macs:.2f} of the target's MACs and "
            f"{cheapest.parameters / task.target.parameters:.2f} of its parameters",
            hint="raise --max-macs or --max-params",
        )
    return sorted(within, key=lambda c: (-c.score, c.macs, c.tap, c.cut))


def make_plan(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    max_macs: float | None = None,
    max_params: float | None = None,
    progress: Progress = no_progress,
) -> Plan:
    """A search with what it was made from."""
    candidates = search(
        task, grid, seed=seed, max_macs=max_macs, max_params=max_params, progress=progress
    )
    return Plan(
        schema=PLAN_SCHEMA,
        source_sha256=task.source.ref.file_sha256,
        target_sha256=task.target.ref.file_sha256,
        classes=[c.name if c.name == c.source_name else f"{c.source_name}={c.name}" for c in task.classes],
        data="generated" if task.images is None else "images",
        images=int(task.is_new.sum()),
        original_images=int((~task.is_new).sum()),
        target_macs=sum(grid.target.macs.values()),
        target_parameters=task.target.parameters,
        seed=seed,
        chosen=0,
        candidates=candidates,
    )


def fit_adapters(
    task: Task,
    tap: Position,
    cuts: Sequence[Position],
    tap_features: Tensor,
    cut_features: Sequence[Tensor],
    rows: int,
) -> list[Adapter]:
    """Closed-form adapters from one tap to cuts of one grid size, from the images not held out."""
    if tap.name == INPUT and cuts[0].name == INPUT:
        adapter = exact_input(task.target.ref.preprocessing, task.source.ref.preprocessing)
        if adapter is not None:
            return [adapter.to(tap_features.device)]
    kernel = kernel_for(tap.layout, cuts[0].layout)
    adapters = [Adapter(tap.layout, c.layout, kernel).to(tap_features.device) for c in cuts]
    fit = (~task.held_out).to(tap_features.device)
    ridge(adapters, tap_features[fit], [c[fit] for c in cut_features], rows=rows)
    return [a.requires_grad_(False) for a in adapters]


@torch.no_grad()
def run_module(
    module: Module, features: Tensor, adapter: Adapter | None = None
) -> tuple[Tensor, Tensor]:
    """Pre-logits (N, D) and logits (N, K) of features at the cut, or at the tap of ``adapter``."""
    out = []
    for part in batches(len(features), BATCH):
        x = features[part]
        out.append(module(adapter(x) if adapter else x.clone()))
    return torch.cat([p for p, _ in out]), torch.cat([z for _, z in out])


def _judge(task: Task, target_pre, z_t, pre, z_b, reference) -> tuple[Scores | None, float]:
    """Figures on the held-out images, and the share of the pre-logits' variance explained."""
    held, fit = task.judged, ~task.held_out
    rest = (pre[held] - reference[held]).square().sum()
    spread = (reference[held] - reference[held].mean(0)).square().sum()
    explained = 1.0 - (rest / spread.clamp(min=1e-12)).item()
    if not len(task.ids) or not task.new or not bool(task.is_new.any()):
        return None, explained
    if task.old:
        features = torch.cat([target_pre, pre], dim=1).cpu()
        gate = GaussianGate(features.shape[1], task.old, task.new)
        weight, bias = discriminant(features[fit], task.ids[fit], task.old + task.new)
        gate.weight.copy_(weight)
        gate.bias.copy_(bias)
    else:
        gate = fit_one_sided(z_t[fit].cpu(), z_b[fit].cpu())
    z_new = gate(target_pre.cpu(), pre.cpu(), z_t.cpu(), z_b.cpu())
    return score(z_t.cpu()[held], z_new[held], task.label_index[held]), explained


def _candidate(task, grid: Grid, tap, cut, adapter, module, scores, fit) -> Candidate:
    macs = adapter.macs + grid.source.macs_after(cut)
    parameters = sum(p.numel() for m in (adapter, module) for p in m.parameters())
    if scores is None:
        worth = fit
    else:
        worth = scores.branch if scores.average is None else scores.average
    worth -= PRICE * macs / max(sum(grid.target.macs.values()), 1)
    return Candidate(
        tap=tap.name, cut=cut.name, share=1.0, score=round(worth, 6),
        branch_accuracy=scores and rounded(scores.branch),
        joint_accuracy=scores and rounded(scores.joint),
        average_accuracy=scores and rounded(scores.average),
        locality=scores and rounded(scores.locality),
        fit=round(fit, 6), parameters=parameters, macs=macs,
    )  # fmt: skip


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _finer(tap: Position, cut: Position) -> bool:
    """Whether the tap resolves the image at least half as finely as the cut, along each axis."""
    return all(2 * t >= c for t, c in zip(tap.layout.grid, cut.layout.grid))


def _groups(pairs: list[tuple[Position, Position]]) -> list[list[tuple[Position, Position]]]:
    """Pairs with the same tap, grid size and kernel, whose regressions share their left side."""
    groups: dict[tuple, list] = {}
    for tap, cut in pairs:
        key = (tap.name, cut.layout.grid, kernel_for(tap.layout, cut.layout), cut.name == INPUT)
        groups.setdefault(key, []).append((tap, cut))
    return list(groups.values())


def _with_probes(task: Task, seed: int) -> Task:
    """The task on generated images, which belong to no class."""
    views = [probe_images(PROBES, n.input_size, seed) for n in (task.target, task.source)]
    held = torch.arange(PROBES) % 4 == 3
    images = Images(views, [""] * PROBES)
    return Task(task.source, task.target, task.classes, [], images,
                torch.full((PROBES,), -1), held)  # fmt: skip


def _within_memory(task: Task, grid: Grid) -> Task:
    positions = {("t", t.name): t for t, _ in grid.pairs} | {("s", c.name): c for _, c in grid.pairs}
    per_image = 4 * sum(p.layout.elements for p in positions.values())
    classes = task.old + task.new
    return subset(task, max(6, min(PER_CLASS, MEMORY // (per_image * classes))), held_out_every=2)
