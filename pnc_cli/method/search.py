"""Insert(.): where in the target to attach which part of the source.

Every pair of a tap in the target and a cut in the source is scored from one forward pass of each
network (:mod:`pnc_cli.method.study`); the pairs worth it are scored again with shares of their
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data import Progress, no_progress
from ..errors import Incompatible
from ..manifest import PLAN_SCHEMA, Candidate, Plan
from ..network.branch import Head, cuts, find_head
from ..network.build import Network
from ..network.graph import INPUT, Position, Trace, trace
from .features import block_positions
from .task import Task

SHARES = (0.7, 0.5, 0.35, 0.25)  # of a module's cost kept, tried beside all of it
SHORT_LIST = 6  # pairs that are tried with every share


@dataclass(frozen=True)
class Grid:
    """Both networks traced, and the pairs of positions to try."""

    target: Trace
    source: Trace
    head: Head
    pairs: list[tuple[Position, Position]]


def make_grid(
    source: Network, target: Network, taps: Sequence[str] = (), cut_names: Sequence[str] = ()
) -> Grid:
    """All pairs of block positions, or of the positions named.

    A pair whose tap is coarser than its cut is left out: what the tap has averaged away cannot
    be had back.  ``input`` is paired with ``input`` alone: an image is not a feature map.
    """
    tr_t, tr_s = trace(target.model, target.input_size), trace(source.model, source.input_size)
    head = find_head(tr_s, source.classifier)
    possible = cuts(tr_s, head)
    named = {n for p in possible for n in (p.name, *p.aliases)}
    t = [tr_t.position(n) for n in taps] or block_positions(tr_t)
    s = [tr_s.position(n) for n in cut_names] or [
        c for c in block_positions(tr_s) if c.name in named
    ]
    pairs = [
        (tap, cut)
        for tap in t
        for cut in s
        if (tap.name == INPUT) == (cut.name == INPUT)
        and tap.layout.kind != "NC"
        and (cut.layout.kind != "NC" or tap.layout.grid[0] <= 16)
        and _finer(tap, cut)
    ]
    if taps and cut_names:
        pairs = [(tap, cut) for tap in t for cut in s]
    if not pairs:
        raise Incompatible(
            "no pair of positions to try",
            hint="taps: " + ", ".join(p.name for p in tr_t.positions)
            + "; cuts: " + ", ".join(p.name for p in possible),
        )  # fmt: skip
    return Grid(tr_t, tr_s, head, pairs)


def search(
    task: Task,
    grid: Grid,
    *,
    seed: int,
    shares: Sequence[float] | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    progress: Progress = no_progress,
) -> list[Candidate]:
    """The candidates, best first; those over a budget (shares of the target's) are left out.

    All pairs are scored with all their channels; then a short list, the best and those that
    nothing cheaper beats, with each of ``shares`` (default: ``SHARES`` where there are images).
    """
    from .study import Study

    study = Study.of(task, grid, seed, progress)
    if shares is None:
        shares = SHARES if task.images is not None else ()
    dense = [c for c in study.score_pairs(progress)]
    found = dense if 1.0 in shares or not shares or shares is SHARES else []
    listed = short_list(dense) if shares is SHARES else dense
    smaller = [s for s in shares if s < 1.0]
    for done, candidate in enumerate(listed if smaller else []):
        progress("scoring shares", done, len(listed))
        found = [*found, *study.score_shares(candidate, smaller)]
    progress("scoring shares", 1, 1)
    within = [c for c in found if _affordable(c, task, grid, max_macs, max_params)]
    if not within:
        macs, parameters = sum(grid.target.macs.values()), task.target.parameters
        cheapest = min(found, key=lambda c: c.macs)
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


def _affordable(c: Candidate, task: Task, grid: Grid, max_macs, max_params) -> bool:
    macs, parameters = sum(grid.target.macs.values()), task.target.parameters
    return (max_macs is None or c.macs <= max_macs * macs) and (
        max_params is None or c.parameters <= max_params * parameters
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


def _finer(tap: Position, cut: Position) -> bool:
    """Whether the tap resolves the image at least half as finely as the cut, along each axis."""
    return all(2 * t >= c for t, c in zip(tap.layout.grid, cut.layout.grid))
