"""Numbers that are none are refused where they arise: in weights as they are read, in features as a
network computes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadInput

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


def check_features(path: Path, features: Mapping[str, Tensor]) -> None:
    """Raises ``BadInput`` naming the network's file and the first of the positions or answers whose
    numbers are not finite, or too large to be squared."""
    for where, tensor in features.items():
        if not tensor.numel() or not tensor.is_floating_point():
            continue
        low, high = tensor.aminmax()
        if not bool((low > -LARGEST) & (high < LARGEST)):
            raise BadInput(
                f"{path}: on these images its {where} are not finite numbers, or beyond {LARGEST:g}",
                hint="does the network classify images at all? look at its weights and its std",
            )
