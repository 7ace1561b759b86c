"""Makes the index of timm's architectures by building each of them, without memory for weights.

    python -m pnc_cli.network.registry    # rewrites pnc_cli/files/architectures.json

Each name is built twice, with other numbers of classes and image channels: the dimensions that
differ are the free ones.  Names with equal tensors are then compared module by module, and by
timm's default preprocessing, for what tells them apart.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from ..files import architectures
from ..files.architectures import (
    Free,
    Index,
    Match,
    Shapes,
    cache_file,
    installed_index,
    timm_version,
)
from ..files.identity import PREPROCESSING
from .blank import without_memory

Traits = dict[str, str]  # what -> how
CLASSES, CHANNELS = (7, 11), (3, 5)  # of the two builds; no architecture has such sizes of its own
COMPARED = 20  # candidates for a file of no architecture's shapes; a few seconds
INERT = ("Identity", "Dropout", "Dropout2d", "DropPath", "DropBlock2d", "PatchDropout")  # in eval
UNTOLD = {  # attributes that do nothing to a trained network in eval mode
    "training",
    "pretrained_cfg",
    "default_cfg",
    "feature_info",
    "grad_checkpointing",
    "drop_rate",
    "drop_path_rate",
    "drop_prob",
    "inplace",
    "scriptable",
    "init_values",
    "init_scale",
}


def on_meta(name: str, **args: Any) -> nn.Module:
    """The architecture without memory for its weights."""
    logging.getLogger("timm").setLevel(logging.ERROR)
    with without_memory():
        return timm.create_model(name, pretrained=False, **args).eval()


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's tensors, by name."""
    return {n: tuple(t.shape) for n, t in model.state_dict().items()}


def describe(name: str) -> tuple[dict[str, tuple[int, ...]], Free]:
    """Shapes of an architecture's tensors, and the dimensions (tensor, axis) that are free."""
    first = shapes_of(on_meta(name, num_classes=CLASSES[0]))
    try:
        second = shapes_of(on_meta(name, num_classes=CLASSES[1], in_chans=CHANNELS[1]))
    except (TypeError, ValueError, AssertionError, RuntimeError):  # images must be RGB
        second = shapes_of(on_meta(name, num_classes=CLASSES[1]))
    if first.keys() != second.keys():
        raise ValueError("its tensors' names depend on the number of classes")
    free = {
        (n, axis)
        for n, shape in first.items()
        for axis, (a, b) in enumerate(zip(shape, second[n]))
        if a != b
    }
    return first, frozenset(free)


def extend(
    index: Index, names: Iterable[str], done: Callable[[str], None] = lambda n: None
) -> None:
    """Adds architectures to ``index``, and what tells apart those that it confuses."""
    for name in names:
        try:
            index.add(name, *describe(name))
        except Exception as e:  # whatever an architecture may raise, the others are wanted
            index.unbuilt[name] = f"{type(e).__name__}: {e}"[:200]
        done(name)
    for together in index.ambiguous():
        if not all(n in index.traits for n in together):
            index.traits |= distinguish(together)
            done(", ".join(together))


def recognise(shapes: Shapes) -> Match:
    """The architectures with these tensors; if there are none, the nearest first.

    Nearest is the one with most tensors of the same shape, of at most ``COMPARED`` that are built.
    """
    match = current_index().find(shapes)
    if not match.near:
        return match
    told = {name: _differences(name, shapes) for name in match.near[:COMPARED]}
    near = sorted(match.near, key=lambda name: len(told.get(name, shapes)))
    return replace(match, near=tuple(near), difference=", ".join(told[near[0]][:1]))


def _differences(name: str, shapes: Shapes) -> list[str]:
    """Where tensors of these ``shapes`` are not those of the architecture ``name``."""
    expected, free = describe(name)

    def fixed(tensor: str, shape: Sequence[int]) -> list[int | None]:
        return [None if (tensor, axis) in free else n for axis, n in enumerate(shape)]

    return [
        f"tensor '{n}' has {list(shapes[n])}, that of {name} {list(shape)}"
        for n, shape in expected.items()
        if n in shapes and fixed(n, shapes[n]) != fixed(n, shape)
    ]


