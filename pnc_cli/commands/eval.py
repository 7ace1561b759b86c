"""``pnc eval``: what a checkpoint is worth on labelled images."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CheckFailed, UsageError
from ..report import Report, figure, table
from . import options as o


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, metavar="CKPT", help="Checkpoint, patched or plain.")
    ],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Folder or .tar with one sub-folder a class.")
    ],
    clone: Annotated[
        list[Path] | None,
        typer.Option(
            "--clone", help="Evaluate CKPT with this clone on top, unwritten (repeatable)."
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under", help="Exit 1 if a figure is lower: joint_accuracy=0.7 (repeatable)."
        ),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time the forward pass too.")] = False,
    limit: o.EvalLimit = 0,
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
    with report.progress() as progress:
        from .. import evaluation as core
        from ..allocator import keep_freed_memory
        from ..branch.patched import load, preprocessing_of
        from ..data import choose, open_images, read_images
        from ..network.load import check_device

        keep_freed_memory()
        floors = _floors(fail_under, core.METRICS)
        model = load(
            checkpoint,
            clone or (),
            architecture=arch,
            model_args=o.model_args(args, "--args"),
            device=str(check_device(device)),
        )
        source = open_images(data)
        chosen = choose(source, model.label_names, limit or None, seed)
        images = read_images(
            source,
            chosen,
            [preprocessing_of(model)],
            skip_bad=skip_bad,
            progress=progress,
            what="evaluating",
        )
        result = core.evaluate(model, images)
        times = core.latency(model) if latency else None
    missing = [n for n in model.label_names if n not in chosen]
    if missing:
        report.note(f"no images of {len(missing)} classes: {', '.join(missing[:10])}")
    if result.skipped:
        report.note(f"skipped {result.skipped} images that do not decode")
    document = {**asdict(result), "clones": model.clone_costs(), "classes_without_images": missing}
    if times:
        document["latency_ms"] = {
            "target": times[0],
            "patched": times[1],
            "ratio": times[1] / times[0],
        }
    failed = [
        f"{name} is {figure(result.metric(name))}, required {floor:g}"
        for name, floor in floors.items()
        if result.metric(name) is None or result.metric(name) < floor
    ]
    if failed and as_json:
        report.failed(document, "; ".join(failed))
    else:
        report.result(document, _text(document))
    if failed:
        raise CheckFailed("; ".join(failed), reported=True)


def _text(d: dict) -> str:
    rows = [
        [name.replace("_", " "), figure(d[name])]
        for name in (
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
        if d[name] is not None
    ]
    lines = [table([f"on {d['images']} images", "share"], rows)]
    for clone in d["clones"]:
        lines.append(
            f"clone '{clone['name']}': +{clone['parameters_share']:.2f} of the target's parameters, "
            f"+{clone['macs_share']:.2f} of its MACs, {clone['bytes']:,} bytes"
        )
    if "latency_ms" in d:
        t = d["latency_ms"]
        lines.append(
            f"latency: {t['patched']:.2f} ms an image, {t['ratio']:.2f} times the target's"
        )
    return "\n".join(lines)


def _floors(items: list[str] | None, metrics: tuple[str, ...]) -> dict[str, float]:
    floors = {}
    for item in items or []:
        name, _, value = item.partition("=")
        try:
            floors[name] = float(value)
            if math.isnan(floors[name]):  # nothing is below it
                raise ValueError
        except ValueError:
            raise UsageError(
                f"--fail-under '{item}'", hint="--fail-under joint_accuracy=0.7"
            ) from None
        if name not in metrics:
            raise UsageError(
                f"--fail-under: no figure '{name}'", hint="figures: " + ", ".join(metrics)
            )
    return floors
