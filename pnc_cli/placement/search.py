"""Insert(.): where in the target to attach which part of the source.

Every pair of a tap in the target and a cut in the source is scored from one forward pass of each
network (:mod:`pnc_cli.placement.study`); a short list is scored again with less than all of its
modules; and the best of those are refined for a few passes before they are believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from ..branch.cost import Amounts
from ..branch.known import known_already
from ..branch.score import rounded
from ..branch.task import Task
from ..data import Progress, no_progress
from ..errors import Incompatible
from ..limits import LIMITS, Limits
from ..plan import Candidate, Place, Plan
from .choice import Found, take_best, take_cheapest_as_good
from .grid import Grid
from .ranking import below, moved, ranked, short_list
from .study import Study

# Resolutions of a cut's grid, tried where a budget leaves no room for all of it:
COARSER = (0.67, 0.5)
# (share of a module's cost, resolution), tried beside all of a module where there is room for it:
LESS = ((0.5, 1.0), (0.7, 1.0), (0.25, 1.0), (1.0, 0.67), (1.0, 0.5))
LEAST = 1 / 8  # share of a pair that has to fit a budget for the pair to be tried
ALL = Amounts(1, 1, 1)


@dataclass(frozen=True)
class Budget:
    """The most that a clone may add: shares of the target's MACs and parameters, and bytes."""

    macs: float | None = None
    parameters: float | None = None
    bytes: float | None = None

    def room(self, grid: Grid, task: Task) -> Amounts:
        """The budget in numbers; infinite where there is no limit."""
        whole = (grid.target_macs, task.target.parameters, 1)
        limits = (self.macs, self.parameters, self.bytes)
        return Amounts(*(math.inf if m is None else m * w for m, w in zip(limits, whole)))


UNLIMITED = Budget()


@dataclass(frozen=True)
class Wish:
    """What the user asked a search to try, instead of what it would try by itself."""

    shares: tuple[float, ...] = ()
    resolutions: tuple[float, ...] = ()

    @property
    def is_any(self) -> bool:
        return bool(self.shares or self.resolutions)

    @property
    def least(self) -> float:
        """The share of a pair's MACs that the least that is asked for has, about."""
        if not self.shares:
            return LEAST
        return min(self.shares) * min(self.resolutions or (1.0,)) ** 2


def search(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    resolutions: Sequence[float] | None = None,
    budget: Budget = UNLIMITED,
    study: Study | None = None,
    limits: Limits = LIMITS,
    progress: Progress = no_progress,
) -> Found:
    """The candidates, best first, and which is taken; those over the budget are left out.

    All pairs are scored with all their channels; then a short list, the best and those that
    nothing cheaper beats, with the adapter's modulation and each of ``shares`` at each of
    ``resolutions``.  Where neither is asked for and there are images, that is all of the module and
    some of ``LESS``, or the largest share that the budget leaves room for, as it is and
    ``COARSER``.  Where nothing at all is asked for and there are images of original classes, the
    cheapest that is as good as the best is taken; else the best.  With such images the clone
    without a copied part stands beside them.

    ``study`` is one made of the same task, grid and seed before, which saves its work.  Raises
    ``Incompatible`` where nothing is within the budget or can be had as asked for.
    """
    wish = Wish(tuple(shares or ()), tuple(resolutions or ()))
    grid = grid.readable_at(wish.resolutions, task.columns)
    if not grid.places:
        raise _no_such_map(wish)
    study = study or Study.of(task, grid, seed, progress, limits)
    room = budget.room(grid, task)
    found = [c for c in study.score_pairs(progress) if c.place in grid.places]
    if task.images is not None or wish.is_any:
        least = Amounts(wish.least, LEAST, LEAST)
        listed = short_list([c for c in found if _affordable(c, room, least)])
        others = [] if wish.is_any else found
        scored = _score_listed(study, listed, wish, room, progress)
        tried = {c.place.pair for c in scored}
        found = [*(c for c in others if c.place not in tried), *scored]
    within = [c for c in found if _affordable(c, room)]
    if not within:
        raise _nothing_fits(found or study.score_pairs(), grid, task)
    if study.compared_on_few:
        within = _behind_what_is_known_better(within, study)
    if task.images is None:
        return take_best(study, ranked(within))
    floor = [study.judge.head_only()] if task.old else []
    floor = [c for c in floor if _affordable(c, room)]
    if task.old and budget == UNLIMITED and not wish.is_any:
        return take_cheapest_as_good(study, [*within, *floor], progress)
    return take_best(study, ranked([*_tried_out(study, within, progress), *floor]))


def _score_listed(
    study: Study, listed: Sequence[Candidate], wish: Wish, room: Amounts, progress: Progress
) -> list[Candidate]:
    """The pairs of a short list as they are wished for, or as there is room for them."""
    if wish.is_any:
        return study.score_places(_asked(study, listed, wish, room), progress)
    work = study.limits.work(study.limits.judging, study.material.plain_macs)
    places: list[Place] = []
    for pair in listed:  # the best first, while there is work left for it
        versions = list(_versions(study, pair.place, room))
        needed = study.work_of([pair.place, *versions])  # all of it is what they are held against
        if needed <= work or not places:
            places += versions
            work -= needed
    places += _less(study, [c.place for c in listed if c.place in places], work)
    return study.score_places(places, progress)


