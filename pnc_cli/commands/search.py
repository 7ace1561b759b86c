"""``pnc search``: where to attach, and what it would give and cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..remarks import head_only_of, known_as, remarks
from ..report import Report, amount, figure, table
from ..streams import put
from . import options as o

if TYPE_CHECKING:
    from ..data import Reconciled
    from ..plan import Plan


def search(
    source: o.Source,
    target: o.Target,
    classes: o.Classes = None,
    data: Annotated[
        str | None,
        o.data(
            "Folder or .tar with one sub-folder a class, or hfds/NAME. Default: generated images."
        ),
    ] = None,
    output: Annotated[
        Path | None, o.output("Write the plan here, for pnc clone --plan; - is stdout.")
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
    whole: o.Whole = False,
    top: Annotated[int, typer.Option("--top", help="Candidates to print (0: all).", min=0)] = 10,
    split: o.Split = None,
    limit_per_class: o.Limit = None,
    no_originals: o.NoOriginals = False,
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
    """Rank where in TGT to attach which part of SRC.

    With --data each pair of positions is measured on held-out images; without, it is judged by
    how much of the source survives on generated images. Starred is what pnc clone takes: the
    cheapest that is as good as the best by one standard error, or the best within the limits given.

    Next: pnc clone SRC TGT --plan PLAN --data DATA -o clone.safetensors
    """
    from .. import api
    from ..allocator import keep_freed_memory
    from ..manifest import canonical_json, to_plain

    report = Report("search", as_json=as_json, quiet=quiet)
    source, target = o.checkpoint(source, "SRC"), o.checkpoint(target, "TGT")
    to_stdout = output is not None and str(output) == "-"
    keep_freed_memory()
    matched: list[Reconciled] = []
    with report.progress() as progress:
        plan = api.search(
            source,
            target,
            classes=classes,
            data=data,
            output=None if to_stdout else output,
            plot=plot,
            tap=tap,
            cut=cut,
            share=share,
            resolution=resolution,
            max_macs=max_macs,
            max_params=max_params,
            max_bytes=max_bytes,
            whole=whole,
            split=split,
            limit_per_class=limit_per_class,
            no_originals=no_originals,
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
    if plot is not None:
        report.note(f"drawn in {plot}")
    if to_stdout:
        put(canonical_json(plan).decode("utf-8"), end="")
        return
    document = {"plan": to_plain(plan), **o.data_of(matched)}
    report.result(document, _text(plan, top))
    if output is not None:
        report.note(
            f"plan written to {output}; next: pnc clone {source} {target} --plan {output} --data DATA -o clone.safetensors"
        )


def _text(plan: Plan, top: int) -> str:
    """The candidates as a table, best first, the chosen one starred, and what is to be said of it."""
    with_data = plan.data == "images"
    headings = ["", "row", "tap (target)", "cut (source)", "share", "resolution", "score"]
    headings += ["branch", "joint", "average", "+-", "locality"] if with_data else []
    headings += ["fit", "+params", "+MACs", "MACs/target"]
    shown = plan.candidates[: top or None]
    # whatever their rank:
    always = [plan.candidates[plan.chosen], plan.held_against, head_only_of(plan)]
    shown += [c for c in always if c is not None and c not in shown]
    rows = []
    for c in shown:
        figures = (c.branch_accuracy, c.joint_accuracy, c.average_accuracy)
        measured = [*map(figure, figures), figure(c.standard_error), figure(c.locality)]
        rows.append(
            [
                "*" if c == always[0] else "",
                str(plan.candidates.index(c) + 1),
                c.tap,
                c.cut,
                f"{c.share:.2f}",
                f"{c.resolution:.2f}",
                f"{c.score:.3f}",
                *(measured if with_data else ()),
                f"{c.fit:.2f}",
                amount(c.parameters),
                amount(c.macs),
                f"{c.macs / plan.target_macs:.2f}",
            ]
        )
    lines = [table(headings, rows, left=4)]
    hidden = len(plan.candidates) - len(rows)
    if hidden:
        lines.append(f"… {hidden} more (--top 0 shows all)")
    if head_only_of(plan) is not None:
        lines.append("- -> -: no copied part, the target's pre-logits alone (--head-only)")
    return "\n".join([*lines, *remarks(plan), *known_as(plan.known_already or ())])
