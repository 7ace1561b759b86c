"""``pnc clone``: makes a clone file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..remarks import unsure
from ..report import Report, amount, figure, table
from . import options as o

if TYPE_CHECKING:
    from ..data import Reconciled
    from ..manifest import Manifest
    from ..plan import Side


def clone(
    source: o.Source,
    target: o.Target,
    data: Annotated[
        str,
        o.data(
            "Folder or .tar with one sub-folder a class, or hfds/NAME: clone classes teach, original classes (a few images each) keep the clone in its place."
        ),
    ],
    output: Annotated[Path, o.output("The clone file to write (.safetensors).")],
    classes: o.Classes = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", help="Take the position from this plan of pnc search; - is stdin."),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(
            "--row",
            min=1,
            help="Take this row of the plan, as pnc search numbers them. With --tap, --share, "
            "--max-macs and the like: the best row that is so.",
        ),
    ] = None,
    tap: o.Taps = None,
    cut: o.Cuts = None,
    share: o.Shares = None,
    resolution: o.Resolutions = None,
    max_macs: o.MaxMacs = None,
    max_params: o.MaxParams = None,
    max_bytes: o.MaxBytes = None,
    whole: o.Whole = False,
    head_only: Annotated[
        bool,
        typer.Option(
            "--head-only",
            help="Copy nothing: tell the clone classes from TGT's own pre-logits. "
            "Needs images of original classes.",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="The clone's name. Default: from its classes.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            help="Passes over the images to refine the adapter (0: closed form only). "
            "Default: 15, fewer where the module is large.",
            min=0,
        ),
    ] = None,
    split: o.Split = None,
    limit_per_class: o.Limit = None,
    no_originals: o.NoOriginals = False,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            "--unlabelled",
            help="Folder or .tar of images of whatever TGT is used on, without labels: they take "
            "the place of images of original classes where --data has none.",
        ),
    ] = None,
    skip_bad: o.SkipBad = False,
    memory: o.Memory = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    source_arch: o.SourceArch = None,
    target_arch: o.TargetArch = None,
    source_args: o.SourceArgs = None,
    target_args: o.TargetArgs = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Clone classes of SRC into a patch for TGT.

    Runs the search itself unless --plan is given, and takes the cheapest part that is as good as
    the best by one standard error, or the best within the limits given. Writes the clone and,
    beside it, its patch manifest (.json). Neither SRC nor TGT is changed.

    Next: pnc inject TGT clone.safetensors -o patched.safetensors
    """
    from .. import api
    from ..allocator import keep_freed_memory
    from ..manifest import to_plain

    report = Report("clone", as_json=as_json, quiet=quiet)
    source, target = o.checkpoint(source, "SRC"), o.checkpoint(target, "TGT")
    keep_freed_memory()
    matched: list[Reconciled] = []
    with report.progress() as progress:
        manifest = api.clone(
            source,
            target,
            data=data,
            output=output,
            classes=classes,
            plan=plan,
            row=row,
            tap=tap,
            cut=cut,
            share=share,
            resolution=resolution,
            max_macs=max_macs,
            max_params=max_params,
            max_bytes=max_bytes,
            whole=whole,
            head_only=head_only,
            name=name,
            epochs=epochs,
            split=split,
            limit_per_class=limit_per_class,
            no_originals=no_originals,
            unlabelled=unlabelled,
            skip_bad=skip_bad,
            memory=memory,
            seed=seed,
            device=device,
            source_arch=source_arch,
            target_arch=target_arch,
            source_args=o.model_args(source_args, "--source-args"),
            target_args=o.model_args(target_args, "--target-args"),
            force=force,
            progress=progress,
            note=report.note,
            matched=matched.append,
        )
    document = {"output": str(output), "manifest": to_plain(manifest), "unsure": unsure(manifest)}
    document |= o.data_of(matched)
    report.result(document, summary(manifest, output))
    report.note(f"next: pnc inject {target} {output} -o patched.safetensors")


def summary(m: Manifest, path: Path) -> str:
    """What was made, and how well it did, on held-out images where there are enough."""
    d, c, doubts = m.measured, m.cost, unsure(m)
    none = d.without_originals is not None
    sides: tuple[Side, ...] = ("clone",) if none else ("clone", "original")
    some = [s for s in sides if s in d.fitted]
    shown = FITTED if len(some) == len(sides) else "on held-out images"

    def row(name: str, value: float | None, *of: Side) -> list[str]:
        told = "not measured" if none and "original" in of else figure(value)
        apart = shown != FITTED and any(s in some for s in of)
        return [f"{name} ({FITTED})" if apart else name, told]

    measured = table(
        [shown, ""],
        [
            row("branch alone, clone classes", d.branch_accuracy, "clone"),
            row("whole source, clone classes", d.source_accuracy, "clone"),
            row("patched, clone classes", d.clone_accuracy, "clone"),
            row("patched, original classes", d.original_accuracy, "original"),
            row("patched, all", d.joint_accuracy, "clone", "original"),
            row("locality", d.locality, "original"),
        ],
    )
    return (
        f"{path}: clone '{m.name}' of {', '.join(m.labels)}\n"
        f"  {_parts(m)}\n"
        f"  adds {amount(c.parameters)} parameters ({c.parameters / c.target_parameters:.2f} of the target's), "
        f"{amount(c.macs)} MACs ({c.macs / c.target_macs:.2f}), {amount(c.bytes)} bytes\n"
        f"{measured}" + "".join(f"\nunsure: {doubt}" for doubt in doubts)
    )


FITTED = "on the images it was made from"


def _parts(m: Manifest) -> str:
    if m.tap is None or m.cut is None:
        return f"{m.target.architecture} pre-logits -> join: no copied part"
    cut = f"{m.source.architecture} after '{m.cut.position}'"
    return f"{m.target.architecture} '{m.tap.position}' -> adapter -> {cut}"
