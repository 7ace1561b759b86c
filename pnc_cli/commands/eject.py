"""``pnc eject``: takes clones off a patched checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..report import Report
from . import options as o


def eject(
    patched: Annotated[Path, o.positional("PATCHED", "Patched checkpoint.")],
    output: Annotated[Path, o.output("The checkpoint to write.")],
    name: Annotated[
        list[str] | None,
        typer.Option("--name", "-n", help="Only this clone (repeatable). Default: all."),
    ] = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Take clones off PATCHED.

    With none left, the output is the target file as it was, sha256 for sha256. Where nothing beside
    it says what that is, OUTPUT.json does.
    """
    from .. import api
    from ..files.digest import file_sha256

    report = Report("eject", as_json=as_json, quiet=quiet)
    patched = o.checkpoint(patched, "PATCHED")
    left = api.eject(patched, output=output, name=name, force=force, note=report.note)
    names = [c.name for c in left.clones] if left else []
    sha256 = file_sha256(output)
    text = f"{output}: " + (
        f"left: {', '.join(names)}" if left else f"the target again, sha256 {sha256}"
    )
    report.result({"output": str(output), "clones": names, "sha256": sha256}, text)
