"""``pnc search``: where to attach, and what it would give and cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..report import Report, amount, figure, table
from . import options as o
from .pair import Request

if TYPE_CHECKING:
    from ..manifest import Plan


def search(
    source: Annotated[
        Path,
        typer.Argument(readable=False, metavar="SRC", help="Source checkpoint (.safetensors)."),
    ],
    target: Annotated[
        Path,
        typer.Argument(readable=False, metavar="TGT", help="Target checkpoint (.safetensors)."),
    ],
    classes: o.Classes = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Folder or .tar with one sub-folder a class. Default: generated images.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the plan here, for pnc clone --plan; - is stdout."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw accuracy against cost here (.png, .svg or .pdf)."),
    ] = None,
    tap: o.Taps = None,
    cut: o.Cuts = None,
    share: o.Shares = None,
    resolution: o.Resolutions = None,
    max_macs: o.MaxMacs = None,
    max_params: o.MaxParams = None,
    max_bytes: o.MaxBytes = None,
    top: Annotated[int, typer.Option("--top", help="Candidates to print (0: all).", min=0)] = 10,
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
    """Rank where in TGT to attach which part of SRC.

    With --data each pair of positions is measured on held-out images; without, it is judged by
    how much of the source survives on generated images.

    Next: pnc clone SRC TGT --plan PLAN --data DATA -o clone.safetensors
    """
    from ..files.atomic import Outputs, check_output
    from ..manifest import canonical_json, to_plain
    from ..plot import check_plot, draw_plan

    report = Report("search", as_json=as_json, quiet=quiet)
    source, target = o.checkpoint(source, "SRC"), o.checkpoint(target, "TGT")
    to_stdout = output is not None and str(output) == "-"
    if output is not None and not to_stdout:
        check_output(output, force=force, inputs=[source, target])
    if plot is not None:
        check_plot(plot)
        check_output(plot, force=force, inputs=[source, target])
    request = Request(
        source,
        target,
        classes or [],
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
        from ..placement.grid import make_grid
        from ..placement.search import Budget, make_plan

        task = request.load(report, progress)
        if data is None:
            report.note(
                "no --data: judged on generated images; with images of the classes the ranking is better"
            )
        grid = make_grid(task.source, task.target, tap or (), cut or ())
        plan = make_plan(
            task,
            grid,
            seed=seed,
            shares=share,
            resolutions=resolution,
            budget=Budget(max_macs, max_params, max_bytes),
            progress=progress,
        )
    document = canonical_json(plan)
    with Outputs(force=force, inputs=[source, target]) as outputs:
        if output is not None and not to_stdout:
            outputs.open(output).write(document)
        if plot is not None:
            draw_plan(plan, outputs.open(plot), plot.suffix)
    if plot is not None:
        report.note(f"drawn in {plot}")
    if to_stdout:
        sys.stdout.write(document.decode("utf-8"))
        return
    report.result({"plan": to_plain(plan)}, _text(plan, top))
    if output is not None:
        report.note(
            f"plan written to {output}; next: pnc clone {source} {target} --plan {output} --data DATA -o clone.safetensors"
        )


def _text(plan: Plan, top: int) -> str:
    """The candidates as a table, best first."""
    with_data = plan.data == "images"
    headings = ["tap (target)", "cut (source)", "share", "resolution", "score"]
    headings += ["branch", "joint", "average", "locality"] if with_data else []
    headings += ["fit", "+params", "+MACs", "MACs/target"]
    rows = []
    for c in plan.candidates[: top or None]:
        figures = (c.branch_accuracy, c.joint_accuracy, c.average_accuracy, c.locality)
        rows.append(
            [
                c.tap,
                c.cut,
                f"{c.share:.2f}",
                f"{c.resolution:.2f}",
                f"{c.score:.3f}",
                *(map(figure, figures) if with_data else ()),
                f"{c.fit:.2f}",
                amount(c.parameters),
                amount(c.macs),
                f"{c.macs / plan.target_macs:.2f}",
            ]
        )
    lines = [table(headings, rows, left=2)]
    hidden = len(plan.candidates) - len(rows)
    if hidden:
        lines.append(f"… {hidden} more (--top 0 shows all)")
    return "\n".join(lines)
