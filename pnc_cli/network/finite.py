"""Numbers that are none are refused where they arise: in weights as they are read, in features as a
network computes them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import BadInput
from .position import tensors_in

LARGEST = 1e15  # of features: their squares, summed, are still numbers


def check_weights(path: Path, prefix: str, state: Mapping[str, Tensor]) -> None:
    """Raises ``BadInput`` naming the file and the first tensor of a network's ``state`` that has numbers
    that are not finite, or variances that are none; ``prefix`` is in front of its name in the file."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (value.item() for value in tensor.detach().aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            count = int((~torch.isfinite(tensor)).sum())
            raise _refused(path, prefix + name, f"has {count:,} numbers that are not finite")
        if name.endswith("running_var") and (low < 0 or high == 0):
            what = "negative variances" if low < 0 else "no variance but zero"
            raise _refused(path, prefix + name, f"has {what}, the least {low:g}")


def _refused(path: Path, tensor: str, what: str) -> BadInput:
    return BadInput(
        f"{path}: tensor '{tensor}' {what}",
        hint="training diverged, or the file was damaged: take an earlier checkpoint",
    )


def check_features(called: object, model: nn.Module, x: Tensor, told: Mapping[str, Tensor]) -> None:
    """Raises ``BadInput`` where anything that ``model``, which is ``called`` so, has ``told`` of images
    ``x`` (B, C, H, W) is not finite or too large to be squared, naming the module where that began."""
    for what, tensor in told.items():
        if not _is_sound(tensor):
            begun = _first_unsound(model, x)
            where = what if begun is None else f"features at '{begun}'"
            raise BadInput(
                f"{called}: on these images its {where} are not "
                f"finite numbers, or beyond {LARGEST:g}",
                hint="training diverged, or the file was damaged; or is its std not what it should be?",
            )


def _is_sound(tensor: Tensor) -> bool:
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return True  # shapes alone
    low, high = tensor.aminmax()
    return bool((low > -LARGEST) & (high < LARGEST))


class _Found(Exception):
    pass


def _first_unsound(model: nn.Module, x: Tensor) -> str | None:
    """The first module of ``model`` to put out such numbers; None where none does."""

    def look(name: str, module: nn.Module, args: tuple, out: object) -> None:
        if not all(map(_is_sound, tensors_in(out))):
            raise _Found(name)

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(partial(look, name)).remove)
        try:
            model(x)
        except _Found as e:
            return str(e)
        except Exception:  # whoever else looks on may stop it
            return None
    return None
