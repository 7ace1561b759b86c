"""The ``pnc`` command: wiring only.

The subcommands import what they need when they run, so that help costs no more than Typer.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

import typer

from . import __version__
from .commands.clone import clone
from .commands.eject import eject
from .commands.eval import evaluate
from .commands.info import info
from .commands.inject import inject
from .commands.search import search
from .errors import Interrupted, OutOfMemory, PncError, UsageError, in_words
from .files.atomic import appeared
from .report import print_error
from .streams import let_go, open_streams, output_fails, put, say, unwritable

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
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}  # where they are called otherwise
for name, function in COMMANDS.items():
    app.command(name)(function)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        put(f"pnc {__version__}")
        raise typer.Exit()


def main() -> None:
    """Runs the command line; every error leaves through here, with its documented exit code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    closed = open_streams()
    for name in ("SIGTERM", "SIGHUP"):  # a terminal that hangs up; nohup ignores that
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    appeared.clear()
    as_json = "--json" in argv
    command = next((a for a in argv if a in COMMANDS), "pnc")
    try:
        error = _run(argv, command, closed)
        if isinstance(error, int):
            return error
        print_error(error, command, as_json=as_json and not error.reported)
        return error.exit_code
    except KeyboardInterrupt:  # once more, while the first is being told
        return Interrupted.exit_code
    finally:
        let_go()


def _run(argv: list[str], command: str, closed: list[str]) -> int | PncError:
    """The exit code, or the error to be told."""
    try:
        if any("\udc80" <= c <= "\udcff" for a in argv for c in a):
            raise UsageError("an argument is not valid UTF-8", hint="type it in a UTF-8 locale")
        if "standard output" in closed:
            raise UsageError("standard output is closed", hint="send it to /dev/null")
        code = app(args=argv, prog_name="pnc", standalone_mode=False)
        if (e := output_fails()) is not None:
            raise e
        if code == Interrupted.exit_code:  # what Typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except PncError as e:
        return e
    except typer.TyperException as e:
        error = UsageError(
            e.format_message(), hint=" ".join(dict.fromkeys(["pnc", command, "--help"]))
        )
        if not argv:  # no arguments at all: the help itself
            say(error.message)
            return error.exit_code
        return error
    except (KeyboardInterrupt, typer.Abort):
        done = ", ".join(path.name for path in appeared)
        return Interrupted(
            f"interrupted when this had been written, complete: {done}"
            if done
            else "interrupted; nothing was left behind"
        )
    except (BrokenPipeError, SystemExit):  # Typer answers the first with the second
        return Interrupted.exit_code
    except ImportError as e:
        return _not_installed(e, command)
    except Exception as e:
        if isinstance(e, OSError) and "--help" in argv:  # Typer prints that itself
            return unwritable(e)
        return OutOfMemory.of(e) or _fault(e)


def _not_installed(e: ImportError, command: str) -> PncError:
    """A package of others that is not there, or not whole; one of ours is a fault."""
    package = (e.name or "").partition(".")[0]
    if package in ("", __package__):
        return _fault(e)
    return UsageError(
        f"pnc {command} needs {package}, which cannot be imported: {e}",
        hint=f"pip install {DISTRIBUTIONS.get(package, package)}, in the environment of {sys.executable}",
    )


def _fault(e: Exception) -> PncError:
    if "PNC_TRACEBACK" in os.environ:
        say("".join(traceback.format_exception(e)))
    return PncError(
        f"a fault of pnc itself: {type(e).__name__}: {in_words(e)}",
        hint="run it again with PNC_TRACEBACK=1 and report what it prints",
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
