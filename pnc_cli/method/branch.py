"""Making a branch: the module localised, the adapter fitted to it and refined."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor

from ..data import Progress, no_progress
from ..manifest import Candidate, ModuleTensor
from ..network.adapter import Adapter
from ..network.branch import Module, module_after
from ..network.channels import weight_cells
from ..network.graph import INPUT, Position
from ..network.modulation import fold
from .features import localised_features
from .grid import Grid
from .localize import prune, rank_channels, select
from .modulation import fit_modulation
from .refine import affordable_epochs, lessons_of, refine
from .study import fit_adapters, module_macs
from .task import Task

ROWS = 400_000  # of the adapter's regression


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
    progress: Progress = no_progress,
) -> Branch:
    """The branch of ``candidate`` from the images that are not held out.

    ``taps`` and ``cuts`` (N, ...) are all images' features; ``epochs`` None leaves their number
    to the work that they take.
    """
    tap, cut = grid.target.position(candidate.tap), grid.source.position(candidate.cut)
    dense, slices = module_after(grid.source, grid.head, cut, task.columns)
    module, kept = localize(task, dense, slices, cut, candidate.share, seed)
    [adapter] = fit_adapters(task, tap, [cut], taps, [cuts], grid.kernel(tap, cut), ROWS)
    macs = adapter.macs + module_macs(grid, cut, dense, module, cuts[:1])
    parameters = sum(p.numel() for m in (adapter, module) for p in m.parameters())

    exact = tap.name == INPUT  # nothing is lost between an image and itself
    modulation: dict[str, Tensor] = {}
    if exact and candidate.share >= 1.0:
        epochs = 0
    else:
        fit = ~task.held_out
        modulation = fit_modulation(dense, module, kept, cuts[fit], adapter(taps[fit]))
        if epochs is None:
            epochs = affordable_epochs(macs, int(fit.sum()))
        if epochs:
            views = tuple(v[fit] for v in task.images.views)
            lessons = lessons_of(dense, task.target, task.source, views, tap.name, cut.name,
                                 seed=seed, progress=progress)  # fmt: skip
            refine(adapter, modulation, module, lessons, exact=exact, epochs=epochs, seed=seed,
                   progress=progress)  # fmt: skip
    module = copy.deepcopy(module)
    fold(module.part, modulation)
    parameters += sum(t.numel() for t in modulation.values())
    return Branch(adapter, modulation, module, kept, macs, parameters, epochs)


def localize(
    task: Task,
    dense: Module,
    slices: dict[str, ModuleTensor],
    cut: Position,
    share: float,
    seed: int,
) -> tuple[Module, dict[str, ModuleTensor]]:
    """Local(.): the part of ``dense`` that the clone classes need, and how it was sliced."""
    if share >= 1.0:
        return dense, slices
    fit = task.is_new & ~task.held_out
    features = localised_features(task.source, task.images.views[1][fit], cut, seed)
    example = features[:2]
    chosen = select(dense, rank_channels(dense, features), share, weight_cells(dense.part, example))
    return prune(dense, slices, chosen, example)
