"""What a search and a clone are given: two checkpoints, classes, images, and perhaps a plan."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadInput, Incompatible, UsageError
from .limits import Limits
from .manifest import CLONE_NAME, Manifest, parse
from .plan import Plan
from .progress import Note, Progress, duration
from .remarks import known_as

if TYPE_CHECKING:
    from .branch.task import Task
    from .data import ImageSource

File = str | Path
WORTH_SAYING = 10.0  # seconds
MOSTLY_NEW = 0.6  # share of unlabelled images


def load_task(
    source_file: Path,
    target_file: Path,
    *,
    classes: list[str],
    data: File | None,
    limit_per_class: int | None,
    no_originals: bool,
    skip_bad: bool,
    seed: int,
    device: str,
    source_arch: str | None,
    target_arch: str | None,
    source_args: dict[str, Any] | None,
    target_args: dict[str, Any] | None,
    unlabelled: File | None = None,
    progress: Progress,
    note: Note,
) -> Task:
    """Loads both networks and the images, and notes what will be used.

    ``classes`` empty: all that the target does not know; ``data`` None: no images.
    """
    from .branch.task import default_classes, gather, parse_classes
    from .data import open_images
    from .network.features import channels_last
    from .network.load import check_device, load_network

    where = check_device(device)
    source = load_network(
        source_file,
        architecture=source_arch,
        what="--source-arch",
        device=where,
        model_args=source_args,
    )
    target = load_network(
        target_file,
        architecture=target_arch,
        what="--target-arch",
        device=where,
        model_args=target_args,
    )
    for network in (source, target):
        channels_last(network)
    pool = open_images(str(unlabelled), labelled=False) if unlabelled else None
    wanted = parse_classes(classes or default_classes(source, target), source, target)
    task = gather(
        source,
        target,
        wanted,
        open_images(str(data)) if data else None,
        limit=limit_per_class,
        originals=not no_originals,
        seed=seed,
        skip_bad=skip_bad,
        unlabelled=pool,
        progress=progress,
    )
    for what, network in (("source", source), ("target", target)):
        known = f"{network.ref.architecture}, {len(network.labels)} classes"
        note(f"{what}: {known} ({network.path.name})")
        for remark in network.remarks:
            note(remark)
    note("clone classes: " + ", ".join(c.name for c in wanted))
    if task.images is not None:
        new = int(task.is_new.sum())
        old = len(task.ids) - new
        note(f"images: {new} of clone classes, {old} of {task.old} original classes")
        if task.images.skipped:
            note(f"skipped {task.images.skipped} images that do not decode")
        if pool is not None:
            note(_of_pool(task, pool))
        elif not task.old:
            note(
                "no images of original classes: the clone is told from them by the networks' "
                "evidence alone, which is weaker; a few images of each would help"
            )
    if data is None:
        note(
            "no --data: judged on generated images; with images of the classes the ranking is better"
        )
    return task


def _of_pool(task: Task, pool: ImageSource) -> str:
    """What becomes of unlabelled images."""
    if task.pool is None:
        return (
            f"{pool.name}: not used, as there are labelled images of original classes, which tell "
            "more (--no-originals leaves those out)"
        )
    return (
        f"unlabelled images: {len(task.pool)} of {len(pool)} in {pool.name}, in place of images of "
        "original classes; they should show what the target is used on"
    )


def note_clone(manifest: Manifest, note: Note) -> None:
    """Notes it where clone classes may be the target's own, and where unlabelled images are mostly
    of clone classes, which tells little of others."""
    for sentence in known_as(manifest.measured.known_already):
        note(sentence)
    share = manifest.method.unlabelled_new
    if share is not None and share > MOSTLY_NEW:
        note(
            f"of the unlabelled images {share:.0%} look like clone classes: they tell little of "
            "original ones; add images of what the target is used on"
        )


def read_plan(plan: Plan | File) -> Plan:
    """The plan itself, or the one in a file; ``-`` is standard input."""
    if isinstance(plan, Plan):
        return plan
    try:
        text = sys.stdin.buffer.read() if str(plan) == "-" else Path(plan).read_bytes()
    except OSError as e:
        raise BadInput(f"{plan}: cannot be read: {e.strerror}") from e
    return parse(text, Plan, "standard input" if str(plan) == "-" else str(plan))


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


def names(given: str | Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def numbers(given: float | Iterable[float] | None) -> list[float] | None:
    if given is None:
        return None
    return [float(given)] if isinstance(given, int | float) else list(given)


def paths(given: File | Iterable[File]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(p) for p in given]


def say_how_long(task: Task, limits: Limits, note: Note, *, prunes: bool, clones: bool) -> None:
    """Notes how long the work will take, where that is worth knowing."""
    from .branch.estimate import seconds_of_a_pass

    one = seconds_of_a_pass(task, limits)
    most = one * limits.passes(prunes=prunes, clones=clones)
    if most >= WORTH_SAYING:
        note(
            f"a pass of both networks over these images takes about {duration(one)}, all of it "
            f"about {duration(most)} at most"
        )


def check_name(name: str | None) -> None:
    """Whether a clone can be called that; raises ``UsageError``."""
    if name is not None and not re.fullmatch(CLONE_NAME, name):
        raise UsageError(f"--name '{name}'", hint="letters, digits, - and _, at most 64")
