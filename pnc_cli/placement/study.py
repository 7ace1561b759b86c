"""Scoring candidates in closed form, from one pass of each network.

For each pair of positions: a closed-form adapter, the source's part after the cut on what it
gives, and a closed-form join, all fitted on some images and judged on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import torch

from ..branch.adapter import Adapter, resampled
from ..branch.cost import Amounts
from ..branch.material import Material
from ..branch.recipe import Branch, Ranking, localised, make_branch, run_module
from ..branch.task import Task, subset
from ..data import Images, Progress, no_progress
from ..limits import LIMITS, Limits
from ..manifest import Candidate, Place
from ..network.position import INPUT
from .grid import Grid
from .judge import Judge, price
from .probe import probe_images

RECOVERED = 0.5  # of what a module loses with its channels, once the clone is refined


class Study:
    """What is known of the candidates of one task and grid; each thing is found out once."""

    def __init__(
        self, task: Task, grid: Grid, material: Material, seed: int, limits: Limits = LIMITS
    ) -> None:
        """``task`` is the whole one; ``material`` is of the images that are looked at."""
        self.task, self.grid, self.material = task, grid, material
        self.seed, self.limits = seed, limits
        self.ranking = Ranking(material, seed)
        self.judge = Judge(task, material)
        self.pairs: dict[Place, Candidate] = {}  # all of each module, as it is
        self.shares: dict[Place, Candidate] = {}  # put right in closed form
        self.trials: dict[tuple[Place, int], Candidate] = {}  # refined, with most_parameters
        self._adapters: dict[Place, Adapter | None] = {}  # None: the module cannot read that map

    @classmethod
    def of(
        cls,
        task: Task,
        grid: Grid,
        seed: int,
        progress: Progress = no_progress,
        limits: Limits = LIMITS,
    ) -> Study:
        """Runs both networks on the task's images; on generated ones if it has none."""
        if task.images is None:
            looked_at = _with_probes(task, seed, limits)
        else:
            looked_at = _within_means(task, grid, limits)
        taps, cuts = [p.tap for p in grid.places], [p.cut for p in grid.places]
        material = Material.of(looked_at, grid, taps, cuts, progress=progress)
        return cls(task, grid, material, seed, limits)

    def score_pairs(self, progress: Progress = no_progress) -> list[Candidate]:
        """Every pair with all its channels, without modulation; asked again, what was found before."""
        if not self.pairs:
            for places in _alike(self.grid):
                adapters = self.material.adapters(places, self.limits.pair_rows)
                for place, adapter in zip(places, adapters):
                    progress("scoring pairs", len(self.pairs), len(self.grid.places))
                    self._adapters[place] = adapter
                    module, _ = self.grid.part(place.cut, self.task.columns)
                    self.pairs[place] = self.judge(place, adapter, module)
            progress("scoring pairs", len(self.pairs), len(self.pairs))
        return list(self.pairs.values())

    def reads(self, place: Place) -> bool:
        """Whether the place's module can read its cut's map at the place's resolution."""
        return self._adapter(place) is not None

    def score_shares(self, dense: Place, shares: Sequence[float]) -> list[Candidate]:
        """Each share of a place's module, which must be readable, put right in closed form."""
        for place in map(dense.with_share, shares):
            if place not in self.shares:
                branch = self._branch(place, passes=0, adapter=self._known(place))
                found = self.judge(place, branch.adapter, branch.module)
                self.shares[place] = self.recovered(found)
        return [self.shares[dense.with_share(share)] for share in shares]

    def try_out(self, c: Candidate) -> Candidate:
        """``c`` with the figures it has after a few passes of refinement, of which a clone of it will
        have more; as it is, where even one would take too long."""
        key = (c.place, c.most_parameters)
        if key not in self.trials:
            images = int(self.material.fit.sum())
            affordable = int(self.limits.trial / max(3 * c.macs * images, 1))
            passes = min(self.limits.trial_passes, affordable)
            self.trials[key] = self._refined(c, passes) if passes else c
        return self.trials[key]

    def _refined(self, c: Candidate, passes: int) -> Candidate:
        branch = self._branch(c.place, passes=passes, most_parameters=c.most_parameters)
        found = self.recovered(self.judge(c.place, branch.adapter, branch.module))
        return msgspec.structs.replace(found, most_parameters=c.most_parameters)

    def recovered(self, found: Candidate) -> Candidate:
        """``found`` with the score that it will have once refined: refining wins back some of what
        it lost against the same pair with all its channels and cells."""
        dense = self.pairs[found.place.pair]
        lost = dense.score - found.score
        lost += price(self.grid, dense.macs) - price(self.grid, found.macs)
        score = round(found.score + RECOVERED * max(lost, 0.0), 6)
        return msgspec.structs.replace(found, score=score)

    def largest_share(self, dense: Place, room: Amounts) -> float:
        """The largest share of the place's module, about, that ``room`` leaves."""
        beside, whole = self.beside(dense), self._adds(dense)
        limits = [
            (limit - fixed) / max(all_of_it - fixed, 1)
            for limit, fixed, all_of_it in zip(room, beside, whole)
            if limit < math.inf
        ]
        least = self.limits.smallest_share
        shares = [min(max(round(s - 0.005, 2), least), 1.0) for s in limits] or [1.0]
        low, high = min(shares), max(shares)
        # What is pruned for its MACs loses parameters too, so more than ``low`` may do for both.
        share = high
        while high - low > 0.03:
            if self._adds(dense.with_share(share)).within(room):
                low = share
            else:
                high = share
            share = round((low + high) / 2, 2)
        return low

    def beside(self, place: Place) -> Amounts:
        """What a clone of ``place`` costs beside its module."""
        return self.judge.beside(place, self._known(place))

    def _adds(self, place: Place) -> Amounts:
        module, _ = localised(self.material, place, self.ranking, limits=self.limits)
        return self.judge.adds(place, self._known(place), module)

    def _branch(
        self, place: Place, *, passes: int, adapter: Adapter | None = None, most_parameters: int = 0
    ) -> Branch:
        return make_branch(
            self.material,
            place,
            passes=passes,
            seed=self.seed,
            adapter=adapter,
            ranking=self.ranking,
            most_parameters=most_parameters,
            limits=self.limits,
        )

    def _known(self, place: Place) -> Adapter:
        adapter = self._adapter(place)
        if adapter is None:
            raise ValueError(f"the module after '{place.cut}' cannot read that: {place}")
        return adapter

    def _adapter(self, place: Place) -> Adapter | None:
        """The closed-form adapter of ``place``, whatever its share."""
        key = place.dense
        if key not in self._adapters:
            found = None
            if self._is_other_map(key):
                [found] = self.material.adapters([key], self.limits.pair_rows)
            self._adapters[key] = found
        return self._adapters[key]

    def _is_other_map(self, place: Place) -> bool:
        """Whether the place's cut has another map at its resolution, and the module reads it."""
        full = self.grid.source.position(place.cut).layout
        layout = full.at(place.resolution)
        if layout is None or layout == full:
            return False
        module, _ = self.grid.part(place.cut, self.task.columns)
        example = self.material.cut(place)[:2]
        try:
            found = run_module(module, resampled(example, full, layout))
        except (RuntimeError, ValueError, IndexError):  # a size stands in its graph
            return False
        return [t.shape for t in found] == [t.shape for t in run_module(module, example)]