def _asked(study: Study, listed: Sequence[Candidate], wish: Wish, room: Amounts) -> list[Place]:
    """Each share at each resolution that is wished for and the pairs' modules can read."""
    if min(wish.shares or (1.0,)) < 1.0:
        study.ranking.all_of(c.cut for c in listed)
    places = []
    for c in listed:
        for resolution in wish.resolutions or (1.0,):
            dense = Place(c.tap, c.cut, resolution=resolution)
            if study.reads(dense):
                shares = wish.shares or (1.0,)
                most = study.most_parameters(dense, room)
                places += [dense.with_share(s, most if s < 1.0 else 0) for s in shares]
    return places


def _versions(study: Study, pair: Place, room: Amounts) -> Iterator[Place]:
    """All of a pair where there is room for it; else the most that there is room for, as it is and
    on coarser maps."""
    most = study.largest(pair, room)
    yield most
    for resolution in COARSER if most != pair else ():
        place = Place(pair.tap, pair.cut, resolution=resolution)
        if study.reads(place):
            yield study.largest(place, room)


def _less(study: Study, pairs: Sequence[Place], work: float) -> Iterator[Place]:
    """As many of ``LESS`` of all ``pairs``, of which there is room for all, as the work allows."""
    for share, resolution in LESS:
        places = [Place(p.tap, p.cut, share, resolution) for p in pairs]
        work -= study.work_of(places)
        if work < 0:
            return
        if share < 1.0:
            study.ranking.all_of(p.cut for p in pairs)
        yield from (p for p in places if study.reads(p))


def _behind_what_is_known_better(found: list[Candidate], study: Study) -> list[Candidate]:
    """Candidates with scores that are of few images put behind the best of those that are of all:
    of many that were compared on few, the best looks better than it is."""
    known = [c for c in found if c.place in study.shares]
    ceiling = max((c.score for c in known), default=math.inf) - 1e-6
    return [c if c.place in study.shares else below(c, ceiling) for c in found]


def _tried_out(study: Study, found: list[Candidate], progress: Progress) -> list[Candidate]:
    """Best first.  What a pruned or coarse module regains is a guess until it is refined: the best
    is, for a few passes, until the best is one that was, or needs none.

    A trial speaks for the other shares of the same pair too; what is a guess after the last trial
    is put behind what was tried.
    """
    most = study.limits.tried if len(found) > 1 else 0
    in_order = ranked(found)
    tried: list[Candidate] = []
    work = study.limits.work(study.limits.trials, study.material.plain_macs)
    for done in range(most):
        progress("refining the best", done, most)
        best, *others = in_order
        if study.is_settled(best):
            progress("refining the best", most, most)
            return in_order
        work -= study.work_of_trial(best)
        if work < 0 and tried:
            break
        now = study.try_out(best)
        tried.append(now)
        in_order = ranked([now, *(moved(c, best, now.score - best.score) for c in others)])
    progress("refining the best", most, most)
    ceiling = max((c.score for c in tried), default=math.inf) - 1e-6
    return ranked([c if study.is_settled(c) else below(c, ceiling) for c in in_order])


def _affordable(c: Candidate, room: Amounts, shares: Amounts = ALL) -> bool:
    """Whether ``shares`` of what ``c`` adds have ``room``."""
    return Amounts(*(s * added for s, added in zip(shares, Amounts.of(c)))).within(room)


def _no_such_map(wish: Wish) -> Incompatible:
    asked = ", ".join(f"{r:g}" for r in wish.resolutions)
    return Incompatible(
        f"no cut has another map at resolution {asked} that its module can read",
        hint="leave --resolution out; maps of few cells may have no other, tokens have none",
    )


def _nothing_fits(candidates: Sequence[Candidate], grid: Grid, task: Task) -> Incompatible:
    cheapest = min(candidates, key=lambda c: c.macs)
    macs = cheapest.macs / grid.target_macs
    parameters = cheapest.parameters / task.target.parameters
    return Incompatible(
        f"nothing is within the budget; the cheapest, '{cheapest.tap}' -> '{cheapest.cut}' with "
        f"share {cheapest.share:g} and resolution {cheapest.resolution:.2g}, adds {macs:.2f} of "
        f"the target's MACs, {parameters:.2f} of its parameters, and {cheapest.bytes} bytes",
        hint="raise --max-macs, --max-params or --max-bytes",
    )


def make_plan(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    resolutions: Sequence[float] | None = None,
    budget: Budget = UNLIMITED,
    limits: Limits = LIMITS,
    progress: Progress = no_progress,
) -> Plan:
    """A search with what it was made from."""
    study = Study.of(task, grid, seed, progress, limits)
    found = search(
        task,
        grid,
        seed=seed,
        shares=shares,
        resolutions=resolutions,
        budget=budget,
        study=study,
        limits=limits,
        progress=progress,
    )
    looked_at = study.material
    known = [] if task.images is None else known_already(looked_at.task, looked_at.z_t)
    return Plan(
        schema="pnc.plan/1",
        source_sha256=task.source.ref.file_sha256,
        target_sha256=task.target.ref.file_sha256,
        classes=[c.option for c in task.classes],
        data="generated" if task.images is None else "images",
        images=int(task.is_new.sum()),
        original_images=int((~task.is_new).sum()),
        target_macs=grid.target_macs,
        target_parameters=task.target.parameters,
        seed=seed,
        chosen=found.chosen,
        candidates=found.candidates,
        error=rounded(found.error),
        floor_error=rounded(found.floor_error),
        best=found.against,
        fitted=found.fitted,
        known_already=known or UNSET,
    )
