"""``pnc inject``: applies clones to a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import no_progress
from ..report import Report
from . import options as o

if TYPE_CHECKING:
    from ..branch.recalibrate import Recalibrated
    from ..data import Reconciled


def inject(
    target: Annotated[Path, o.positional("TGT", "Target checkpoint, plain or patched.")],
    clones: Annotated[list[Path], o.positional("CLONE...", "Clone files.")],
    output: Annotated[Path, o.output("The patched checkpoint to write.")],
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            help="Inject a class under another label: old=new (where several clones have it, "
            "the first keeps it), or clone:old=new for the class of one clone (repeatable).",
        ),
    ] = None,
    data: Annotated[
        str | None,
        o.data(
            "Recalibrate all clones together on these images of every class "
            "(folder, .tar or hfds/NAME): joins change, modules do not."
        ),
    ] = None,
    split: o.Split = None,
    limit_per_class: o.Limit = None,
    skip_bad: o.SkipBad = False,
    seed: o.Seed = 0,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Apply clones to TGT.

    The target's tensors stay as they are, byte for byte; pnc eject gives its file back.

    Next: pnc eval patched.safetensors --data DATA
    """
    from .. import api
    from ..allocator import keep_freed_memory

    report = Report("inject", as_json=as_json, quiet=quiet)
    target = o.checkpoint(target, "TGT")
    for path in clones:
        o.existing(path, "CLONE")
    gains: list[Recalibrated] = []
    if data is not None:
        keep_freed_memory()
    matched: list[Reconciled] = []
    with report.progress() if data is not None else nullcontext(no_progress) as progress:
        patched = api.inject(
            target,
            clones,
            output=output,
            rename=rename,
            data=data,
            split=split,
            limit_per_class=limit_per_class,
            skip_bad=skip_bad,
            seed=seed,
            force=force,
            progress=progress,
            note=report.note,
            matched=matched.append,
            recalibrated=gains.append,
        )
    labels = [label for c in patched.clones for label in c.labels]
    document: dict[str, Any] = {
        "output": str(output),
        "target_sha256": patched.target_sha256,
        "clones": [{"name": c.name, "classes": c.labels} for c in patched.clones],
    }
    document |= o.data_of(matched)
    for gain in gains:
        document["recalibrated"] = {"before": gain.before, "after": gain.after}
    report.result(
        document,
        f"{output}: {len(patched.clones[0].target.label_names)} original classes"
        f" + {', '.join(labels)}  (clones: {', '.join(c.name for c in patched.clones)})",
    )
    report.note(
        f"next: pnc eval {output} --data DATA; take it off with: pnc eject {output} -o target.safetensors"
    )
