"""The recipe of a branch: adapter, Local(.), modulation, refining.

One recipe makes every branch there is.  A search makes it without any pass over the images, in
closed form; its trials with a few; a clone with all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..channels.groups import Group, prunable_groups
from ..channels.localised import localised_features
from ..channels.prune import Ranked, prune, rank_groups, select
from ..data import Progress, batches, no_progress
from ..limits import LIMITS, Limits
from ..manifest import Place
from ..network.features import BATCH
from ..network.part import Module
from ..network.position import INPUT
from .adapter import Adapter
from .cost import of_module
from .material import Material
from .modulation import fit_modulation, fold
from .pair import Slices
from .refine import NEIGHBOURS, Lessons, affordable_epochs, lessons_of, refine

STEP = 0.01  # of a share, by which it shrinks until a budget is met


@dataclass(frozen=True)
class Branch:
    """The side branch of a clone without its join."""

    adapter: Adapter
    modulation: dict[str, Tensor]
    module: Module  # with the modulation folded in
    kept: Slices
    macs: int  # per image, adapter and module
    parameters: int
    passes: int  # over the images, that it was refined for


def make_branch(
    material: Material,
    place: Place,
    *,
    passes: int | None,
    seed: int,
    adapter: Adapter | None = None,
    ranking: Ranking | None = None,
    most_parameters: int = 0,
    limits: Limits = LIMITS,
    progress: Progress = no_progress,
) -> Branch:
    """The branch of ``place`` from the images of ``material`` that are not held out.

    ``passes`` over the images refine it: none (0) leaves the closed form, None leaves their number
    to the work that they take.  ``adapter`` and ``ranking`` are what is known already; the module
    keeps at most ``most_parameters`` (0: as many as its share has).
    """
    task, pair = material.task, material.pair
    dense, slices = pair.part(place.cut, task.columns)
    if adapter is None:
        [adapter] = material.adapters([place], limits.clone_rows)
    ranking = ranking or Ranking(material, seed)
    module, kept = localised(material, place, ranking, most_parameters, limits)
    macs = adapter.macs + int(of_module(pair, place, task.columns, module).macs)

    exact = place.tap == INPUT  # nothing is to be learned between an image and itself
    if exact and place.is_whole:
        passes = 0
    if passes is None:
        passes = affordable_epochs(macs, int(material.fit.sum()))
    modulation: dict[str, Tensor] = {}
    if not is_the_source_itself(material, place):
        modulation = fit_modulation(
            dense,
            module,
            kept,
            pair.resampled(place, material.cut(place)[material.fit]),
            adapter(material.tap(place)[material.fit]),
        )
        if passes:
            taught = _teach(material, place, dense, passes, seed, progress)
            refine(
                adapter,
                modulation,
                module,
                taught,
                exact=exact,
                epochs=passes,
                seed=seed,
                progress=progress,
            )
    module = copy.deepcopy(module)
    fold(module.part, modulation)
    parameters = sum(p.numel() for m in (adapter, module) for p in m.parameters())
    parameters += sum(t.numel() for t in modulation.values())
    return Branch(adapter, modulation, module, kept, macs, parameters, passes)


def is_the_source_itself(material: Material, place: Place) -> bool:
    """Whether the branch of ``place`` is the whole source, on the image as the source sees it."""
    same = material.pair.tap(place).layout.grid == material.pair.cut(place).layout.grid
    return place.tap == INPUT and place.is_whole and same


def _teach(
    material: Material, place: Place, dense: Module, passes: int, seed: int, progress: Progress
) -> Lessons:
    task = material.task
    for_target, for_source = (v[material.fit] for v in task.pixels.views)
    copies = min(NEIGHBOURS, (passes + 1) // 2)
    return lessons_of(
        dense,
        task.target,
        task.source,
        (for_target, for_source),
        place.tap,
        place.cut,
        copies=copies,
        seed=seed,
        progress=progress,
    )


class Ranking:
    """The order in which channels go, of every cut that has been asked for.

    A group of channels is the same group in every module that has all of it, so it is ranked once:
    ask for what is cut earlier first.
    """

    def __init__(self, material: Material, seed: int) -> None:
        self.material, self.seed = material, seed
        self._ranked: dict[str, list[Ranked]] = {}

    def of(self, cut: str) -> list[Ranked]:
        """The groups of the part after ``cut``, ranked on localised samples of the clone classes."""
        if cut not in self._ranked:
            material, task = self.material, self.material.task
            module, _ = material.pair.part(cut, task.columns)
            groups = prunable_groups(module.part, material.cuts[cut][:2])
            known = {_stands(r.group): r for ranked in self._ranked.values() for r in ranked}
            left = [g for g in groups if _stands(g) not in known]
            if left:
                position = material.pair.source.position(cut)
                taught = material.fit & (task.is_new | (task.ids < 0))  # probes are of no class
                images = task.pixels.views[1][taught]
                features = localised_features(task.source, images, position, self.seed)
                known |= {_stands(r.group): r for r in rank_groups(module, features, left)}
            self._ranked[cut] = [replace(known[_stands(g)], group=g) for g in groups]
        return self._ranked[cut]

    def all_of(self, cuts: Iterable[str]) -> None:
        """Ranks the channels after each of ``cuts``, what is cut earlier first."""
        position = self.material.pair.source.position
        for cut in sorted(dict.fromkeys(cuts), key=lambda c: position(c).spent):
            self.of(cut)


def _stands(group: Group) -> tuple:
    """Where a group's channels stand: the same in every module that has all of it."""
    return tuple((*site, indices.tobytes()) for site, indices in group.sites.items())


def localised(
    material: Material,
    place: Place,
    ranking: Ranking,
    most_parameters: int = 0,
    limits: Limits = LIMITS,
) -> tuple[Module, Slices]:
    """Local(.): the share of the part after the place's cut that the clone classes need, and how it
    is sliced out of the source's.

    A share is of parameters and MACs alike, and what is pruned for its MACs often has fewer
    parameters left; how many depends on the images that channels are ranked on.  Where the search
    had a budget, no more than ``most_parameters`` are kept.
    """
    columns = material.task.columns
    dense, slices = material.pair.part(place.cut, columns)
    share = place.share
    if share >= 1.0:
        return dense, slices
    ranked, cells = ranking.of(place.cut), material.pair.cells(place, columns)
    while True:
        chosen = select(dense, ranked, share, cells)
        module, kept = prune(dense, slices, chosen, material.cut(place)[:2])
        parameters = sum(p.numel() for p in module.parameters())
        if not most_parameters or parameters <= most_parameters or share <= limits.smallest_share:
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
