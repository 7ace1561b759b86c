"""Options that several subcommands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import limits
from ..errors import BadInput, UsageError

if TYPE_CHECKING:
    from ..data import Reconciled


def positional(metavar: str, help: str) -> Any:
    """A file that has to be there; that is for the command to find out, in its own words."""
    return typer.Argument(readable=False, metavar=metavar, help=help)


def output(help: str) -> Any:
    return typer.Option("--output", "-o", help=help)


def data(help: str) -> Any:
    return typer.Option("--data", "-d", help=help)


Source = Annotated[Path, positional("SRC", "Source checkpoint (.safetensors).")]
Target = Annotated[Path, positional("TGT", "Target checkpoint (.safetensors).")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, on failure too.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress on stderr.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace outputs that exist.")]
Seed = Annotated[int, typer.Option("--seed", help="Same inputs, same seed, same bytes.", min=0)]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit-per-class",
        min=0,
        help="Most images read of each class (0: all). Default: 100, fewer where there are more than 40 original classes.",
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", help="The split to read, where --data is hfds/NAME and has several."),
]
EvalLimit = Annotated[
    int, typer.Option("--limit-per-class", help="Most images read of each class (0: all).", min=0)
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Go on without images that do not decode.")
]
NoOriginals = Annotated[
    bool,
    typer.Option("--no-originals", help="Use clone images only, even where --data has others."),
]
SourceArch = Annotated[
    str | None, typer.Option("--source-arch", help="timm architecture of SRC, if nothing says it.")
]
TargetArch = Annotated[
    str | None, typer.Option("--target-arch", help="timm architecture of TGT, if nothing says it.")
]
SourceArgs = Annotated[
    str | None,
    typer.Option("--source-args", help="model_args of SRC as JSON: '{\"depths\": [2, 2]}'."),
]
TargetArgs = Annotated[str | None, typer.Option("--target-args", help="model_args of TGT as JSON.")]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--classes",
        "-c",
        help="Source classes to clone: 'frog,horse', or 'deer=roe deer' for another label. "
        "Default: those the target does not know.",
    ),
]
Taps = Annotated[
    list[str] | None, typer.Option("--tap", help="Only these positions of TGT (repeatable).")
]
Cuts = Annotated[
    list[str] | None, typer.Option("--cut", help="Only these positions of SRC (repeatable).")
]
MaxMacs = Annotated[
    float | None,
    typer.Option("--max-macs", help="Most MACs to add, as a share of TGT's: 0.5.", min=0),
]
MaxParams = Annotated[
    float | None,
    typer.Option("--max-params", help="Most parameters to add, as a share of TGT's.", min=0),
]


Whole = Annotated[
    bool,
    typer.Option(
        "--whole", help="Leave nothing of the copied part out, and take the best whatever it costs."
    ),
]


def size(text: str) -> int:
    """:func:`~pnc_cli.limits.size`, refused in Typer's way."""
    try:
        return limits.size(text)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None


Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        parser=size,
        metavar="SIZE",
        help="Most memory to use beside networks and images: 1GB. "
        "Default: a quarter of the machine's, at most 2GiB.",
    ),
]

MaxBytes = Annotated[
    int | None,
    typer.Option(
        "--max-bytes", parser=size, metavar="SIZE", help="Most bytes of tensors to ship: 3MB."
    ),
]

Shares = Annotated[
    list[float] | None,
    typer.Option(
        "--share",
        min=0.01,
        max=1.0,
        help="Share of the copied part's cost (parameters and MACs) to keep, instead of trying several (repeatable).",
    ),
]

Resolutions = Annotated[
    list[float] | None,
    typer.Option(
        "--resolution",
        min=0.01,
        max=1.0,
        help="Run the copied part on a map of so much of the cut's height and width: 0.5. Default: tries some, unless --share is given (repeatable).",
    ),
]


def model_args(text: str | None, flag: str) -> dict[str, Any] | None:
    """Parses ``--source-args``, ``--target-args`` or ``--args``, whichever ``flag`` is."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as e:
        raise UsageError(
            f"{flag}: not valid JSON: {e}", hint=f"{flag} '{{\"depths\": [2, 2]}}'"
        ) from None
    if not isinstance(value, dict):
        raise UsageError(f"{flag}: expected a JSON object")
    return value


def data_of(matched: list[Reconciled]) -> dict[str, Any]:
    """What became of labels and folders, for the JSON object."""
    return {"data": matched[0].document} if matched else {}


def existing(path: Path, what: str) -> Path:
    """``path``, if there is something there; ``what`` is its name in the command's usage."""
    if not path.exists():
        raise BadInput(f"{path}: no such file", hint=f"{what} is a .safetensors file")
    return path


def checkpoint(path: Path, what: str) -> Path:
    """The checkpoint file meant by ``path``: the file itself, or the one in a folder of timm's."""
    from ..files.forms import checkpoint_file

    return checkpoint_file(existing(path, what))