def _alike(grid: Grid) -> list[list[Place]]:
    """Places by tap, grid size and kernel, which they have in common: their regressions share
    their left side."""
    groups: dict[tuple, list[Place]] = {}
    for place in grid.places:
        cells = grid.cut(place).layout.grid
        key = (place.tap, cells, grid.kernel(place), place.cut == INPUT)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _with_probes(task: Task, seed: int, limits: Limits) -> Task:
    """The task on generated images, which belong to no class."""
    count = limits.probes
    views = [probe_images(count, n.input_size, seed) for n in (task.target, task.source)]
    return replace(
        task,
        originals=[],
        images=Images(views, [""] * count),
        ids=torch.full((count,), -1),
        held_out=torch.arange(count) % 4 == 3,
    )


def _within_means(task: Task, grid: Grid, limits: Limits) -> Task:
    """The task on as many images as memory and patience allow."""
    taps = {p.tap: grid.tap(p) for p in grid.places}
    cuts = {p.cut: grid.cut(p) for p in grid.places}
    memory = 4 * sum(p.layout.elements for p in (*taps.values(), *cuts.values()))
    work = sum(grid.source.macs_after(grid.cut(p)) for p in grid.places)
    images = min(limits.search_features / memory, limits.pairs / max(work, 1))
    old = min(task.old, max(limits.originals, int(images / limits.fewest) - task.new))
    per_class = int(images / (old + task.new))
    per_class = max(limits.fewest, min(limits.per_class, per_class))
    return subset(task, per_class, held_out_every=2, originals=old)
