"""Ids for the channels that tensors' elements belong to, and which of them go together."""

from __future__ import annotations

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