@functools.lru_cache(maxsize=1)
def current_index() -> Index:
    """The index of the timm that is installed.

    Where that is another than pnc came with, the names that are new in it are built, which takes
    seconds, and the result is kept in the user's cache.  Architectures whose tensors have changed
    are not noticed here; loading is strict, and refuses them.
    """
    index = copy.deepcopy(installed_index())
    version = timm_version()
    if version is None or index.timm == version:
        return index
    names = timm.list_models()
    index.keep(set(names))
    extend(index, sorted(set(names) - index.names))
    index.timm = version
    path = cache_file(version)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # without a cache it is made anew next time
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_text(index.dumps(), "utf-8")
        os.replace(hidden, path)
    return index


def distinguish(names: list[str]) -> dict[str, Traits]:
    """What tells networks with equal tensors apart; nothing where they are the same network.

    As few properties as tell all of them apart that can be, those of the network first.
    """
    known = {
        n: {**_properties(on_meta(n, num_classes=CLASSES[0])), **_preprocessing(n)} for n in names
    }
    keys = [
        k
        for k in dict.fromkeys(k for p in known.values() for k in p)
        if len({p.get(k) for p in known.values()}) > 1
    ]
    chosen: list[str] = []

    def apart(key: str, pair: tuple[str, str]) -> bool:
        return known[pair[0]].get(key) != known[pair[1]].get(key)

    pairs = [p for p in combinations(names, 2) if any(apart(k, p) for k in keys)]
    while pairs:
        best = max(keys, key=lambda k: sum(apart(k, p) for p in pairs))
        chosen.append(best)
        pairs = [p for p in pairs if not apart(best, p)]
    return {n: {k: known[n].get(k, "none") for k in chosen} for n in names}


def _properties(model: nn.Module) -> Traits:
    """Each module's class and plain attributes, but for what does nothing in eval mode."""
    found = {}
    for path, module in model.named_modules():
        if type(module).__name__ in INERT:
            continue
        found[path or "network"] = _kind(module)
        for attribute, value in vars(module).items():
            if attribute[0] != "_" and attribute not in UNTOLD and not isinstance(value, nn.Module):
                found[f"{path}.{attribute}".lstrip(".")] = _plain(value)
    return found


def _kind(module: nn.Module) -> str:
    """Its class; of a few modules in a row also theirs."""
    name = type(module).__name__
    if isinstance(module, nn.Sequential) and len(module) <= 3:
        name += f"({', '.join(type(m).__name__ for m in module)})"
    return name


def _preprocessing(name: str) -> Traits:
    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    resolved = resolve_data_config({}, pretrained_cfg=cfg.to_dict() if cfg else {})
    return {k: _plain(resolved[k]) for k in PREPROCESSING}


def _plain(value: Any) -> str:
    """A value in words that are the same in every process."""
    if isinstance(value, functools.partial):
        return f"{_plain(value.func)}({_plain(value.keywords)})"
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(v) for v in value]
        if isinstance(value, (set, frozenset)):
            items.sort()
        numbers = all(isinstance(v, int) for v in value)
        return "x".join(items) if numbers else f"({', '.join(items)})"
    if is_dataclass(value):
        return _plain({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, (bool, int, float, str, type(None), torch.dtype, torch.device)):
        return str(value)
    return type(value).__name__


def main() -> None:
    """Rewrites the index that pnc comes with."""
    index = Index(timm.__version__)
    count = len(timm.list_models())
    extend(index, timm.list_models(), lambda n: print(n, file=sys.stderr))
    path = Path(architectures.__file__).with_name(architectures.SHIPPED)
    path.write_text(index.dumps(), "utf-8")
    print(f"{path}: {count} names, {len(index.unbuilt)} not built")


if __name__ == "__main__":
    main()
