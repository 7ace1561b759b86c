"""``pnc eval``: what a checkpoint is worth on labelled images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import gates
from ..errors import CheckFailed
from ..report import Report, figure, table
from . import options as o

if TYPE_CHECKING:
    from ..data import Reconciled
    from ..evaluation import Evaluation


def evaluate(
    checkpoint: Annotated[Path, o.positional("CKPT", "Checkpoint, patched or plain.")],
    data: Annotated[str, o.data("Folder or .tar with one sub-folder a class, or hfds/NAME.")],
    clone: Annotated[
        list[Path] | None,
        typer.Option(
            "--clone", help="Evaluate CKPT with this clone on top, unwritten (repeatable)."
        ),
    ] = None,
    tta: Annotated[
        str | None,
        typer.Option(
            "--tta",
            metavar="mirror",
            help="mirror: clones answer for each image and its mirror image, for a second pass of "
            "target and clones. The target's own answers stay.",
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under", help="Exit 1 if a figure is lower: joint_accuracy=0.7 (repeatable)."
        ),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-over",
            help="Exit 1 if a figure is higher (repeatable): calibration_error=0.1, "
            "right_to_wrong=0.05; of what the clones add: macs=0.5 and parameters=0.5 of the "
            "target's, bytes=3MB; latency=1.5 times the target's, or latency=5ms an image.",
        ),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time the forward pass too.")] = False,
    split: o.Split = None,
    limit_per_class: o.EvalLimit = 0,
    skip_bad: o.SkipBad = False,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    arch: Annotated[
        str | None, typer.Option("--arch", help="timm architecture, if nothing says it.")
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", help="model_args as JSON: '{\"depths\": [2, 2]}'.")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure accuracy on original and clone classes, locality, calibration and cost."""
    report = Report("eval", as_json=as_json, quiet=quiet)
    checkpoint = o.checkpoint(checkpoint, "CKPT")

    from .. import api
    from ..allocator import keep_freed_memory

    bounds = gates.parse(fail_under or (), fail_over or ())
    latency = latency or any(gate.name == "latency" for gate in bounds)
    keep_freed_memory()
    matched: list[Reconciled] = []
    with report.progress() as progress:
        result = api.evaluate(
            checkpoint,
            data=data,
            clone=clone or (),
            tta=tta,
            latency=latency,
            split=split,
            limit_per_class=limit_per_class,
            skip_bad=skip_bad,
            seed=seed,
            device=device,
            arch=arch,
            args=o.model_args(args, "--args"),
            progress=progress,
            note=report.note,
            matched=matched.append,
        )
    document = {k: v for k, v in asdict(result).items() if k != "latency_ms" or latency}
    document |= o.data_of(matched)
    failed = "; ".join(gates.faults(bounds, result.metric))
    if failed and as_json:
        report.failed(document, failed)
    else:
        report.result(document, _text(result))
    if failed:
        raise CheckFailed(failed, reported=True)


SHOWN = (
    "target_accuracy",
    "original_accuracy",
    "clone_accuracy",
    "average_accuracy",
    "joint_accuracy",
    "branch_accuracy",
    "locality",
    "right_to_wrong",
    "calibration_error",
)


def _text(e: Evaluation) -> str:
    figures = [(name.replace("_", " "), e.metric(name)) for name in SHOWN]
    rows = [[name, figure(value)] for name, value in figures if value is not None]
    lines = [table([f"on {e.images} images", "share"], rows)]
    for clone in e.clones:
        lines.append(
            f"clone '{clone.name}': +{clone.parameters_share:.2f} of the target's parameters, "
            f"+{clone.macs_share:.2f} of its MACs, {clone.bytes:,} bytes"
        )
    if e.tta and e.clones:
        lines.append(f"tta {e.tta}: target and clones run twice an image; MACs are of one run")
    if t := e.latency_ms:
        lines.append(f"latency: {t.patched:.2f} ms an image, {t.ratio:.2f} times the target's")
    return "\n".join(lines)
