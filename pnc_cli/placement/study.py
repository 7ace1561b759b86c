"""Scoring candidates in closed form, in rounds: many on few images, few on all.

One pass of both networks over the images gives the closed-form adapter of every pair of positions,
from sums alone, with how much of the cut's features it explains.  For a cut, that orders the taps.
The pairs that are worth it are then run on a few images; the best of those, with less than all of
their modules too, on all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import torch
from torch import Tensor

from ..allocator import give_back_freed_memory
from ..branch.adapter import Adapter
from ..branch.cost import Amounts
from ..branch.material import Fits, Material, Sample
from ..branch.recipe import Branch, Ranking, is_the_source_itself, localised, make_branch
from ..branch.task import Task, subset
from ..data import Progress, no_progress, spread
from ..limits import LIMITS, Limits
from ..plan import Candidate, Place, Side
from .grid import Grid
from .judge import Judge, price
from .scope import PAIR_ROWS, few_of_each, with_probes, worth_fitting

RECOVERED = 0.5  # of what a module loses with its channels, once the clone is refined


class Study:
    """What is known of the candidates of one task and grid; each thing is found out once."""

    def __init__(
        self,
        task: Task,
        grid: Grid,
        material: Material,
        adapters: dict[Place, Adapter],
        explained: dict[Place, float],
        seed: int,
    ) -> None:
        """``task`` is the whole one; ``material`` is of the images that are looked at."""
        self.task, self.grid, self.material = task, grid, material
        self.seed, self.limits = seed, material.limits
        self.explained = explained  # share of the variance at the cut
        self.ranking = Ranking(material, seed)
        self.judge = Judge(task, material)
        self.pairs: dict[Place, Candidate] = {}  # all of each module, as it is
        self.compared_on_few = False  # whether those figures are of a few images
        self.shares: dict[Place, Candidate] = {}  # put right in closed form, on all images
        self.trials: dict[Place, Candidate] = {}  # refined for a few passes
        self._adapters: dict[Place, Adapter | None] = dict(adapters)  # None: cannot be read
        self._samples: dict[Place, Sample] = {}

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
            looked_at = with_probes(task, seed, limits)
        else:
            looked_at = subset(
                task, limits.per_class, held_out_every=2, originals=min(task.old, limits.originals)
            )
        places, rows = worth_fitting(grid, looked_at, limits)
        fits = Fits(grid, looked_at, places, rows)
        taps, cuts = [p.tap for p in places], [p.cut for p in places]
        material = Material.of(looked_at, grid, fits, taps, cuts, limits=limits, progress=progress)
        adapters = fits.solve()
        give_back_freed_memory()
        return cls(task, grid, material, adapters, fits.explained, seed)

    @property
    def fitted(self) -> list[Side]:
        """The sides that have too few images for any to be held out here."""
        return self.material.task.fitted

    # all pairs ------------------------------------------------------------------------------------

    def score_pairs(self, progress: Progress = no_progress) -> list[Candidate]:
        """Pairs with all their channels, without modulation; asked again, what was found before.

        All of them on all images where that is little work, else on as many of each class as the
        work allows; where those are too few, fewer pairs on a few images, of each cut the taps that
        explain it best first.
        """
        if not self.pairs:
            places, index = self._worth_comparing()
            self._adapters = {place: self._known(place) for place in places}  # no other is needed
            branches = []
            for place in places:
                module, _ = self.grid.part(place.cut, self.task.columns)
                branches.append((place, self._known(place), module))
            found = self.judge(branches, index, progress)
            give_back_freed_memory()
            self.pairs = dict(zip(places, found))
            self.compared_on_few = len(index) < len(self.material.task.ids)
        return list(self.pairs.values())

    def _worth_comparing(self) -> tuple[list[Place], Tensor]:
        """The pairs to compare, and the images (n,) to do it on."""
        everything = torch.arange(len(self.material.task.ids))
        work = self.limits.work(self.limits.comparing, self.material.plain_macs)
        ordered = self._by_promise()
        if self.work_of(ordered) <= work:
            return ordered, everything
        classes = self.material.task.old + self.material.task.new
        affordable = int(len(everything) / max(classes, 1) * work / self.work_of(ordered))
        held = self.limits.sample // (len(ordered) * self._answer_bytes * max(classes, 1))
        index = few_of_each(self.material, max(self.limits.few, min(affordable, held)))
        part = len(index) / len(everything)
        chosen: list[Place] = []
        for place in ordered:
            enough = len(chosen) >= self.limits.short_list
            if not enough or self.work_of([*chosen, place]) * part <= work:
                chosen.append(place)
        return chosen, index

    def _by_promise(self) -> list[Place]:
        """All pairs: first the tap that explains each cut best, then the second best of each, …"""
        by_cut: dict[str, list[Place]] = {}
        for place in sorted(self.explained, key=lambda p: (-self.explained[p], p)):
            by_cut.setdefault(place.cut, []).append(place)
        order = {
            place: (rank, self._run_macs(place))
            for places in by_cut.values()
            for rank, place in enumerate(places)
        }
        return sorted(order, key=lambda p: (order[p], p))

    @property
    def _answer_bytes(self) -> int:
        """Bytes of a branch's answers for one image."""
        return 4 * (self.material.source_pre.shape[1] + self.task.new)

    def work_of(self, places: Iterable[Place]) -> float:
        """MACs of judging branches of ``places`` together on all images: their modules, the target up
        to the last tap, and what an adapter to a coarser map takes."""
        distinct = set(places)
        running = [p for p in distinct if not is_the_source_itself(self.material, p)]
        before = max((self.grid.tap(p).spent for p in running), default=0)
        each = before + sum(map(self._run_macs, running))
        coarse = {p.dense for p in running if p.resolution < 1.0 and p.dense not in self._adapters}
        ends = sum(self.grid.tap(p).spent + self.grid.source.position(p.cut).spent for p in coarse)
        return each * len(self.material.task.ids) + ends * self.limits.coarse

    def work_of_trial(self, c: Candidate) -> float:
        """MACs of :meth:`try_out`, about."""
        return self.work_of([c.place]) + self.limits.trial * self.material.plain_macs

    def _run_macs(self, place: Place) -> float:
        """MACs of the place's module for an image, about; none where they were spent already."""
        if is_the_source_itself(self.material, place):
            return 0.0
        dense = self.grid.source.macs_after(self.grid.source.position(place.cut))
        return place.share * place.resolution**2 * dense

    # less than all of a pair ----------------------------------------------------------------------

    def reads(self, place: Place) -> bool:
        """Whether the place's module can read its cut's map at the place's resolution."""
        return self._adapter(place) is not None

    def score_places(
        self, places: Iterable[Place], progress: Progress = no_progress
    ) -> list[Candidate]:
        """Places that can be read, put right in closed form and judged on all images."""
        places = list(dict.fromkeys(places))
        wholes = [p.pair for p in places]  # what each of them is held against
        new = [p for p in dict.fromkeys([*wholes, *places]) if p not in self.shares]
        new.sort(key=lambda p: wholes.index(p.pair))  # those of a pair share a sample
        for group in self._that_fit_together(new):
            branches = [self._branch(p, passes=0) for p in group]
            found = self.judge(
                [(p, b.adapter, b.module) for p, b in zip(group, branches)], progress=progress
            )
            self.shares |= dict(zip(group, found))
            give_back_freed_memory()
        return [self.recovered(self.shares[p]) for p in places]

    def _that_fit_together(self, places: Sequence[Place]) -> list[list[Place]]:
        """Groups whose modules memory holds together."""
        groups: list[list[Place]] = []
        room = 0.0
        for place in places:
            module, _ = self.grid.part(place.cut, self.task.columns)
            needed = 4 * place.share * sum(p.numel() for p in module.parameters())
            needed += self._answer_bytes * len(self.material.task.ids)
            if not groups or needed > room:
                groups.append([])
                room = float(self.limits.sample)
            groups[-1].append(place)
            room -= needed
        return groups

    def try_out(self, c: Candidate, progress: Progress = no_progress) -> Candidate:
        """``c`` with the figures it has after a few passes of refinement, of which a clone of it will
        have more."""
        if c.place not in self.trials:
            branch = self._branch(
                c.place,
                passes=self.limits.trial_passes,
                refining=max(self.limits.trial, self.limits.little / 3 / self.material.plain_macs),
                progress=progress,
            )
            [found] = self.judge([(c.place, branch.adapter, branch.module)])
            self.trials[c.place] = self.recovered(found)
        return self.trials[c.place]

    def is_settled(self, c: Candidate) -> bool:
        """Whether the score of ``c`` is no guess: its place was tried, with whatever share, or it has
        nothing to regain."""
        if c.place.is_whole or c.place.is_head_only:
            return True
        return any(tried.dense == c.place.dense for tried in self.trials)

    def recovered(self, found: Candidate) -> Candidate:
        """``found`` with the score that it will have once refined: refining wins back some of what
        it lost against the same pair with all its channels and cells."""
        whole = self.shares[found.place.pair]
        lost = whole.score - found.score
        lost += price(self.grid, whole.macs) - price(self.grid, found.macs)
        score = round(found.score + RECOVERED * max(lost, 0.0), 6)
        return msgspec.structs.replace(found, score=score)

    def largest(self, dense: Place, room: Amounts) -> Place:
        """The largest share of the place's module, to ``FINELY``, that ``room`` leaves, with the
        parameters that it leaves; where it leaves none, the smallest there is."""
        beside, whole = self.beside(dense), self._adds(dense)
        if whole.within(room):
            return dense
        left, most = _left(room, beside, whole), _most_parameters(room, beside, whole)
        # What is pruned for its MACs may lose more or fewer than its share, so only trying tells.
        low, high = self.limits.smallest_share, 1.0
        share = min(max(round(min(left.macs, high), 2), low), high)
        while True:
            if self._adds(dense.with_share(share, most)).within(room):
                low = share
            else:
                high = share
            if high - low <= FINELY:
                return dense.with_share(low, most)
            share = round((low + high) / 2, 2)

    def most_parameters(self, dense: Place, room: Amounts) -> int:
        """The parameters that ``room`` leaves for the place's module, by number and by bytes; 0 where
        it sets no limit."""
        return _most_parameters(room, self.beside(dense), self._adds(dense))

    def beside(self, place: Place) -> Amounts:
        """What a clone of ``place`` costs beside its module."""
        return self.judge.beside(place, self._known(place))

    def _adds(self, place: Place) -> Amounts:
        module, _ = self.grid.part(place.cut, self.task.columns)
        if place != place.dense:
            module, _ = localised(self.material, place, self.ranking, self._sample(place))
        return self.judge.adds(place, self._known(place), module)

    def _branch(
        self,
        place: Place,
        *,
        passes: int,
        refining: float = 0.0,
        progress: Progress = no_progress,
    ) -> Branch:
        material = replace(self.material, limits=replace(self.limits, refining=refining))
        return make_branch(
            material,
            place,
            self._known(place),
            self._sample(place),
            passes=passes,
            seed=self.seed,
            ranking=self.ranking,
            progress=progress,
        )

    def _sample(self, place: Place) -> Sample:
        """Features at the place's positions; those of the last few pairs are kept."""
        pair = place.pair
        if pair not in self._samples:
            while len(self._samples) >= KEPT:
                del self._samples[next(iter(self._samples))]
                give_back_freed_memory()
            self._samples[pair] = self.material.sample([place.tap], [place.cut])
        return self._samples[pair]

    def _known(self, place: Place) -> Adapter:
        adapter = self._adapter(place)
        if adapter is None:
            raise ValueError(f"the module after '{place.cut}' cannot read that: {place}")
        return adapter

    def _adapter(self, place: Place) -> Adapter | None:
        """The closed-form adapter of ``place``, whatever its share."""
        key = place.dense
        if key not in self._adapters:
            readable = self.grid.reads_coarser(key, self.task.columns)
            self._adapters[key] = self._fitted(key) if readable else None
        return self._adapters[key]

    def _fitted(self, place: Place) -> Adapter:
        """An adapter to a coarser map: fitted to fewer images, of which more cells are looked at."""
        fitted = self.material.fit.nonzero()[:, 0]
        index = fitted[spread(len(fitted), self.limits.coarse)]
        part = replace(self.material.task, held_out=torch.ones_like(self.material.task.held_out))
        part.held_out[index] = False
        fits = Fits(self.grid, part, [place], PAIR_ROWS[0])
        if fits.needs_features:
            for look in self.material.look(index, [place.tap], [place.cut]):
                fits.add(look)
        return fits.solve()[place]


def _left(room: Amounts, beside: Amounts, whole: Amounts) -> Amounts:
    """The part of a module, of each kind of its costs, that ``room`` leaves for it; infinite where it
    sets no limit.  ``whole`` is all of the module with what stands ``beside`` it."""
    return Amounts(*((r - b) / max(w - b, 1) for r, b, w in zip(room, beside, whole)))


def _most_parameters(room: Amounts, beside: Amounts, whole: Amounts) -> int:
    left = _left(room, beside, whole)
    part = min(left.parameters, left.bytes)
    return 0 if part == math.inf else max(int(part * (whole.parameters - beside.parameters)), 1)


FINELY = 0.02  # of a share
KEPT = 1  # pairs whose sample stays: the versions of a pair come one after the other
