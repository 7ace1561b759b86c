"""The recipe of a branch: adapter, Local(.), modulation, refining.

One recipe makes every branch there is.  A search makes it without any pass over the images, in
closed form; its trials with a few; a clone with all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from ..channels.groups import Group, prunable_groups
from ..channels.localised import localised_features
from ..channels.prune import Ranked, Work, prune, rank_groups, select
from ..data import Progress, no_progress, spread
from ..network.part import Module, sharing
from ..network.position import INPUT
from ..plan import Place
from .adapter import Adapter
from .compensation import Compensation, compensate
from .cost import numbers_of_module, of_module
from .material import Material, Sample
from .pair import Slices
from .refine import NEIGHBOURS, PASSES, learned_from, lessons_of, refine, with_gradients

STEP = 0.01  # of a share, by which it shrinks until a budget is met


@dataclass(frozen=True)
class Branch:
    """The side branch of a clone without its join."""

    adapter: Adapter
    compensation: Compensation
    module: Module  # with the compensation folded in
    kept: Slices
    macs: int  # per image, adapter and module
    parameters: int
    passes: int  # over the images, that it was refined for


def make_branch(
    material: Material,
    place: Place,
    adapter: Adapter,
    sample: Sample,
    *,
    passes: int | None,
    seed: int,
    ranking: Ranking | None = None,
    progress: Progress = no_progress,
) -> Branch:
    """The branch of ``place`` from the images of ``material`` that are not held out.

    ``adapter`` is the closed form; ``sample`` has features at the place's tap and cut.  ``passes``
    over the images refine it: none (0) leaves the closed form, None is as many as are useful.
    ``ranking`` is what is known already.
    """
    task, pair = material.task, material.pair
    dense, slices = pair.part(place.cut, task.columns)
    ranking = ranking or Ranking(material, seed)
    module, kept = localised(material, place, ranking, sample)
    macs = adapter.macs + int(of_module(pair, place, task.columns, module).macs)

    exact = place.tap == INPUT  # nothing is to be learned between an image and itself
    if exact and place.is_whole:
        passes = 0
    if passes is None:
        passes = PASSES
    compensation = Compensation()
    if not is_the_source_itself(material, place):
        features = pair.resampled(place, sample.cuts[place.cut])
        seen = adapter(sample.taps[place.tap])
        compensation = compensate(dense, module, kept, features, seen)
    if passes and compensation.tensors:
        adapter = copy.deepcopy(adapter)
        images = learned_from(material, place, macs, passes)
        copies = min(NEIGHBOURS, (passes + 1) // 2)
        lessons = lessons_of(material, place, images, copies=copies, seed=seed, progress=progress)
        refine(
            adapter,
            compensation,
            module,
            lessons,
            exact=exact,
            epochs=passes,
            seed=seed,
            together=with_gradients(material, place),
            progress=progress,
        )
    module = sharing(module)
    compensation.fold_into(module.part)
    parameters = sum(p.numel() for m in (adapter, module) for p in m.parameters())
    parameters += sum(t.numel() for t in compensation.tensors.values())
    return Branch(adapter, compensation, module, kept, macs, parameters, passes)


def is_the_source_itself(material: Material, place: Place) -> bool:
    """Whether the branch of ``place`` is the whole source, on the image as the source sees it."""
    if place.tap != INPUT or not place.is_whole:
        return False
    return material.pair.tap(place).layout.grid == material.pair.cut(place).layout.grid


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
            material = self.material
            module, _ = material.pair.part(cut, material.task.columns)
            position = material.pair.source.position(cut)
            blank = torch.zeros(2, *position.layout.shape, device=material.device)
            groups = prunable_groups(module.part, blank)
            known = {_stands(r.group): r for ranked in self._ranked.values() for r in ranked}
            left = [g for g in groups if _stands(g) not in known]
            if left:
                known |= {_stands(r.group): r for r in self._rank(module, cut, left)}
            self._ranked[cut] = [replace(known[_stands(g)], group=g) for g in groups]
        return self._ranked[cut]

    def _rank(self, module: Module, cut: str, groups: list[Group]) -> list[Ranked]:
        material, task, limits = self.material, self.material.task, self.material.limits
        position = material.pair.source.position(cut)
        taught = (material.fit & (task.is_new | (task.ids < 0))).nonzero()[:, 0]  # probes: no class
        most = max(8, limits.sample // (8 * position.layout.elements))
        images = task.pixels.at(taught[spread(len(taught), most)], 1)
        together = max(2, min(64, limits.running // (4 * material.pair.widest)))
        features = localised_features(task.source, images, position, self.seed, together)
        each = material.pair.source.macs_after(position)
        work = Work(
            limits.work(limits.ranking, material.plain_macs) / max(each, 1),
            together,
            with_gradients(material, Place(INPUT, cut)),
        )
        return rank_groups(module, features, groups, work)

    def all_of(self, cuts: Iterable[str]) -> None:
        """Ranks the channels after each of ``cuts``, what is cut earlier first."""
        position = self.material.pair.source.position
        for cut in sorted(dict.fromkeys(cuts), key=lambda c: position(c).spent):
            self.of(cut)


def _stands(group: Group) -> tuple:
    """Where a group's channels stand: the same in every module that has all of it."""
    return tuple((*site, indices.tobytes()) for site, indices in group.sites.items())


def localised(
    material: Material, place: Place, ranking: Ranking, sample: Sample
) -> tuple[Module, Slices]:
    """Local(.): the share of the part after the place's cut that the clone classes need, and how it
    is sliced out of the source's.

    A share is of parameters and MACs alike.  Where a budget says how many parameters there may be,
    with those of the mixing, it is of the MACs alone: one of the two is often spare (a coarse map
    saves no parameters), and pruned for nothing.
    """
    columns, most = material.task.columns, place.most_parameters
    dense, slices = material.pair.part(place.cut, columns)
    if place.share >= 1.0 and not most:
        return dense, slices
    ranked, cells = ranking.of(place.cut), material.pair.cells(place, columns)
    of_parameters = place.share
    if most:
        of_parameters = min(most / max(sum(numbers_of_module(dense, dense)), 1), 1.0)
    while True:
        chosen = select(dense, ranked, place.share, cells, of_parameters)
        module, kept = prune(dense, slices, chosen, sample.cuts[place.cut][:2])
        parameters = sum(numbers_of_module(dense, module))
        if not most or parameters <= most or of_parameters <= material.limits.smallest_share:
            return module, kept
        of_parameters -= STEP
