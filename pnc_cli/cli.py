"""The ``pnc`` command: wiring only.

The subcommands import what they need when they run, so that help costs no more than Typer.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from types import FrameType

import typer

from . import __version__
from .commands.clone import clone
from .commands.eject import eject
from .commands.eval import evaluate
from .commands.info import info
from .commands.inject import inject
from .commands.search import search
from .errors import Interrupted, PncError, UsageError
from .report import print_error

app = typer.Typer(
    name="pnc",
    help="Partial Network Cloning: copy classes from one timm classifier into another, as a patch "
    "that comes off again.\n\n"
    "pnc search SRC TGT  ->  pnc clone SRC TGT --data DIR -o clone.safetensors  ->  "
    "pnc inject TGT clone.safetensors -o patched.safetensors  ->  pnc eval patched.safetensors --data DIR  "
    "->  pnc eject patched.safetensors -o target.safetensors\n\n"
    "Exit codes: 0 done, 1 a requested check failed, 2 usage or an output that cannot be written, "
    "3 bad or corrupt input, 4 incompatible source, target or patch, 70 a fault of pnc, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "search": search,
    "clone": clone,
    "inject": inject,
    "eject": eject,
    "eval": evaluate,
    "info": info,
}
for name, function in COMMANDS.items():
    app.command(name)(function)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        print(f"pnc {__version__}")
        raise typer.Exit()


def main() -> None:
    """Runs the command line; every error leaves through here, with its documented exit code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a label must not crash a C locale
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in argv
    command = next((a for a in argv if a in COMMANDS), "pnc")
    try:
        if any("\udc80" <= c <= "\udcff" for a in argv for c in a):
            raise UsageError("an argument is not valid UTF-8", hint="type it in a UTF-8 locale")
        code = app(args=argv, prog_name="pnc", standalone_mode=False)
        sys.stdout.flush()
        if code == Interrupted.exit_code:  # what Typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except PncError as e:
        error = e
    except typer.TyperException as e:
        error = UsageError(
            e.format_message(), hint=" ".join(dict.fromkeys(["pnc", command, "--help"]))
        )
        if not argv:  # no arguments at all: the help itself
            print(error.message, file=sys.stderr)
            return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        error = Interrupted("interrupted; nothing was left behind")
    except (BrokenPipeError, SystemExit):  # Typer answers the first with the second
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Interrupted.exit_code
    except Exception as e:
        if "PNC_TRACEBACK" in os.environ:
            traceback.print_exc()
        error = PncError(
            f"a fault of pnc itself: {type(e).__name__}: {e}",
            hint="run it again with PNC_TRACEBACK=1 and report what it prints",
        )
    print_error(error, command, as_json=as_json and not error.reported)
    return error.exit_code


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
