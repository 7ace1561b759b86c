"""What the commands do, as functions: typed arguments, typed results, nothing printed.

A command's positionals are a function's first arguments, its options keyword arguments of the
same names.  A file is a ``str`` or a ``Path``; where several may be given, one alone will do.
``progress`` is called with (what, how many are done, of how many), ``note`` with each sentence that
is worth knowing beside the result.  What is refused raises an error of :mod:`pnc_cli.errors`, and
nothing has been written then; what it says to try is said as for the command line.

``inject`` (without ``data``), ``eject`` and ``info`` are file work and import no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .files.atomic import Outputs, check_output
from .files.clone_file import sidecar_of, write_clone
from .files.describe import Description, describe
from .files.forms import checkpoint_file
from .files.patch import eject as eject_clones
from .files.patch import inject as inject_clones
from .given import (
    File,
    check_alone,
    check_head_only,
    check_name,
    check_plan,
    load_task,
    names,
    note_clone,
    numbers,
    paths,
    read_plan,
    say_how_long,
)
from .limits import limits_for
from .manifest import Manifest, Patched, canonical_json
from .plan import HEAD_ONLY_CANDIDATE, Plan
from .progress import Note, Progress, no_note, no_progress
from .remarks import remarks

if TYPE_CHECKING:
    from .branch.patched import PatchedModel
    from .branch.recalibrate import Recalibrated
    from .branch.task import Task
    from .evaluation import Evaluation
    from .placement.grid import Grid


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
) -> Plan:
    """Ranks where in ``target`` to attach which part of ``source``, best first.

    ``candidates[chosen]`` of the plan is what :func:`clone` takes: the cheapest that is as good as
    the best by one standard error; with ``whole``, a share or limits given, the best.

    ``classes`` are the source's to clone, ``"deer=roe deer"`` for one under another label; without
    them those that the target does not know.  ``data`` is a folder or .tar with one sub-folder a
    class (or what else timm's datasets are called); without it the source is judged on generated
    images.  ``max_macs`` and ``max_params`` are shares of the target's, ``max_bytes`` a number.
    ``memory`` is the most to use beside networks and images, in bytes.
    The plan is written to ``output`` and drawn in ``plot`` where they are given.

    >>> import pnc_cli
    >>> plan = pnc_cli.search("source.safetensors", "target.safetensors", data="train", max_macs=0.5)
    >>> best = plan.candidates[plan.chosen]
    >>> best.macs <= 0.5 * plan.target_macs
    True
    """
    from .plot import check_plot, draw_plan

    check_alone("whole", whole, share=share, resolution=resolution)
    source, target = checkpoint_file(Path(source)), checkpoint_file(Path(target))
    inputs = [source, target]
    if output is not None:
        check_output(output := Path(output), force=force, inputs=inputs)
    if plot is not None:
        check_output(check_plot(plot := Path(plot)), force=force, inputs=inputs)

    from .placement.grid import make_grid

    task = load_task(
        source,
        target,
        classes=names(classes),
        data=data,
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
    )
    limits = limits_for(memory)
    say_how_long(task, limits, note, prunes=not whole, clones=False)
    grid = make_grid(task.source, task.target, names(tap), names(cut))
    less, most = (share, resolution), (max_macs, max_params, max_bytes)
    how = {"seed": seed, "limits": limits, "progress": progress}
    plan = _searched(task, grid, less, most, whole=whole, **how)
    with Outputs(force=force, inputs=inputs) as outputs:
        if output is not None:
            outputs.open(output).write(canonical_json(plan))
        if plot is not None:
            draw_plan(plan, outputs.open(plot), plot.suffix)
    return plan


def clone(
    source: File,
    target: File,
    *,
    data: File,
    output: File | None = None,
    classes: str | Iterable[str] | None = None,
    plan: Plan | File | None = None,
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
) -> Manifest:
    """Clones classes of ``source`` for ``target``, writes that to ``output``, returns its manifest.

    ``plan`` is what :func:`search` found, or the file that it is in (``"-"``: standard input);
    without one the search is made here, as its arguments say.  Folders of ``data`` that are clone
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
    check_alone("whole", whole, **(asked := dict(share=share, resolution=resolution, plan=plan)))
    asked |= {"max-macs": max_macs, "max-params": max_params, "max-bytes": max_bytes}
    check_alone("head-only", head_only, **asked, tap=tap, cut=cut, whole=whole or None)
    source, target = checkpoint_file(Path(source)), checkpoint_file(Path(target))
    inputs = [source, target]
    if output is not None:
        check_output(output := Path(output), force=force, inputs=inputs)
        check_output(sidecar_of(output), force=force)
    check_name(name)
    given, limits = None if plan is None else read_plan(plan), limits_for(memory)
    wanted = names(classes)

    from .branch.make import Recipe, make_clone
    from .branch.task import default_name
    from .placement.grid import make_grid

    task = load_task(
        source,
        target,
        classes=given.classes if given is not None and not wanted else wanted,
        data=data,
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
    )
    say_how_long(task, limits, note, prunes=not (whole or head_only), clones=True)
    if head_only:
        check_head_only(task)
        chosen = HEAD_ONLY_CANDIDATE
    elif given is not None:
        check_plan(given, "the plan" if isinstance(plan, Plan) else str(plan), task)
        chosen = given.candidates[given.chosen]
        tap, cut = chosen.ends
    grid = make_grid(task.source, task.target, names(tap), names(cut))
    if not head_only and given is None:
        less, most = (share, resolution), (max_macs, max_params, max_bytes)
        how = {"seed": seed, "limits": limits, "progress": progress}
        found = _searched(task, grid, less, most, whole=whole, **how)
        chosen = found.candidates[found.chosen]
        for remark in remarks(found):
            note(remark)
    note(f"position: {chosen.place_in_words}")
    recipe = Recipe(name or default_name(task.classes), epochs, seed)
    manifest, tensors = make_clone(task, grid, chosen, recipe, limits=limits, progress=progress)
    note_clone(manifest, note)
    if output is not None:
        write_clone(output, manifest, tensors, force=force, inputs=inputs)
    return manifest


def _searched(
    task: Task, grid: Grid, less: tuple[Any, Any], most: tuple[Any, ...], *, whole: bool, **how: Any
) -> Plan:
    """The search of either command, for the shares and resolutions ``less`` and with the MACs,
    parameters and bytes ``most``."""
    from .placement.search import Budget, make_plan

    shares, resolutions = [[1.0] if whole else numbers(values) for values in less]
    how |= {"shares": shares, "resolutions": resolutions, "budget": Budget(*most)}
    return make_plan(task, grid, **how)


def inject(
    target: File,
    clones: File | Iterable[File],
    *,
    output: File,
    rename: dict[str, str] | None = None,
    data: File | None = None,
    limit_per_class: int | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: Progress = no_progress,
    note: Note = no_note,
    recalibrated: Callable[[Recalibrated], object] | None = None,
) -> Patched:
    """Writes ``target``, plain or patched, with ``clones`` applied to ``output``.

    The target's tensors stay as they are, byte for byte.  ``rename`` maps labels of the clones to
    others.  With ``data``, images of every class, all clones are recalibrated together: joins
    change, modules do not; ``recalibrated`` is called with what that gave.

    >>> import pnc_cli
    >>> patched = pnc_cli.inject(
    ...     "target.safetensors", "clone.safetensors", output="patched.safetensors"
    ... )
    >>> labels = [label for clone in patched.clones for label in clone.labels]
    """
    target, files, output = Path(target), paths(clones), Path(output)
    if data is None:
        return inject_clones(target, files, output, rename=rename, force=force)

    from .branch.recalibrate import inject_together

    patched, gain = inject_together(
        target,
        files,
        output,
        str(data),
        limit=limit_per_class,
        seed=seed,
        rename=rename,
        skip_bad=skip_bad,
        force=force,
        progress=progress,
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
) -> Patched | None:
    """Writes ``patched`` without the clones called ``name`` (all if None) to ``output``.

    With none left the output is the target file as it was, sha256 for sha256, and None is returned.

    >>> import pnc_cli
    >>> pnc_cli.eject("patched.safetensors", output="restored.safetensors")
    >>> open("restored.safetensors", "rb").read() == open("target.safetensors", "rb").read()
    True
    """
    wanted = None if name is None else names(name)
    return eject_clones(Path(patched), Path(output), names=wanted, force=force)


def evaluate(
    checkpoint: File | PatchedModel,
    *,
    data: File,
    clone: File | Iterable[File] = (),
    tta: str | None = None,
    latency: bool = False,
    limit_per_class: int = 0,
    skip_bad: bool = False,
    seed: int = 0,
    device: str | None = None,
    arch: str | None = None,
    args: dict[str, Any] | None = None,
    progress: Progress = no_progress,
    note: Note = no_note,
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
    from .branch.patched import preprocessing_of
    from .data import choose, open_images, read_images

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
    source = open_images(str(data))
    chosen = choose(source, model.label_names, limit_per_class or None, seed)
    images = read_images(
        source,
        chosen,
        [preprocessing_of(model)],
        skip_bad=skip_bad,
        progress=progress,
        what="evaluating",
    )
    result = replace(
        evaluation.evaluate(model, images),
        classes_without_images=[n for n in model.label_names if n not in chosen],
        latency_ms=evaluation.latency(model) if latency else None,
    )
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


def info(file: File) -> Description:
    """Says what ``file`` is (checkpoint, clone, patched checkpoint, plan or manifest), and checks it.

    >>> import pnc_cli
    >>> pnc_cli.info("clone.safetensors").document["kind"]
    'clone'
    """
    return describe(Path(file))
