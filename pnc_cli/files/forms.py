"""The forms in which checkpoints come: files, timm's folders, shards, wrapped names, EMA twins.

What training left around a classifier's tensors is looked through, never taken off: names in the
file stay as they are, and only the network's own names are used to load, compare and infer.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import BadInput
from .inputs import remember

WEIGHTS = "model.safetensors"  # in a folder of timm's layout, beside config.json
WRAPPERS = ("module.", "model.", "_orig_mod.", "state_dict.")  # DataParallel, Lightning, compile
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$")
_EMA = re.compile(r"^[a-z_]*ema[a-z_]*\.")
_CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = d.get('state_dict', d.get('model', d)); "
    "s.save_file({k: v.clone().contiguous() for k, v in d.items() if hasattr(v, 'clone')}, sys.argv[2])"
)
_MERGE = (
    "import sys, safetensors.torch as s; "
    "s.save_file({k: v for f in sys.argv[2:] for k, v in s.load_file(f).items()}, sys.argv[1])"
)
_EXTRACT = (
    "import sys, safetensors.torch as s; p = sys.argv[2]; "
    "s.save_file({k[len(p):]: v for k, v in s.load_file(sys.argv[1]).items() if k.startswith(p)}, sys.argv[3])"
)


def checkpoint_file(path: Path) -> Path:
    """The safetensors file meant by ``path``, which may be a folder of timm's layout.

    Raises ``BadInput`` for a folder without one, and for checkpoints in several files.
    """
    if path.is_dir():
        found = path / WEIGHTS
        if not found.is_file():
            raise _no_checkpoint(path)
        remember(found, *documents_of(found))
        return found
    remember(path, *documents_of(path))
    if path.name.endswith(".safetensors.index.json") or _SHARD.search(path.name):
        raise _sharded(path, path.parent)
    return path


def documents_of(path: Path) -> tuple[Path, Path]:
    """Where it is written what the checkpoint ``path`` is: beside it, and in its folder."""
    return path.with_suffix(".json"), path.parent / "config.json"


def _no_checkpoint(folder: Path) -> BadInput:
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_file())
    except OSError as e:
        return BadInput(f"{folder}: cannot be read: {e.strerror}")
    if f"{WEIGHTS}.index.json" in names or any(map(_SHARD.search, names)):
        return _sharded(folder, folder)
    pickles = [n for n in names if n.endswith(_PICKLES)]
    others = [n for n in names if n.endswith(".safetensors")]
    if pickles and not others:
        return BadInput(
            f"{folder}: has no {WEIGHTS}, only the pickle {pickles[0]}, which pnc never opens",
            hint=conversion(folder / pickles[0]),
        )
    return BadInput(
        f"{folder}: a folder without {WEIGHTS}"
        + (f"; it has {', '.join(others[:5])}" if others else ""),
        hint=f"give {folder / others[0]}"
        if others
        else f"a folder of timm's has {WEIGHTS} and config.json",
    )


def _sharded(path: Path, folder: Path) -> BadInput:
    shards = sorted(p for p in folder.glob("*.safetensors") if _SHARD.search(p.name))
    files = " ".join(shlex.quote(str(p)) for p in shards) or "model-*-of-*.safetensors"
    return BadInput(
        f"{path}: a checkpoint in several files, expected one",
        hint=f'put them together: python -c "{_MERGE}" {WEIGHTS} {files}',
    )


def conversion(path: Path) -> str:
    """The command that makes a safetensors file of a pickle, where its writer is trusted."""
    return (
        "convert it where you trust it: "
        f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(path.stem + ".safetensors")}'
    )


def own_names(path: Path, names: Collection[str]) -> dict[str, str]:
    """Each tensor's name in the file -> its name in the network, without what wraps all of them.

    Raises ``BadInput`` for a file with the network's tensors and a moving average of them.
    """
    prefix = common_prefix(names)
    own = {n: n[len(prefix) :] for n in names}
    averaged = {n for n in own.values() if _EMA.match(n)}
    plain = set(own.values()) - averaged
    if averaged and plain:
        first, second = common_prefix(plain), common_prefix(averaged)
        once, again = {n[len(first) :] for n in plain}, {n[len(second) :] for n in averaged}
        if once <= again or again <= once:
            raise _twins(path, len(once & again), prefix + first, prefix + second)
    return own


def name_prefix(names: Mapping[str, str]) -> str:
    """What :func:`own_names` left out in front of each name."""
    return next((n.removesuffix(own) for n, own in names.items()), "")


def common_prefix(names: Collection[str]) -> str:
    """The wrappers, one inside another, that all ``names`` begin with; "" if there are none."""
    prefix = ""
    while names:
        at = len(prefix)
        wrapper = _EMA.match(next(iter(names))[at:])
        known = (*WRAPPERS, wrapper.group()) if wrapper else WRAPPERS
        found = [w for w in known if all(n.startswith(w, at) and n[at:] != w for n in names)]
        if not found:
            break
        prefix += found[0]
    return prefix


def _twins(path: Path, count: int, first: str, second: str) -> BadInput:
    plain = f"'{first}…'" if first else "their plain names"
    command = f"{shlex.quote(str(path))} {second} ema.safetensors"
    return BadInput(
        f"{path}: has {count} tensors twice, under {plain} and under '{second}…' (a moving average)",
        hint=f'put those you want into a file of their own: python -c "{_EXTRACT}" {command}',
    )
