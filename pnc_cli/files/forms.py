"""The forms in which checkpoints come: files, timm's folders, shards, wrapped names, EMA twins.

What training left around a classifier's tensors is looked through, never taken off: names in the
file stay as they are, and only the network's own names are used to load, compare and infer.
Tensors that a network computes for itself, or has twice, may be missing from a file or stand in it
for nothing: :func:`readings` are a file's tensors as the architecture may have them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from ..errors import BadInput
from .inputs import remember

WEIGHTS = "model.safetensors"  # in a folder of timm's layout, beside config.json
_WRAPPERS = ("module.", "model.", "_orig_mod.", "state_dict.")  # DataParallel, Lightning, compile
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pth.tar", ".pt.tar", ".pkl")
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")  # in older Swins
COUNTER, STATISTICS = "num_batches_tracked", "running_mean"
_SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$")
_EMA = re.compile(r"^[a-z_]*ema[a-z_]*\.")
_CONVERT = "from pnc_cli.convert import main; main()"
_MERGE = (
    "import sys, safetensors.torch as s; "
    "s.save_file({k: v for f in sys.argv[2:] for k, v in s.load_file(f).items()}, sys.argv[1])"
)
_EXTRACT = (
    "import sys, safetensors.torch as s; p = sys.argv[2]; "
    "s.save_file({k[len(p):]: v for k, v in s.load_file(sys.argv[1]).items() if k.startswith(p)}, sys.argv[3])"
)
_LEAVE_OUT = (
    "import sys, safetensors as f, safetensors.torch as s; i, o, p, *out = sys.argv[1:]; "
    "s.save_file({k[len(p):]: v for k, v in s.load_file(i).items() if k.startswith(p) and k not in out}, o, "
    "f.safe_open(i, 'pt').metadata())"
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
            hint=conversion(folder / pickles[0], folder / WEIGHTS),
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


def conversion(path: Path, output: Path | None = None) -> str:
    """The command that makes a safetensors file of a pickle, where its writer is trusted.

    It writes ``output``, or a file in the working directory that is neither the pickle nor there.
    """
    made = output or Path(path.name.removesuffix(".tar")).with_suffix(".safetensors")
    return (
        "convert it where you trust it: "
        f'python -c "{_CONVERT}" {shlex.quote(str(path))} {shlex.quote(str(_free(made)))}'
    )


def _free(path: Path) -> Path:
    """``path`` itself, or another name where there is such a file."""
    found, count = path, 1
    while found.exists():
        found = path.with_stem(f"{path.stem}-converted" + (f"-{count}" if count > 1 else ""))
        count += 1
    return found


def without(path: Path, prefix: str, names: Collection[str]) -> str:
    """The command that writes a file with the tensors under ``prefix`` but for those of ``names``."""
    others = [n for n in names if n.startswith(prefix)]
    arguments = [str(path), str(_free(path.with_stem(f"{path.stem}-network"))), prefix, *others]
    return f'python -c "{_LEAVE_OUT}" {" ".join(map(shlex.quote, arguments))}'


def own_names(path: Path, names: Collection[str]) -> dict[str, str]:
    """Each tensor's name in the file -> its name in the network, without what wraps all of them.

    Raises ``BadInput`` for a file with the network's tensors and a moving average of them.
    """
    prefix = common_prefix(names)
    own = {n: n[len(prefix) :] for n in names}
    averaged = {n for n in own.values() if _EMA.match(n)}
    plain = set(own.values()) - averaged
    if averaged and plain:
        first, second = _usual_prefix(plain), _usual_prefix(averaged)
        once, again = {n[len(first) :] for n in plain}, {n[len(second) :] for n in averaged}
        if once <= again or again <= once:
            raise _twins(path, len(once & again), prefix + first, prefix + second)
    return own


def name_prefix(names: Mapping[str, str]) -> str:
    """What :func:`own_names` left out in front of each name."""
    return next((n.removesuffix(own) for n, own in names.items()), "")


def common_prefix(names: Collection[str]) -> str:
    """The dotted parts that all ``names`` begin with; "" if there are none.

    No classifier of timm's has any of its own, so they are what wrapped it: ``module.`` of
    DataParallel, ``_orig_mod.`` of torch.compile, ``timm_model.`` of transformers, ``model.`` or
    whatever its field was called of Lightning, an average's name.
    """
    prefix = ""
    while names:
        at = len(prefix)
        part = next(iter(names))[at:].partition(".")[0] + "."
        if not all(n.startswith(part, at) and n[at:] != part for n in names):
            break
        prefix += part
    return prefix


def _usual_prefix(names: Collection[str]) -> str:
    """The wrappers, one inside another, that all ``names`` begin with: of a part of a file's, whose
    own may share more."""
    prefix = ""
    while names:
        at = len(prefix)
        average = _EMA.match(next(iter(names))[at:])
        known = (*_WRAPPERS, average.group()) if average else _WRAPPERS
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


def is_counter(name: str) -> bool:
    """Whether a tensor counts BatchNorm's batches: without a part in inference, and left out by
    PyTorch before 0.4.1 and by what was ported from elsewhere."""
    return name.rpartition(".")[2] == COUNTER


def left_out(metadata: Mapping[str, str] | None, names: Mapping[str, str]) -> dict[str, str]:
    """Tensors that safetensors' ``save_model`` left out because others are the same memory:
    each one's name in the network -> that of the one that is kept.

    ``names`` are those in the file -> those in the network.
    """
    prefix = name_prefix(names)
    return {
        missing.removeprefix(prefix): names[kept]
        for missing, kept in (metadata or {}).items()
        if kept in names and missing not in names
    }


def readings(
    shapes: Mapping[str, Sequence[int]], tied: Mapping[str, str]
) -> Iterator[dict[str, Sequence[int]]]:
    """The tensors of a file as an architecture may list them: as they are first, then with those
    that are left out (``tied``), without those that are computed anew, and with counters."""

    def with_tied(have: dict[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        return have | {n: have[kept] for n, kept in tied.items() if kept in have}

    def without_computed(have: dict[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        return {n: s for n, s in have.items() if not any(c in n for c in COMPUTED)}

    def with_counters(have: dict[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        layers = [n.rpartition(".")[0] for n in have if n.rpartition(".")[2] == STATISTICS]
        return {f"{layer}.{COUNTER}": () for layer in layers} | have

    seen: list[dict[str, Sequence[int]]] = []
    for chosen in product((False, True), repeat=3):
        have = dict(shapes)
        for change, wanted in zip((with_tied, without_computed, with_counters), chosen):
            have = change(have) if wanted else have
        if have not in seen:
            seen.append(have)
            yield have
