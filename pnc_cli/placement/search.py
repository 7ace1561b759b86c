"""Insert(.): where in the target to attach which part of the source.

Every pair of a tap in the target and a cut in the source is scored from one forward pass of each
network (:mod:`pnc_cli.placement.study`); the pairs worth it are scored again with shares of their
channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from ..branch.cost import Amounts
from ..branch.pair import Grid
from ..branch.recipe import make_branch
from ..branch.task import Task
from ..data import Progress, no_progress
from ..errors import Incompatible
from ..manifest import PLAN_SCHEMA, Candidate, Plan
from .study import Study

RESOLUTIONS = (1.0, 0.67, 0.5)  # of a cut's grid, tried where a budget does not leave room for all
# (share of a module's cost, resolution), tried beside all of a module where there is room for it:
LESS = ((0.5, 1.0), (1.0, 0.67), (0.25, 1.0), (0.7, 1.0), (1.0, 0.5))
LEAST = 1 / 8  # share of a pair that has to fit a budget for the pair to be tried
SHORT_LIST = 6  # pairs that are tried with less than all of their module
TRIES = 2.3e11  # MACs of the short list's modules on all images, for ``LESS``, about
TRIALS = 4  # candidates that are refined, at most, before one is chosen
PASSES = 4  # over the images, for that, and
TRIAL_WORK = 5e10  # MACs of the student, there and back, in all of them


@dataclass(frozen=True)
class Budget:
    """The most that a clone may add: shares of the target's MACs and parameters, and bytes."""

    macs: float | None = None
    parameters: float | None = None
    bytes: float | None = None

    def room(self, grid: Grid, task: Task) -> Amounts:
        """The budget in numbers; infinite where there is no limit."""
        whole = (sum(grid.target.macs.values()), task.target.parameters, 1)
        limits = (self.macs, self.parameters, self.bytes)
        return Amounts(*(math.inf if m is None else m * w for m, w in zip(limits, whole)))


UNLIMITED = Budget()


def search(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    resolutions: Sequence[float] | None = None,
    budget: Budget = UNLIMITED,
    study: Study | None = None,
    progress: Progress = no_progress,
) -> list[Candidate]:
    """The candidates, best first; those over the budget are left out.

    All pairs are scored with all their channels; then a short list, the best and those that
    nothing cheaper beats, with the adapter's modulation and each of ``shares`` at each of
    ``resolutions``.  Where neither is asked for and there are images, that is all of the module and
    some of ``LESS``, or the largest share that the budget leaves room for at each of
    ``RESOLUTIONS``.  ``study`` is one made of the same task, grid and seed before, which saves its
    work.
    """
    study = study or Study.of(task, grid, seed, progress)
    dense = study.score_pairs(progress)
    room = budget.room(grid, task)
    asked = shares is not None or resolutions is not None
    found = [] if asked else dense
    if task.images is not None or asked:
        least = min(shares) * min(resolutions or [1.0]) ** 2 if shares else LEAST
        listed = short_list([c for c in dense if _affordable(c, room, least)])
        if not asked or min(shares or [1.0]) < 1.0:
            study.rank(c.cut for c in listed)
        less = LESS[: int(TRIES / max(len(study.task.ids) * sum(c.macs for c in listed), 1))]
        for done, pair in enumerate(listed):
            progress("scoring shares", done, len(listed))
            found = [c for c in found if (c.tap, c.cut) != (pair.tap, pair.cut)]
            if asked:
                found += _asked(study, pair, shares, resolutions or [1.0])
            else:
                found += _versions(study, pair, room, less)
        progress("scoring shares", len(listed), len(listed))
        if listed and not found:
            asked_for = ", ".join(f"{r:g}" for r in resolutions or [])
            raise Incompatible(
                f"no cut has another map at resolution {asked_for} that its module can read",
                hint="leave --resolution out; maps of few cells may have no other, tokens have none",
            )
    within = [c for c in found if _affordable(c, room)]
    if not within:
        macs, parameters = sum(grid.target.macs.values()), task.target.parameters
        cheapest = min(found or dense, key=lambda c: c.macs)
        raise Incompatible(
            f"nothing is within the budget; the cheapest, '{cheapest.tap}' -> '{cheapest.cut}' with "
            f"share {cheapest.share:g} and resolution {cheapest.resolution:.2g}, adds {cheapest.macs / macs:.2f} of the target's MACs, "
            f"{cheapest.parameters / parameters:.2f} of its parameters, and {cheapest.bytes} bytes",
            hint="raise --max-macs, --max-params or --max-bytes",
        )
    within = [_limited(study, c, room) for c in within]
    return _tried_out(study, within, progress) if task.images is not None else _sorted(within)


def _limited(study: Study, c: Candidate, room: Amounts) -> Candidate:
    """``c`` with the most parameters that ``room`` leaves for its module, by number and by bytes."""
    adds, beside = Amounts.of(c), study.beside(study.place(c, c.resolution))
    spare = [
        (limit - fixed) / max(all_of_it - fixed, 1)
        for limit, fixed, all_of_it in list(zip(room, beside, adds))[1:]
        if limit < math.inf
    ]
    most = int(min(spare) * (adds.parameters - beside.parameters)) if spare else 0
    return msgspec.structs.replace(c, most_parameters=most)


