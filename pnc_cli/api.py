"""What the commands do, as functions: typed arguments, typed results, nothing printed.

A command's positionals are a function's first arguments, its options keyword arguments of the
same names.  A file is a ``str`` or a ``Path``; where several may be given, one alone will do.
``progress`` is called with (what, how many are done, of how many), ``note`` with each sentence that
is worth knowing beside the result.  What is refused raises an error of :mod:`pnc_cli.errors`, and
nothing has been written then; what it says to try is said as for the command line.

``inject`` (without ``data``), ``eject`` and ``info`` are file work and import no torch (but ``info``
of a checkpoint whose ``model_args`` make another architecture of it than timm's own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chosen import check_alone, check_row, find_place, find_plan, read_plan
from .errors import UsageError
from .files.atomic import Outputs
from .files.clone_file import check_finite, write_clone
from .files.describe import Description, describe
from .files.forms import checkpoint_file
from .files.inputs import one_reading, remember
from .files.patch import eject as eject_clones
from .files.patch import inject as inject_clones
from .files.renames import Renames
from .given import (
    File,
    Matched,
    check_clone_output,
    check_data,
    check_name,
    check_outputs,
    load_task,
    looked_into,
    names,
    note_clone,
    paths,
    say_how_long,
    say_matched,
    wanted_of,
)
from .limits import limits_for
from .manifest import Manifest, Patched, canonical_json
from .plan import Plan
from .progress import Note, Progress, no_note, no_progress

if TYPE_CHECKING:
    from .branch.patched import PatchedModel
    from .branch.recalibrate import Recalibrated
    from .evaluation import Evaluation


@one_reading
def search(
    source: File,
    target: File,
    *,
    classes: str | Iterable[str] | None = None,
    data: File | None = None,
    output: File | None = None,
    plot: File | None = None,
    tap: str | Iterable[str] | None = None,
    cut: str | Iterable[str] | None = None,
    share: float | Iterable[float] | None = None,
    resolution: float | Iterable[float] | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    max_bytes: int | None = None,
    whole: bool = False,
    split: str | None = None,
    limit_per_class: int | None = None,
    no_originals: bool = False,
    skip_bad: bool = False,
    memory: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    source_arch: str | None = None,
    target_arch: str | None = None,
    source_args: dict[str, Any] | None = None,
    target_args: dict[str, Any] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    note: Note = no_note,
    matched: Matched | None = None,
) -> Plan:
    """Ranks where in ``target`` to attach which part of ``source``, best first.

    ``candidates[chosen]`` of the plan is what :func:`clone` takes: the cheapest that is as good as
    the best by one standard error; with ``whole``, a share or limits given, the best.

    ``classes`` are the source's to clone, ``"deer=roe deer"`` for one under another label; without
    them those that the target does not know.  ``data`` is a folder or .tar with one sub-folder a
    class (or "hfds/...", what Hugging Face's datasets read); without it the source is judged on generated
    images.  ``split`` is the one to read where ``data`` ("hfds/...") has several.  ``max_macs`` and ``max_params`` are shares of the target's, ``max_bytes`` a number.
    ``memory`` is the most to use beside networks and images, in bytes.
    ``matched`` is called with what becomes of labels and folders.
    The plan is written to ``output`` and drawn in ``plot`` where they are given.

    >>> import pnc_cli
    >>> plan = pnc_cli.search("source.safetensors", "target.safetensors", data="train", max_macs=0.5)
    >>> best = plan.candidates[plan.chosen]
    >>> best.macs <= 0.5 * plan.target_macs
    True
    """
    from .plot import check_plot, draw_plan

    check_alone("whole", whole, share=share, resolution=resolution)
    reading = {"split": split, "limit_per_class": limit_per_class, "skip_bad": skip_bad}
    check_data(data, **reading, no_originals=no_originals)
    source, target = checkpoint_file(Path(source)), checkpoint_file(Path(target))
    remember(data)
    outputs = [Path(p) for p in (output, plot) if p is not None]
    if plot is not None:
        check_plot(Path(plot))
    check_outputs(*outputs, force=force)

    task = load_task(
        source,
        target,
        classes=names(classes),
        data=data,
        split=split,
        limit_per_class=limit_per_class,
        no_originals=no_originals,
        skip_bad=skip_bad,
        seed=seed,
        device=device,
        source_arch=source_arch,
        target_arch=target_arch,
        source_args=source_args,
        target_args=target_args,
        progress=progress,
        note=note,
        matched=matched,
    )
    check_outputs(*outputs, force=force)  # now that it is known what was read
    limits = limits_for(memory)
    say_how_long(task, limits, note, prunes=not whole, clones=False)
    wanted = wanted_of(tap, cut, share, resolution, max_macs, max_params, max_bytes)
    _, plan = find_plan(task, wanted, seed=seed, whole=whole, limits=limits, progress=progress)
    with Outputs(force=force) as files:
        if output is not None:
            files.open(Path(output)).write(canonical_json(plan))
        if plot is not None:
            draw_plan(plan, files.open(Path(plot)), Path(plot).suffix)
    return plan


@one_reading
def clone(
    source: File,
    target: File,
    *,
    data: File,
    output: File | None = None,
    classes: str | Iterable[str] | None = None,
    plan: Plan | File | None = None,
    row: int | None = None,
    tap: str | Iterable[str] | None = None,
    cut: str | Iterable[str] | None = None,
    share: float | Iterable[float] | None = None,
    resolution: float | Iterable[float] | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    max_bytes: int | None = None,
    whole: bool = False,
    head_only: bool = False,
    name: str | None = None,
    epochs: int | None = None,
    split: str | None = None,
    limit_per_class: int | None = None,
    no_originals: bool = False,
    unlabelled: File | None = None,
    skip_bad: bool = False,
    memory: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    source_arch: str | None = None,
    target_arch: str | None = None,
    source_args: dict[str, Any] | None = None,
    target_args: dict[str, Any] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    note: Note = no_note,
    matched: Matched | None = None,
) -> Manifest:
    """Clones classes of ``source`` for ``target``, writes that to ``output``, returns its manifest.

    ``plan`` is what :func:`search` found, or the file that it is in (``"-"``: standard input);
    ``row`` is the candidate to take from it, counted from 1; with ``tap``, ``share``, ``max_macs`` and
    the like it is the best that is so.  Without a plan the search is made here, as these
    arguments say.  Folders of ``data`` that are clone
    classes teach the clone, those that are original classes keep it in its place; where there are
    none of those, ``unlabelled`` images of whatever the target is used on do so.  ``epochs`` are
    the passes that refine the adapter; ``memory`` the most to use beside networks and images.
    With ``head_only`` nothing is copied: the clone classes are told from the target's own
    pre-logits.  The manifest is written beside the clone too; neither is where ``output`` is not
    given.

    >>> import pnc_cli
    >>> manifest = pnc_cli.clone(
    ...     "source.safetensors", "target.safetensors", data="train", output="clone.safetensors"
    ... )
    >>> manifest.cost.macs <= manifest.cost.target_macs
    True
    """
    asked: dict[str, Any] = {"share": share, "resolution": resolution}
    check_alone("whole", whole, **asked, plan=plan)
    asked |= {"max-macs": max_macs, "max-params": max_params, "max-bytes": max_bytes}
    asked |= {"tap": tap, "cut": cut}
    check_alone("head-only", head_only, **asked, plan=plan, epochs=epochs, whole=whole or None)
    given = None if plan is None else read_plan(plan)
    check_row(row, given, **asked)
    source, target = checkpoint_file(Path(source)), checkpoint_file(Path(target))
    remember(data, unlabelled)
    check_name(name)
    check_clone_output(output, force=force)
    limits, wanted = limits_for(memory), names(classes)

    from .branch.classes import default_name
    from .branch.make import Recipe, make_clone

    task = load_task(
        source,
        target,
        classes=given.classes if given is not None and not wanted else wanted,
        data=data,
        split=split,
        limit_per_class=limit_per_class,
        no_originals=no_originals,
        skip_bad=skip_bad,
        seed=seed,
        device=device,
        source_arch=source_arch,
        target_arch=target_arch,
        source_args=source_args,
        target_args=target_args,
        unlabelled=unlabelled,
        progress=progress,
        note=note,
        matched=matched,
    )
    check_clone_output(output, force=force)  # now that it is known what was read
    say_how_long(task, limits, note, prunes=not (whole or head_only), clones=True)
    grid, chosen = find_place(
        task,
        wanted_of(tap, cut, share, resolution, max_macs, max_params, max_bytes),
        plan=given,
        called="the plan" if isinstance(plan, Plan) else str(plan),
        row=row,
        head_only=head_only,
        whole=whole,
        seed=seed,
        limits=limits,
        progress=progress,
        note=note,
    )
    note(f"position: {chosen.place_in_words}")
    recipe = Recipe(name or default_name(task.classes), epochs, seed)
    manifest, tensors = make_clone(task, grid, chosen, recipe, limits=limits, progress=progress)
    check_finite(manifest.name, tensors)
    note_clone(manifest, note)
    if output is not None:
        write_clone(Path(output), manifest, tensors, force=force)
    return manifest


@one_reading
def inject(
    target: File,
    clones: File | Iterable[File],
    *,
    output: File,
    rename: Renames | None = None,
    data: File | None = None,
    split: str | None = None,
    limit_per_class: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: Progress = no_progress,
    note: Note = no_note,
    matched: Matched | None = None,
    recalibrated: Callable[[Recalibrated], object] | None = None,
) -> Patched:
    """Writes ``target``, plain or patched, with ``clones`` applied to ``output``.

    The target's tensors stay as they are, byte for byte.  ``rename`` maps labels of the clones to
    others: ``{"old": "new"}`` or ``["old=new"]``, where ``clone:old`` is that of one clone.  With ``data``, images of every class, all clones are recalibrated together: joins
    change, modules do not; ``recalibrated`` is called with what that gave.

    >>> import pnc_cli
    >>> patched = pnc_cli.inject(
    ...     "target.safetensors", "clone.safetensors", output="patched.safetensors"
    ... )
    >>> labels = [label for clone in patched.clones for label in clone.labels]
    """
    target, files, output = checkpoint_file(Path(target)), paths(clones), Path(output)
    reading = {"split": split, "limit_per_class": limit_per_class, "skip_bad": skip_bad}
    check_data(data, **reading, seed=seed)
    if data is None:
        return inject_clones(target, files, output, rename=rename, force=force)

    remember(data, *files, *(p.with_suffix(".json") for p in files))

    from .branch.recalibrate import inject_together
    from .data import open_images

    patched, gain = inject_together(
        target,
        files,
        output,
        open_images(str(data), split=split),
        limit=limit_per_class,
        seed=seed,
        rename=rename,
        skip_bad=skip_bad,
        force=force,
        progress=progress,
        matched=lambda found: say_matched(found, note, matched),
    )
    note(
        f"recalibrated together: mean negative log-likelihood {gain.before:.3f} -> {gain.after:.3f}"
    )
    if recalibrated is not None:
        recalibrated(gain)
    return patched


def eject(
    patched: File,
    *,
    output: File,
    name: str | Iterable[str] | None = None,
    force: bool = False,
    note: Note = no_note,
) -> Patched | None:
    """Writes ``patched`` without the clones called ``name`` (all if None) to ``output``.

    With none left the output is the target file as it was, sha256 for sha256, and None is returned;
    where nothing beside the output says what that is, ``<stem>.json`` does.

    >>> import pnc_cli
    >>> pnc_cli.eject("patched.safetensors", output="restored.safetensors")
    >>> open("restored.safetensors", "rb").read() == open("target.safetensors", "rb").read()
    True
    """
    wanted = None if name is None else names(name)
    return eject_clones(Path(patched), Path(output), names=wanted, force=force, note=note)


def evaluate(
    checkpoint: File | PatchedModel,
    *,
    data: File,
    clone: File | Iterable[File] = (),
    tta: str | None = None,
    latency: bool = False,
    split: str | None = None,
    limit_per_class: int = 0,
    skip_bad: bool = False,
    seed: int = 0,
    device: str | None = None,
    arch: str | None = None,
    args: dict[str, Any] | None = None,
    progress: Progress = no_progress,
    note: Note = no_note,
    matched: Matched | None = None,
) -> Evaluation:
    """Measures a checkpoint, patched or plain, on labelled images.

    ``clone`` is put on top, unwritten.  A module that :func:`load` gave is taken as it is, where it
    is: ``clone``, ``tta``, ``device``, ``arch`` and ``args`` say how a file is loaded, as for
    :func:`load`.  ``limit_per_class`` images of each class are read (0: all); ``latency`` times the
    forward pass too.

    >>> import pnc_cli
    >>> result = pnc_cli.evaluate("patched.safetensors", data="test")
    >>> result.below({"locality": 0.5, "joint_accuracy": 0.5})
    []
    """
    from . import evaluation
    from .data import open_images

    on_top = paths(clone)
    if isinstance(checkpoint, str | Path):
        how: dict[str, Any] = {"arch": arch, "args": args, "device": device or "cpu", "tta": tta}
        model = load(checkpoint, on_top, **how, note=note)
    elif on_top or (tta, device, arch, args) != (None, None, None, None):
        raise UsageError(
            "clone, tta, device, arch and args say how a file is loaded, but a loaded network was given",
            hint="give them to pnc_cli.load",
        )
    else:
        model = checkpoint
    source = open_images(str(data), split=split)
    say_matched(evaluation.matched_labels(model, source), note, matched)
    how = {"seed": seed, "skip_bad": skip_bad, "limit": limit_per_class or None}
    result = evaluation.measure(model, source, **how, timed=latency, progress=progress)
    for remark in result.remarks():
        note(remark)
    return result


def load(
    target: File,
    clones: File | Iterable[File] = (),
    *,
    arch: str | None = None,
    args: dict[str, Any] | None = None,
    device: str = "cpu",
    tta: str | None = None,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    note: Note = no_note,
) -> PatchedModel:
    """A patched checkpoint, or a target with ``clones`` on top, as an ordinary ``nn.Module``.

    It is in eval mode, has ``label_names``, ``num_classes`` and ``pretrained_cfg``, and puts out
    the target's logits first, bit for bit, then the clones'.  ``arch`` and ``args`` say what the
    target is where its file does not (``architecture`` and ``model_args``, the words of its
    documents, are the same).  With ``tta="mirror"`` the clones' logits are of each image
    and its mirror image, for a second pass of target and clones; the target's stay those of the
    image as it is.  ``note`` is called with what was assumed of the target's file or passed over in
    it.  Nothing is written.

    >>> import pnc_cli, timm
    >>> model = pnc_cli.load("target.safetensors", clones="clone.safetensors")
    >>> transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    >>> len(model.label_names) == model.num_classes
    True
    """
    from .branch import patched

    return patched.load(
        Path(target),
        paths(clones),
        architecture=arch or architecture,
        model_args=args or model_args,
        device=device,
        tta=tta,
        note=note,
    )


def info(file: File, *, source: File | None = None) -> Description:
    """Says what ``file`` is (checkpoint, clone, patched checkpoint, plan or manifest), and checks it.

    ``problems`` of the result are what is wrong with it; ``sound`` is whether it was checked and
    nothing is.  A checkpoint is held against the tensors of its architecture: by an index, or by
    loading it where that does not know the architecture as it is (its ``model_args``), with torch.
    With its ``source`` each copied tensor of a clone is compared with it.

    >>> import pnc_cli
    >>> pnc_cli.info("clone.safetensors").document["kind"]
    'clone'
    """
    return looked_into(Path(file), describe(Path(file)), source)
