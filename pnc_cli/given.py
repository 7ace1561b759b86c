"""What a search and a clone are given: two checkpoints, classes, and images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PncError, UsageError
from .files.against_source import held_against_source
from .files.atomic import check_output
from .files.clone_file import sidecar_of
from .files.describe import Description
from .files.forms import checkpoint_file
from .files.opened import open_checkpoint
from .limits import Limits
from .manifest import CLONE_NAME, Manifest
from .plan import Wanted
from .progress import Note, Progress, duration
from .remarks import known_as

if TYPE_CHECKING:
    from .branch.classes import CloneTarget
    from .branch.task import Task
    from .data import ImageSource, Reconciled
    from .network.load import Network

File = str | Path
Matched = Callable[["Reconciled"], object]  # is told what becomes of labels and folders
NOT_ASKED = "not asked for"
WORTH_SAYING = 10.0  # seconds
MOSTLY_NEW = 0.6  # share of unlabelled images


def load_task(
    source_file: Path,
    target_file: Path,
    *,
    classes: list[str],
    data: File | None,
    split: str | None,
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
    matched: Matched | None,
) -> Task:
    """Loads both networks and the images, and notes what will be used.

    ``classes`` empty: all that the target does not know, of which ``data`` has images; ``data``
    None: no images.  ``matched`` is told what becomes of labels and folders.
    """
    from .branch.task import gather
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
    images = open_images(str(data), split=split) if data else None
    wanted, found = _matched(classes, source, target, images, originals=not no_originals)
    for what, network in (("source", source), ("target", target)):
        known = f"{network.ref.architecture}, {len(network.labels)} classes"
        note(f"{what}: {known} ({network.path.name})")
        for remark in network.remarks:
            note(remark)
    note("clone classes: " + ", ".join(c.name for c in wanted))
    say_matched(found, note, matched)
    task = gather(
        source,
        target,
        wanted,
        images,
        limit=limit_per_class,
        originals=not no_originals,
        seed=seed,
        skip_bad=skip_bad,
        unlabelled=pool,
        progress=progress,
    )
    _say_images(task, found, pool, note)
    return task


def _matched(
    asked: list[str],
    source: Network,
    target: Network,
    images: ImageSource | None,
    *,
    originals: bool,
) -> tuple[list[CloneTarget], Reconciled | None]:
    """The classes to clone, and what becomes of labels and folders."""
    from .branch.classes import (
        check_named,
        default_classes,
        folders_of,
        parse_classes,
        with_folders,
    )
    from .data import reconcile

    clones = open_checkpoint(target.path).clones
    taken = [label for clone in clones for label in clone.manifest.labels]
    names = asked or default_classes(source, target, taken)
    without: list[str] = []
    if images is not None and not asked:
        every, names = names, with_folders(names, images, source)
        without = [n for n in every if n not in names]
    wanted = parse_classes(names, source, target, taken)
    if images is None:
        return wanted, None
    not_used = {"clones in the target's file have them": taken}
    if asked:
        known = {*target.labels, *taken}
        not_used[NOT_ASKED] = [n for n in source.labels if n not in known]
    if not originals:
        not_used["--no-originals"] = target.labels
    found = reconcile(
        images,
        folders_of(wanted, images, source, target),
        target.labels if originals else [],
        clone_without=without,
        not_used=not_used,
    )
    if originals:
        spare = sorted({*found.unknown, *found.not_used.get(NOT_ASKED, ())})
        check_named(target, list(found.original), spare)
    return wanted, found


def say_matched(found: Reconciled | None, note: Note, matched: Matched | None) -> None:
    """Notes what becomes of labels and folders, and tells ``matched``."""
    if found is None:
        return
    for line in found.lines:
        note(line)
    if matched is not None:
        matched(found)


def _say_images(task: Task, found: Reconciled | None, pool: ImageSource | None, note: Note) -> None:
    """Notes how many images were read, and what became of the rest."""
    if found is None:
        note(
            "no --data: judged on generated images; with images of the classes the ranking is better"
        )
        return
    new = int(task.is_new.sum())
    old = len(task.ids) - new
    note(f"images: {new} of clone classes, {old} of {task.old} original classes")
    if skipped := task.pixels.skipped:
        note(f"skipped {skipped} images that do not decode")
    if lost := [n for n in found.original if n not in task.originals]:
        note(f"original classes of which no image decodes, left out: {', '.join(lost)}")
    if pool is not None:
        note(_of_pool(task, pool))
    elif not task.old:
        note(
            "no images of original classes: the clone is told from them by the networks' "
            "evidence alone, which is weaker; a few images of each would help"
        )


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


def check_data(data: File | None, **others: object) -> None:
    """Options that say how images are read say nothing without any.  Raises ``UsageError``."""
    for name, value in others.items():
        if data is None and value:
            raise UsageError(
                f"--{name.replace('_', '-')} says how --data is read, and there is no --data",
                hint="give --data DIR too, or leave it out",
            )


def names(given: str | Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def numbers(given: float | Iterable[float] | None) -> list[float] | None:
    if given is None:
        return None
    return [float(given)] if isinstance(given, int | float) else list(given)


def wanted_of(
    tap: str | Iterable[str] | None,
    cut: str | Iterable[str] | None,
    share: float | Iterable[float] | None,
    resolution: float | Iterable[float] | None,
    max_macs: float | None,
    max_params: float | None,
    max_bytes: float | None,
) -> Wanted:
    """What the options say a candidate is to be like."""
    ends = tuple(names(tap)), tuple(names(cut))
    numbered = tuple(numbers(share) or ()), tuple(numbers(resolution) or ())
    return Wanted(*ends, *numbered, max_macs, max_params, max_bytes)


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


def check_outputs(*outputs: Path, force: bool) -> None:
    """Whether these can be written, before the work; raises ``UsageError``."""
    for path in outputs:
        check_output(path, force=force)


def check_clone_output(output: File | None, *, force: bool) -> None:
    """The same of a clone and its manifest."""
    if output is not None:
        path = Path(output)
        check_output(path, force=force)
        check_output(sidecar_of(path), force=force, beside=path)


def looked_into(path: Path, found: Description, source: File | None) -> Description:
    """``found``, held against the architecture that it is said to be of, and against a ``source``."""
    found = held_against_its_architecture(path, found)
    return found if source is None else held_against_source(found, path, Path(source))


def held_against_its_architecture(path: Path, found: Description) -> Description:
    """``found``, and whether a checkpoint that the index of architectures could not tell loads."""
    if found.problems or found.checked or found.document.get("architecture") is None:
        return found
    try:
        from .network.load import load_network
    except ImportError:  # file work is all that this pnc is used for
        return found
    try:
        load_network(checkpoint_file(path))
    except PncError as e:
        return replace(found, problems=(e.message,))
    return replace(found, checked=True)
