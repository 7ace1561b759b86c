"""Makes a safetensors file of a PyTorch pickle whose writer is trusted.

    python -c "from pnc_cli.convert import main; main()" model_best.pth.tar model_best.safetensors

No command of pnc's does this by itself.  Nothing in the pickle is run: tensors and plain values are
read (``weights_only``), and ``argparse.Namespace``, in which timm's ``train.py`` keeps its arguments.
Where there is a moving average it is taken, as timm takes it.  What the arguments say of the
architecture and of preprocessing goes into the file's metadata.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadInput, PncError, UsageError

WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model")  # the first there is, as in timm
PREPROCESSING = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")


def convert(path: Path, output: Path) -> str:
    """Writes the weights in ``path`` to ``output``; returns where in it they were.

    Raises ``UsageError`` where ``output`` exists, ``BadInput`` for a file that holds no weights or
    more than values.
    """
    import torch
    from safetensors.torch import save_file

    if output.exists():
        raise UsageError(f"{output}: exists", hint="give another name for the safetensors file")
    try:
        with open(path, "rb") as f, torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(f, map_location="cpu", weights_only=True)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read: {e.strerror or e}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as e:
        raise BadInput(
            f"{path}: holds more than weights and plain values, or is damaged: {_first_line(e)}",
            hint="where it was written: safetensors.torch.save_file(model.state_dict(), …)",
        ) from None
    if not isinstance(found, Mapping):
        raise BadInput(f"{path}: holds a {type(found).__name__}, expected a dictionary of tensors")
    key = next((k for k in WEIGHTS if isinstance(found.get(k), Mapping)), "")
    weights = {
        str(n): t.clone().contiguous()
        for n, t in (found[key] if key else found).items()
        if isinstance(t, torch.Tensor)
    }
    if not weights:
        raise BadInput(
            f"{path}: no tensors in it", hint=f"it has {', '.join(map(str, found))}"[:200]
        )
    save_file(weights, output, metadata_of(found) or None)
    return f"'{key}'" if key else "the whole file"


def metadata_of(found: Mapping[str, Any]) -> dict[str, str]:
    """What the arguments of timm's ``train.py`` say of the network, as pnc reads it."""
    given = found.get("args")
    args: dict[str, Any] = vars(given) if isinstance(given, argparse.Namespace) else {}
    name = args.get("model")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        return {}
    said = {"architecture": name}
    if isinstance(args.get("model_kwargs"), dict) and args["model_kwargs"]:
        said["model_args"] = json.dumps(args["model_kwargs"])
    view = {k: args[k] for k in PREPROCESSING if args.get(k)}
    if (size := args.get("img_size")) and "input_size" not in view:
        sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
        view["input_size"] = [args.get("in_chans") or 3, *sides]
    if view:
        said["pretrained_cfg"] = json.dumps(view)
    return said


def _first_line(e: Exception) -> str:
    blocked = re.search(r"GLOBAL ([\w.]+)", str(e))
    return f"it needs {blocked.group(1)}" if blocked else str(e).strip().partition("\n")[0]


def main() -> None:
    """Converts ``IN OUT``, the script's arguments."""
    if len(sys.argv) != 3:
        print("arguments: PICKLE OUT.safetensors", file=sys.stderr)
        raise SystemExit(UsageError.exit_code)
    path, output = map(Path, sys.argv[1:])
    try:
        where = convert(path, output)
    except PncError as e:
        hint = f"\n{e.hint}" if e.hint else ""
        print(f"pnc: error: {e.message}{hint}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    print(f"{output}: the weights in {where} of {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
