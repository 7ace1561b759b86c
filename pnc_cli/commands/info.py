"""``pnc info``: says what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import BadInput, UsageError
from ..report import Report, print_json
from . import options as o

NOT_CHECKED = "whether it is sound is not known: its tensors were not held against an architecture"


def info(
    file: Annotated[
        Path | None,
        o.positional("FILE", "Checkpoint, clone, patched checkpoint, plan or manifest."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="Compare each copied tensor of a clone with this source."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of pnc's documents.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what FILE is, and whether it is sound: exit 3 if it is not."""
    from .. import api
    from ..manifest import json_schema

    if schema:
        print_json(json_schema())
        return
    if file is None:
        raise UsageError("Missing argument 'FILE'", hint="pnc info FILE")
    found = api.info(o.existing(file, "FILE"), source=source and o.existing(source, "--source"))
    report = Report("info", as_json=as_json, quiet=quiet)
    document = {**found.document, "sound": found.sound, "problems": list(found.problems)}
    if not found.problems:
        state = "sound" if found.sound else NOT_CHECKED
        report.result(document, f"{found.text}\n{state}")
        return
    fault = "; ".join(found.problems)
    if as_json:
        report.failed(document, fault, BadInput.code)
    else:
        report.result(document, found.text)
    error = BadInput(fault, hint="correct what it says, or make the file again")
    error.reported = True
    raise error
