"""``pnc inject``: applies clones to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..report import Report
from . import options as o


def inject(
    target: Annotated[
        Path,
        typer.Argument(readable=False, metavar="TGT", help="Target checkpoint, plain or patched."),
    ],
    clones: Annotated[
        list[Path], typer.Argument(readable=False, metavar="CLONE...", help="Clone files.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The patched checkpoint to write.")
    ],
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", help="Inject a class under another label: old=new (repeatable)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Recalibrate all clones together on these images of every class "
            "(folder or .tar): joins change, modules do not.",
        ),
    ] = None,
    limit: o.Limit = None,
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
    from ..files.patch import inject as inject_clones

    report = Report("inject", as_json=as_json, quiet=quiet)
    target = o.checkpoint(target, "TGT")
    for path in clones:
        o.existing(path, "CLONE")
    names = o.renames(rename)
    gain = None
    if data is None:
        patched = inject_clones(target, clones, output, rename=names, force=force)
    else:
        with report.progress() as progress:
            from ..allocator import keep_freed_memory
            from ..branch.recalibrate import inject_together

            keep_freed_memory()
            patched, gain = inject_together(
                target,
                clones,
                output,
                data,
                limit=limit,
                seed=seed,
                rename=names,
                skip_bad=skip_bad,
                force=force,
                progress=progress,
            )
        report.note(
            f"recalibrated together: mean negative log-likelihood {gain.before:.3f} -> {gain.after:.3f}"
        )
    labels = [label for c in patched.clones for label in c.labels]
    report.result(
        {
            "output": str(output),
            "target_sha256": patched.target_sha256,
            "clones": [{"name": c.name, "classes": c.labels} for c in patched.clones],
            **({"recalibrated": {"before": gain.before, "after": gain.after}} if gain else {}),
        },
        f"{output}: {len(patched.clones[0].target.label_names)} original classes"
        f" + {', '.join(labels)}  (clones: {', '.join(c.name for c in patched.clones)})",
    )
    report.note(
        f"next: pnc eval {output} --data DATA; take it off with: pnc eject {output} -o target.safetensors"
    )