def _tried_out(study: Study, found: list[Candidate], progress: Progress) -> list[Candidate]:
    """Best first.  What a pruned or coarse module regains is a guess until it is refined: the best
    is, for a few passes, until the best is one that was, or needs none.

    A trial speaks for the other shares of the same pair too; what is a guess after the last of
    ``TRIALS`` is put behind what was tried.
    """
    ranked = _sorted(found)
    tried: dict[tuple, Candidate] = {}
    for done in range(TRIALS if len(found) > 1 else 0):
        best = ranked[0]
        progress("refining the best", done, TRIALS)
        if _is_whole(best) or _place(best) in tried:
            break
        now = tried[_place(best)] = _tried(study, best)
        ranked = [
            c
            if _is_whole(c) or _place(c) != _place(best)
            else _with_score(c, c.score + now.score - best.score)
            for c in ranked[1:]
        ]
        ranked = _sorted([now, *ranked])
    else:
        most = max((c.score for c in tried.values()), default=math.inf) - 1e-6
        ranked = _sorted(
            [
                c if _is_whole(c) or _place(c) in tried else _with_score(c, min(c.score, most))
                for c in ranked
            ]
        )
    progress("refining the best", TRIALS, TRIALS)
    return ranked


def _is_whole(c: Candidate) -> bool:
    """Whether nothing is left out, so that there is nothing to regain."""
    return (c.share, c.resolution) == (1.0, 1.0)


def _place(c: Candidate) -> tuple[str, str, float]:
    return c.tap, c.cut, c.resolution


def _with_score(c: Candidate, score: float) -> Candidate:
    return msgspec.structs.replace(c, score=round(score, 6))


def _tried(study: Study, c: Candidate) -> Candidate:
    """``c`` with the figures it has after a few passes of refinement, of which there will be more."""
    key = (c.tap, c.cut, c.resolution, c.share, c.most_parameters)
    if key not in study.tried:
        images = int((~study.task.held_out).sum())
        passes = min(PASSES, int(TRIAL_WORK / max(3 * c.macs * images, 1)))
        study.tried[key] = c
        if passes:
            branch = make_branch(
                study.task,
                study.grid,
                c,
                study.taps[c.tap],
                study.cuts[c.cut],
                epochs=passes,
                seed=study.seed,
                ranked=study.ranked.get(c.cut),
            )
            place = replace(study.place(c, c.resolution), adapter=branch.adapter)
            found = study.refined(study.judged(place, branch.module, c.share))
            study.tried[key] = msgspec.structs.replace(found, most_parameters=c.most_parameters)
    return study.tried[key]


def _sorted(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (-c.score, c.macs, c.tap, c.cut))


def _asked(
    study: Study, pair: Candidate, shares: Sequence[float] | None, resolutions: Sequence[float]
) -> Iterator[Candidate]:
    """A pair with each of ``shares`` at each of ``resolutions`` that its module can read."""
    for resolution in resolutions:
        if place := study.place(pair, resolution):
            yield from study.score_shares(place, shares or [1.0])


def _versions(
    study: Study, pair: Candidate, room: Amounts, less: Sequence[tuple[float, float]]
) -> Iterator[Candidate]:
    """All of a pair and ``less`` of it, where it has room; else the most that there is room for."""
    for resolution in RESOLUTIONS:
        if place := study.place(pair, resolution):
            most = study.largest_share(place, room)
            yield from study.score_shares(place, [most])
            if resolution == most == 1.0:
                break
    else:
        return
    for share, resolution in less:
        if place := study.place(pair, resolution):
            yield from study.score_shares(place, [share])


def short_list(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best by score, and of the rest those that nothing as cheap beats, ``SHORT_LIST`` in all."""
    ranked = sorted(candidates, key=lambda c: (-c.score, c.macs))
    chosen = ranked[: SHORT_LIST // 2]
    for c in ranked[SHORT_LIST // 2 :]:
        if len(chosen) < SHORT_LIST and all(c.macs < other.macs for other in chosen):
            chosen.append(c)
    return chosen


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing as cheap (in MACs) is better than, cheapest first."""
    best: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.macs, -worth(c))):
        if not best or worth(c) > worth(best[-1]):
            best.append(c)
    return best


def worth(c: Candidate) -> float:
    """What a candidate gives, whatever it costs."""
    if c.average_accuracy is not None:
        return c.average_accuracy
    return c.fit if c.branch_accuracy is None else c.branch_accuracy


def _affordable(c: Candidate, room: Amounts, share: float = 1.0) -> bool:
    """Whether ``share`` of what ``c`` adds has ``room``."""
    return Amounts(*(share * added for added in Amounts.of(c))).within(room)


def make_plan(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    resolutions: Sequence[float] | None = None,
    budget: Budget = UNLIMITED,
    progress: Progress = no_progress,
) -> Plan:
    """A search with what it was made from."""
    candidates = search(
        task,
        grid,
        seed=seed,
        shares=shares,
        resolutions=resolutions,
        budget=budget,
        progress=progress,
    )
    return Plan(
        schema=PLAN_SCHEMA,
        source_sha256=task.source.ref.file_sha256,
        target_sha256=task.target.ref.file_sha256,
        classes=[
            c.name if c.name == c.source_name else f"{c.source_name}={c.name}" for c in task.classes
        ],
        data="generated" if task.images is None else "images",
        images=int(task.is_new.sum()),
        original_images=int((~task.is_new).sum()),
        target_macs=sum(grid.target.macs.values()),
        target_parameters=task.target.parameters,
        seed=seed,
        chosen=0,
        candidates=candidates,
    )
