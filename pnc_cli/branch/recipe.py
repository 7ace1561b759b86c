"""The recipe of a branch: the adapter fitted, the module localised, put right and refined."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..channels.groups import weight_cells
from ..channels.localised import localised_features
from ..channels.prune import Ranked, prune, rank_channels, select
from ..data import Progress, batches, no_progress
from ..manifest import Candidate, ModuleTensor
from ..network.features import BATCH
from ..network.part import Module, module_after
from ..network.position import INPUT
from .adapter import Adapter, fit_adapters
from .cost import module_macs
from .modulation import fit_modulation, fold
from .pair import Grid
from .refine import NEIGHBOURS, affordable_epochs, lessons_of, refine
from .task import Task

ROWS = 400_000  # of the adapter's regression
STEP = 0.01  # of a share
SMALLEST = 0.05  # share of a module that is tried


@dataclass(frozen=True)
class Branch:
    """The side branch of a clone without its join."""

    adapter: Adapter
    modulation: dict[str, Tensor]
    module: Module  # with the modulation folded in
    kept: dict[str, ModuleTensor]
    macs: int  # per image, adapter and module
    parameters: int
    epochs: int  # that the adapter was refined for


def make_branch(
    task: Task,
    grid: Grid,
    candidate: Candidate,
    taps: Tensor,
    cuts: Tensor,
    *,
    epochs: int | None,
    seed: int,
    ranked: list[Ranked] | None = None,
    progress: Progress = no_progress,
) -> Branch:
    """The branch of ``candidate`` from the images that are not held out.

    ``taps`` and ``cuts`` (N, ...) are all images' features; ``epochs`` None leaves their number
    to the work that they take; ``ranked`` are the channels of the module, if that is known.
    """
    tap, cut = grid.target.position(candidate.tap), grid.cut(candidate)
    dense, slices = module_after(grid.source, grid.head, cut, task.columns)
    [adapter] = fit_adapters(task, tap, [cut], taps, [cuts], grid.kernel(tap, cut), ROWS)
    module, kept = localize(task, grid, dense, slices, candidate, seed, ranked)
    macs = adapter.macs + module_macs(grid, cut, dense, module, cuts[:1])
    parameters = sum(p.numel() for m in (adapter, module) for p in m.parameters())

    exact = tap.name == INPUT  # nothing is to be learned between an image and itself
    whole = candidate.share >= 1.0 and candidate.resolution == 1.0
    modulation: dict[str, Tensor] = {}
    if exact and whole:
        epochs = 0
    if not (exact and whole and tap.layout.grid == cut.layout.grid):
        fit = ~task.held_out
        features = grid.resampled(cut, cuts[fit])
        modulation = fit_modulation(dense, module, kept, features, adapter(taps[fit]))
        if epochs is None:
            epochs = affordable_epochs(macs, int(fit.sum()))
        if epochs:
            views = tuple(v[fit] for v in task.images.views)
            lessons = lessons_of(
                dense,
                task.target,
                task.source,
                views,
                tap.name,
                cut.name,
                copies=min(NEIGHBOURS, (epochs + 1) // 2),
                seed=seed,
                progress=progress,
            )
            refine(
                adapter,
                modulation,
                module,
                lessons,
                exact=exact,
                epochs=epochs,
                seed=seed,
                progress=progress,
            )
    module = copy.deepcopy(module)
    fold(module.part, modulation)
    parameters += sum(t.numel() for t in modulation.values())
    return Branch(adapter, modulation, module, kept, macs, parameters, epochs)


def localize(
    task: Task,
    grid: Grid,
    dense: Module,
    slices: dict[str, ModuleTensor],
    candidate: Candidate,
    seed: int,
    ranked: list[Ranked] | None = None,
) -> tuple[Module, dict[str, ModuleTensor]]:
    """Local(.): the part of ``dense`` that the clone classes need, and how it was sliced.

    A share is of parameters and MACs alike, and what is pruned for its MACs often has fewer
    parameters left; how many depends on the images that channels are ranked on.  Where the search
    had a budget, no more are kept than that leaves.
    """
    cut, share, most = grid.cut(candidate), candidate.share, candidate.most_parameters
    if share >= 1.0:
        return dense, slices
    fit = task.is_new & ~task.held_out
    images = task.images.views[1][fit]
    features = localised_features(task.source, images[:2] if ranked else images, cut, seed)
    example = features[:2]
    cells = weight_cells(dense.part, grid.resampled(cut, example))
    ranked = ranked or rank_channels(dense, features)
    while True:
        chosen = select(dense, ranked, share, cells)
        module, kept = prune(dense, slices, chosen, example)
        parameters = sum(p.numel() for p in module.parameters())
        if not most or parameters <= most or share <= SMALLEST:
            return module, kept
        share -= STEP


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
