"""Ids for the channels that tensors' elements belong to, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WHOLE = 0  # the id of all that stays


@dataclass(frozen=True)
class Seen:
    """A tensor: its shape, and the ids of its elements (1 along an axis where they are alike)."""

    shape: tuple[int, ...]
    ids: Tensor

    @property
    def full(self) -> Tensor:
        return self.ids.expand(self.shape)

    @property
    def is_whole(self) -> bool:
        return self.ids.numel() == 1 and self.ids.item() == WHOLE

    @property
    def varies(self) -> set[int]:
        return {axis for axis, size in enumerate(self.ids.shape) if size > 1}

    def to_rank(self, rank: int) -> Seen:
        """With axes of size 1 in front, as broadcasting adds them."""
        more = rank - len(self.shape)
        return Seen((1,) * more + self.shape, self.ids[(None,) * more])

    def wider(self, axis: int) -> Seen:
        """With an axis of size 1 that is ``axis`` (negative) in the result."""
        at = len(self.shape) + 1 + axis
        return Seen((*self.shape[:at], 1, *self.shape[at:]), self.ids.unsqueeze(at))


def whole(shape: Sequence[int]) -> Seen:
    return Seen(tuple(shape), torch.full((1,) * len(shape), WHOLE))


def along(ids: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """The ids along an axis, the only one that they vary along."""
    return ids.movedim(axis, 0).reshape(-1).expand(shape[axis])


def compact(ids: Tensor) -> Tensor:
    """Size 1 along every axis where all elements are alike."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1 and bool((ids == ids.narrow(axis, 0, 1)).all()):
            ids = ids.narrow(axis, 0, 1)
    return ids.clone()


class Ties:
    """Ids, and which of them go together."""

    def __init__(self) -> None:
        self.count = 1  # WHOLE
        self._pairs: list[Tensor] = []

    def fresh(self, n: int) -> Tensor:
        self.count += n
        return torch.arange(self.count - n, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        pairs = torch.stack(torch.broadcast_tensors(a, b)).flatten(1)
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.shape[1]:
            self._pairs.append(pairs)

    def components(self) -> Tensor:
        """(count,) the least id that each id is tied to, through any number of ties."""
        label = np.arange(self.count)
        a, b = torch.cat(self._pairs, 1).numpy() if self._pairs else np.zeros((2, 0), dtype=int)
        while len(a):
            low, high = np.minimum(label[a], label[b]), np.maximum(label[a], label[b])
            np.minimum.at(label, high, low)
            while (label != label[label]).any():
                label = label[label]
            apart = label[a] != label[b]
            a, b = a[apart], b[apart]
        return torch.from_numpy(label)
