"""``pnc clone``: makes a clone file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BadInput, Incompatible
from ..report import Report, amount, figure, table
from . import options as o
from .pair import Request

if TYPE_CHECKING:
    from ..branch.task import Task
    from ..manifest import Manifest, Plan


def clone(
    source: Annotated[
        Path,
        typer.Argument(readable=False, metavar="SRC", help="Source checkpoint (.safetensors)."),
    ],
    target: Annotated[
        Path,
        typer.Argument(readable=False, metavar="TGT", help="Target checkpoint (.safetensors)."),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Folder or .tar with one sub-folder a class: clone classes teach, original classes (a few images each) keep the clone in its place.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The clone file to write (.safetensors).")
    ],
    classes: o.Classes = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", help="Take the position from this plan of pnc search; - is stdin."),
    ] = None,
    tap: o.Taps = None,
    cut: o.Cuts = None,
    share: o.Shares = None,
    resolution: o.Resolutions = None,
    max_macs: o.MaxMacs = None,
    max_params: o.MaxParams = None,
    max_bytes: o.MaxBytes = None,
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
    limit: o.Limit = None,
    no_originals: o.NoOriginals = False,
    skip_bad: o.SkipBad = False,
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

    Runs the search itself unless --plan is given. Writes the clone and, beside it, its patch
    manifest (.json). Neither SRC nor TGT is changed.

    Next: pnc inject TGT clone.safetensors -o patched.safetensors
    """
    from ..files.atomic import check_output
    from ..files.clone_file import sidecar_of, write_clone
    from ..manifest import to_plain

    report = Report("clone", as_json=as_json, quiet=quiet)
    source, target = o.checkpoint(source, "SRC"), o.checkpoint(target, "TGT")
    check_output(output, force=force, inputs=[source, target])
    check_output(sidecar_of(output), force=force)
    o.clone_name(name)
    given = _read_plan(plan) if plan is not None else None
    request = Request(
        source,
        target,
        classes or (given.classes if given else []),
        data,
        limit,
        not no_originals,
        skip_bad,
        seed,
        device,
        source_arch,
        target_arch,
        source_args,
        target_args,
    )
    with report.progress() as progress:
        from ..branch.make import Recipe, make_clone
        from ..branch.task import default_name
        from ..placement.grid import make_grid
        from ..placement.search import Budget, make_plan

        task = request.load(report, progress)
        if given is not None:
            _check_plan(given, plan, task)
            chosen = given.candidates[given.chosen]
            grid = make_grid(task.source, task.target, [chosen.tap], [chosen.cut])
        else:
            grid = make_grid(task.source, task.target, tap or (), cut or ())
            found = make_plan(
                task,
                grid,
                seed=seed,
                shares=share,
                resolutions=resolution,
                budget=Budget(max_macs, max_params, max_bytes),
                progress=progress,
            )
            chosen = found.candidates[found.chosen]
        report.note(f"position: target '{chosen.tap}' -> source '{chosen.cut}', {chosen.kept}")
        recipe = Recipe(name or default_name(task.classes), epochs, seed)
        manifest, tensors = make_clone(task, grid, chosen, recipe, progress=progress)
    write_clone(output, manifest, tensors, force=force, inputs=[source, target])
    report.result(
        {"output": str(output), "manifest": to_plain(manifest)}, summary(manifest, output)
    )
    report.note(f"next: pnc inject {target} {output} -o patched.safetensors")


def summary(m: Manifest, path: Path) -> str:
    """What was made, and how well it did on held-out images."""
    d, c = m.measured, m.cost
    measured = table(
        ["on held-out images", "share"],
        [
            ["branch alone, clone classes", figure(d.branch_accuracy)],
            ["whole source, clone classes", figure(d.source_accuracy)],
            ["patched, clone classes", figure(d.clone_accuracy)],
            ["patched, original classes", figure(d.original_accuracy)],
            ["patched, all", figure(d.joint_accuracy)],
            ["locality", figure(d.locality)],
        ],
    )
    return (
        f"{path}: clone '{m.name}' of {', '.join(m.labels)}\n"
        f"  {m.target.architecture} '{m.tap.position}' -> adapter -> {m.source.architecture} after '{m.cut.position}'\n"
        f"  adds {amount(c.parameters)} parameters ({c.parameters / c.target_parameters:.2f} of the target's), "
        f"{amount(c.macs)} MACs ({c.macs / c.target_macs:.2f}), {amount(c.bytes)} bytes\n"
        f"{measured}"
    )


def _read_plan(plan: str) -> Plan:
    from ..manifest import Plan, parse

    try:
        text = sys.stdin.buffer.read() if plan == "-" else Path(plan).read_bytes()
    except OSError as e:
        raise BadInput(f"{plan}: cannot be read: {e.strerror}") from e
    return parse(text, Plan, "standard input" if plan == "-" else plan)


def _check_plan(plan: Plan, name: str | None, task: Task) -> None:
    """A plan belongs to one pair of checkpoints."""
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
