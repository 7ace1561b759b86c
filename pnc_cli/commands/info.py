"""``pnc info``: says what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..report import Report, print_json
from . import options as o


def info(
    file: Annotated[
        Path | None,
        o.positional("FILE", "Checkpoint, clone, patched checkpoint, plan or manifest."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of pnc's documents.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what FILE is, and whether it is sound."""
    from .. import api
    from ..manifest import json_schema

    if schema:
        print_json(json_schema())
        return
    if file is None:
        raise UsageError("Missing argument 'FILE'", hint="pnc info FILE")
    found = api.info(o.existing(file, "FILE"))
    Report("info", as_json=as_json, quiet=quiet).result(found.document, found.text)
