"""Insert(.): where in the target to attach which part of the source.

Every pair of a tap in the target and a cut in the source is scored from one forward pass of each
network (:mod:`pnc_cli.method.study`); the pairs worth it are scored again with shares of their
channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..data import Progress, no_progress
from ..errors import Incompatible
from ..manifest import PLAN_SCHEMA, Candidate, Plan
from .grid import Grid
from .study import Amounts, Study
from .task import Task

SHARES = (0.7, 0.5, 0.35, 0.25)  # of a module's cost kept, tried beside all of it
LEAST = 1 / 8  # share of a pair that has to fit a budget for the pair to be tried
SHORT_LIST = 6  # pairs that are tried with every share


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
    budget: Budget = UNLIMITED,
    study: Study | None = None,
    progress: Progress = no_progress,
) -> list[Candidate]:
    """The candidates, best first; those over the budget are left out.

    All pairs are scored with all their channels; then a short list, the best and those that
    nothing cheaper beats, with each of ``shares`` (default, where there are images: all, or the
    largest that the budget may leave room for, and ``SHARES`` below) and the adapter's modulation.
    ``study`` is one made of the same task, grid and seed before, which saves its work.
    """
    study = study or Study.of(task, grid, seed, progress)
    dense = study.score_pairs(progress)
    room = budget.room(grid, task)
    found = [c for c in dense if shares is None or 1.0 in shares]
    if task.images is not None or shares is not None:
        hopeful = [c for c in dense if _affordable(c, room, min(shares or [LEAST]))]
        listed = short_list(hopeful)
        for done, candidate in enumerate(listed):
            progress("scoring shares", done, len(listed))
            most = study.largest_shares(candidate, room)
            tried = shares or sorted({*most, *(s for s in SHARES if s < max(most))})
            found = [c for c in found if (c.tap, c.cut) != (candidate.tap, candidate.cut)]
            found += study.score_shares(candidate, tried)
        progress("scoring shares", len(listed), len(listed))
    within = [c for c in found if _affordable(c, room)]
    if not within:
        macs, parameters = sum(grid.target.macs.values()), task.target.parameters
        cheapest = min(found or dense, key=lambda c: c.macs)
        raise Incompatible(
            f"nothing is within the budget; the cheapest, '{cheapest.tap}' -> '{cheapest.cut}' with "
            f"share {cheapest.share:g}, adds {cheapest.macs / macs:.2f} of the target's MACs, "
            f"{cheapest.parameters / parameters:.2f} of its parameters, and {cheapest.bytes} bytes",
            hint="raise --max-macs, --max-params or --max-bytes",
        )
    return sorted(within, key=lambda c: (-c.score, c.macs, c.tap, c.cut))


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
    return all(share * added <= limit for added, limit in zip(Amounts.of(c), room))


def make_plan(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    budget: Budget = UNLIMITED,
    progress: Progress = no_progress,
) -> Plan:
    """A search with what it was made from."""
    candidates = search(task, grid, seed=seed, shares=shares, budget=budget, progress=progress)
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
