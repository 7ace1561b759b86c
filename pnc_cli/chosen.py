"""Where a clone is attached: as a plan has it, as a search finds it, or nowhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadInput, Incompatible, UsageError
from .files.bounded import read_bounded
from .files.inputs import remember
from .limits import Limits
from .manifest import MAX_DOCUMENT, parse
from .plan import HEAD_ONLY_CANDIDATE, Candidate, Plan, Wanted
from .progress import Note, Progress
from .remarks import remarks

if TYPE_CHECKING:
    from .branch.task import Task
    from .placement.grid import Grid


def find_plan(
    task: Task,
    wanted: Wanted,
    *,
    seed: int,
    whole: bool,
    limits: Limits,
    progress: Progress,
) -> tuple[Grid, Plan]:
    """Searches as ``wanted``; with ``whole`` nothing of a module is left out."""
    from .placement.grid import make_grid
    from .placement.search import Budget, make_plan

    grid = make_grid(task.source, task.target, list(wanted.taps), list(wanted.cuts))
    plan = make_plan(
        task,
        grid,
        seed=seed,
        shares=[1.0] if whole else wanted.shares,
        resolutions=[1.0] if whole else wanted.resolutions,
        budget=Budget(wanted.max_macs, wanted.max_params, wanted.max_bytes),
        limits=limits,
        progress=progress,
    )
    for candidate in plan.candidates:
        if (figure := candidate.not_finite) is not None:
            raise BadInput(
                f"{candidate.place_in_words}: its {figure} came out as no number",
                hint="look at what source and target say of the images: pnc eval",
            )
    return grid, plan


def find_place(
    task: Task,
    wanted: Wanted,
    *,
    plan: Plan | None,
    called: str,
    row: int | None,
    head_only: bool,
    whole: bool,
    seed: int,
    limits: Limits,
    progress: Progress,
    note: Note,
) -> tuple[Grid, Candidate]:
    """The candidate to make: without a copied part, the one of ``plan``, which is ``called`` so in
    messages, or what a search finds; and a grid that has it."""
    from .placement.grid import make_grid

    if head_only:
        check_head_only(task)
        chosen = HEAD_ONLY_CANDIDATE
    elif plan is not None:
        chosen = candidate_of(plan, called, task, row, wanted, note)
    else:
        grid, found = find_plan(
            task, wanted, seed=seed, whole=whole, limits=limits, progress=progress
        )
        for remark in remarks(found):
            note(remark)
        return grid, found.candidates[found.chosen]
    return make_grid(task.source, task.target, *chosen.ends), chosen


def candidate_of(
    plan: Plan, name: str, task: Task, row: int | None, wanted: Wanted, note: Note
) -> Candidate:
    """The candidate of a plan for this task: in that row, the best that is as wanted, or the one that
    it chose.  ``name`` is the plan's in messages."""
    check_plan(plan, name, task)
    classes = [c.option for c in task.classes]
    if classes != plan.classes:
        note(f"{name}: was made for other classes: {', '.join(plan.classes)}")
    chosen = plan.candidates[plan.chosen]
    if row is not None:
        chosen = plan.row(row)
    elif wanted.is_any:
        chosen = plan.pick(wanted)
    if chosen.place.is_head_only:
        check_head_only(task)
    return chosen


def read_plan(plan: Plan | str | Path) -> Plan:
    """The plan itself, or the one in a file; ``-`` is standard input."""
    if isinstance(plan, Plan):
        return plan
    piped = str(plan) == "-"
    if not piped:
        remember(plan)
    try:
        text = sys.stdin.buffer.read() if piped else _read(Path(plan))
    except OSError as e:
        raise BadInput(f"{plan}: cannot be read: {e.strerror}") from e
    where = "standard input" if piped else str(plan)
    if not text.strip():
        raise BadInput(
            f"{where}: is empty, expected a plan",
            hint="pnc search SRC TGT --data DATA -o -" if piped else "pnc search -o makes one",
        )
    return parse(text, Plan, where)


def _read(path: Path) -> bytes:
    """A plan's bytes; also of a pipe, as shells make them of a command's output."""
    if path.is_fifo():
        return path.read_bytes()
    return read_bounded(path, MAX_DOCUMENT)


def check_plan(plan: Plan, name: str, task: Task) -> None:
    """A plan belongs to one pair of checkpoints.  Raises ``Incompatible`` for another."""
    for what, network, sha256 in (
        ("source", task.source, plan.source_sha256),
        ("target", task.target, plan.target_sha256),
    ):
        if network.ref.file_sha256 != sha256:
            raise Incompatible(
                f"{name}: the plan was made for another {what}: {network.path} has sha256 "
                f"{network.ref.file_sha256[:16]}…, the plan says {sha256[:16]}…",
                hint="run pnc search on these two files",
            )


def check_row(row: int | None, plan: object, **others: object) -> None:
    """A row is one of a plan, and leaves nothing to choose.  Raises ``UsageError``."""
    if row is None:
        return
    if plan is None:
        raise UsageError(
            "--row is one of a plan, and no --plan is given",
            hint="pnc search SRC TGT --data DATA -o plan.json; then --plan plan.json --row 3",
        )
    check_alone("row", True, **others)


def check_alone(flag: str, given: bool, **others: object) -> None:
    """An option that leaves nothing for ``others`` to say.  Raises ``UsageError``."""
    for name, value in others.items():
        if given and value is not None:
            raise UsageError(
                f"--{flag} and --{name} do not go together", hint="leave one of them out"
            )


def check_head_only(task: Task) -> None:
    """Without a copied part the clone classes can only be told from images of the others."""
    if not task.old:
        raise UsageError(
            "--head-only needs images of original classes: without a copied part nothing else "
            "tells the clone classes from them",
            hint="add folders of the target's classes to --data, a few images each",
        )
