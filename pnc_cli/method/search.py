"""Insert(.): where in the target to attach which part of the source.

Every pair of a tap in the target and a cut in the source is scored from one forward pass of each
network (:mod:`pnc_cli.method.study`); the pairs worth it are scored again with shares of their
channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..data import Progress, no_progress
from ..errors import Incompatible
from ..manifest import PLAN_SCHEMA, Candidate, Plan
from .grid import Grid
from .study import Study
from .task import Task

SHARES = (0.7, 0.5, 0.35, 0.25)  # of a module's cost kept, tried beside all of it
SHORT_LIST = 6  # pairs that are tried with every share


def search(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    study: Study | None = None,
    progress: Progress = no_progress,
) -> list[Candidate]:
    """The candidates, best first; those over a budget (shares of the target's) are left out.

    All pairs are scored with all their channels; then a short list, the best and those that
    nothing cheaper beats, with each of ``shares`` (default, where there are images: all, the
    largest share within the budget, and ``SHARES`` below it) and the adapter's modulation.
    ``study`` is one made of the same task, grid and seed before, which saves its work.
    """
    study = study or Study.of(task, grid, seed, progress)
    dense = study.score_pairs(progress)
    found = [c for c in dense if shares is None or 1.0 in shares]
    if task.images is not None or shares is not None:
        least = min(shares or SHARES)
        hopeful = [c for c in dense if _affordable(c, task, grid, max_macs, max_params, least)]
        listed = short_list(hopeful)
        for done, candidate in enumerate(listed):
            progress("scoring shares", done, len(listed))
            most = study.largest_share(candidate, max_macs, max_params)
            tried = shares or sorted({most, *(s for s in SHARES if s < most)})
            found = [c for c in found if (c.tap, c.cut) != (candidate.tap, candidate.cut)]
            found += study.score_shares(candidate, tried)
        progress("scoring shares", len(listed), len(listed))
    within = [c for c in found if _affordable(c, task, grid, max_macs, max_params)]
    if not within:
        macs, parameters = sum(grid.target.macs.values()), task.target.parameters
        cheapest = min(found or dense, key=lambda c: c.macs)
        raise Incompatible(
            f"nothing is within the budget; the cheapest, '{cheapest.tap}' -> '{cheapest.cut}' with "
            f"share {cheapest.share:g}, adds {cheapest.macs / macs:.2f} of the target's MACs and "
            f"{cheapest.parameters / parameters:.2f} of its parameters",
            hint="raise --max-macs or --max-params",
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


def _affordable(
    c: Candidate,
    task: Task,
    grid: Grid,
    max_macs: float | None,
    max_params: float | None,
    share: float = 1.0,
) -> bool:
    """Whether ``share`` of what ``c`` adds is within the budget."""
    macs, parameters = sum(grid.target.macs.values()), task.target.parameters
    return (max_macs is None or share * c.macs <= max_macs * macs) and (
        max_params is None or share * c.parameters <= max_params * parameters
    )


def make_plan(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    progress: Progress = no_progress,
) -> Plan:
    """A search with what it was made from."""
    candidates = search(
        task, grid, seed=seed, shares=shares, max_macs=max_macs, max_params=max_params,
        progress=progress,
    )  # fmt: skip
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
