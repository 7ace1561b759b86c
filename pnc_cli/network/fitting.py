"""Whether a file's tensors are those of an architecture: what may be missing, and what else is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..files.forms import is_counter, left_out, without
from ..files.identity import Identity
from ..files.opened import Checkpoint
from .shapes import device_of, on_shapes

NAMED = 5  # tensors that a message lists
ANYWAY = "check the architecture and its model_args"


def passed_over(checkpoint: Checkpoint, model: nn.Module, identity: Identity) -> list[str]:
    """The file's tensors without a part in ``model``, which timm passes over too.

    The file may lack BatchNorm's counters, and names of parameters that it has under another
    name.  Raises ``BadInput``, naming the tensors, unless all others are there with their shapes.
    """
    found = {n: t.shape for n, t in checkpoint.weights.items()}
    expected = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    twice = same_tensors(model)
    missing = [
        n
        for n in expected
        if n not in found and not is_counter(n) and not any(o in found for o in twice.get(n, ()))
    ]
    strange = [n for n in found if n not in expected]
    dropped = dropped_by_timm(model, found) if strange and not missing else set()
    unexpected = [n for n in strange if n not in dropped]
    if missing or unexpected:
        raise _refusal(checkpoint, identity, expected, missing, unexpected)
    for n, shape in expected.items():
        if n in found and tuple(found[n]) != shape:
            raise BadInput(
                f"{_does_not_hold(checkpoint.path, identity)}: tensor '{n}' has shape "
                f"{list(found[n])}, expected {list(shape)}",
                hint=ANYWAY,
            )
    return [n for n in strange if n in dropped]


def same_tensors(model: nn.Module) -> dict[str, list[str]]:
    """Parameters and buffers that have several names: each of these -> all of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(tensor), []).append(name)
    return {n: together for together in names.values() if len(together) > 1 for n in together}


def dropped_by_timm(model: nn.Module, found: Mapping[str, Sequence[int]]) -> set[str]:
    """Names that timm's own filter of this architecture's checkpoints leaves out; none where it
    does more to them than that."""
    module = sys.modules.get(type(model).__module__)
    keep = getattr(module, "checkpoint_filter_fn", None)
    if keep is None:
        return set()
    given = {n: torch.empty(tuple(shape), device="meta") for n, shape in found.items()}
    try:
        kept = keep(dict(given), model)
    except Exception:  # it is made for other files, and may raise what it likes
        return set()
    if any(t is not given.get(n) for n, t in kept.items()):
        return set()
    return set(given) - set(kept)


def _does_not_hold(path: Path, identity: Identity) -> str:
    return f"{path}: does not hold a {identity.architecture} (as {identity.origin} says)"


def _refusal(
    checkpoint: Checkpoint,
    identity: Identity,
    expected: Mapping[str, tuple[int, ...]],
    missing: list[str],
    unexpected: list[str],
) -> BadInput:
    path, names = checkpoint.path, {own: n for n, own in checkpoint.names.items()}
    prefix = _prefix_of(expected, {own: t.shape for own, t in checkpoint.weights.items()})
    if prefix is not None:
        others = [n for n in names if not (n.startswith(prefix) and n[len(prefix) :] in expected)]
        under = f" under '{checkpoint.prefix}{prefix}'" if prefix else ""
        return BadInput(
            f"{path}: holds a {identity.architecture}{under}, and besides "
            f"{len(others)} {_tensors(others)} unexpected, with no part in it: {_listed(others)}",
            hint="write the network's own into another file: "
            + without(path, checkpoint.prefix + prefix, [names[n] for n in others]),
        )
    tied = left_out(checkpoint.target.metadata, checkpoint.names)
    if missing and all(n in tied for n in missing) and not unexpected:
        return BadInput(
            f"{_does_not_hold(path, identity)}: safetensors' save_model left out '{missing[0]}' as "
            f"the same tensor as '{tied[missing[0]]}', which in that architecture are two",
            hint=f"{ANYWAY}; or write the file with save_file, each tensor cloned",
        )
    parts = [
        f"{len(some)} {_tensors(some)} {word}, such as {_listed(some)}"
        for some, word in ((missing, "missing"), (unexpected, "unexpected"))
        if some
    ]
    return BadInput(f"{_does_not_hold(path, identity)}: {'; '.join(parts)}", hint=ANYWAY)


def _prefix_of(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Sequence[int]]
) -> str | None:
    """What is in front of all names that are needed, where all of them are there as expected."""
    needed = [n for n in expected if not is_counter(n)]
    rare = max(needed, key=lambda n: (n.count("."), len(n), n))
    for name in found:
        prefix = name.removesuffix(rare)
        if name.endswith(rare) and prefix[-1:] in ("", "."):
            if all(tuple(found.get(prefix + n, (-1,))) == expected[n] for n in needed):
                return prefix
    return None


def _tensors(names: Sequence[str]) -> str:
    return "tensor" if len(names) == 1 else "tensors"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{n}'" for n in names[:NAMED]) + more


def remark(path: Path, architecture: str, names: Sequence[str]) -> list[str]:
    """A sentence on tensors that are passed over."""
    if not names:
        return []
    return [
        f"{path.name}: {len(names)} {_tensors(names)} without a part in a {architecture} passed "
        f"over, as timm does: {_listed(names)}"
    ]


def check_answers(path: Path, model: nn.Module, classes: int, size: tuple[int, int, int]) -> None:
    """Whether the network makes one row of logits of an image of its own input size.

    Raises ``BadInput``: other networks are no classifiers that can be cloned between.
    """
    shown = "x".join(map(str, size))
    try:
        out = on_shapes(model, lambda m: m(torch.zeros(2, *size, device=device_of(m))))
    except Exception as e:  # networks raise what they like
        first = (str(e).strip().splitlines() or [""])[0][:200]
        raise BadInput(
            f"{path}: the network does not run on images of its input size {shown}: "
            f"{type(e).__name__}: {first}",
            hint="is input_size right, in the pretrained_cfg of the document beside it? and img_size "
            "in its model_args?",
        ) from e
    if isinstance(out, Tensor) and tuple(out.shape) == (2, classes):
        return
    raise BadInput(
        f"{path}: the network does not answer with one row of {classes} logits an image, but with "
        f"{_in_words(out)}",
        hint="pnc clones between plain classifiers: check model_args (global_pool, num_classes)",
    )


def _in_words(out: object) -> str:
    if isinstance(out, Tensor):
        return f"a tensor of shape {list(out.shape[1:])}"
    if isinstance(out, (tuple, list)):
        return f"{len(out)} outputs: " + ", ".join(map(_in_words, out[:NAMED]))
    if isinstance(out, dict):
        return f"{len(out)} outputs: " + ", ".join(map(str, list(out)[:NAMED]))
    return f"a {type(out).__name__}"
