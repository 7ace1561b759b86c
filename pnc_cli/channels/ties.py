"""Ids for the channels that tensors' elements belong to, and which of them go together.

Arithmetic ties ids: what is added or multiplied elementwise meets, and an axis that is summed over
or normalised does not shrink.  Each kind of it is a method of :class:`Ties` that takes the ids of
the operands and returns those of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WHOLE = 0  # the id of all that stays
MANY = 1 << 22  # products of elements that are followed one by one, at most


@dataclass(frozen=True)
class Seen:
    """A tensor: its shape, and the ids of its elements (1 along an axis where they are alike)."""

    shape: tuple[int, ...]
    ids: Tensor

    @property
    def full(self) -> Tensor:
        """The ids in full shape."""
        return self.ids.expand(self.shape)

    @property
    def is_whole(self) -> bool:
        return self.ids.numel() == 1 and self.ids.item() == WHOLE

    @property
    def varies(self) -> set[int]:
        """The axes along which elements differ."""
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
    """A tensor that stays as it is."""
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
    """Ids, and which of them go together.

    Ids have the rank of their tensor, and size 1 along the axes where all elements are alike.
    """

    def __init__(self) -> None:
        self.count = 1  # WHOLE
        self._pairs: list[Tensor] = []

    def fresh(self, n: int) -> Tensor:
        """``n`` new ids, (n,)."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """What stands at the same place, with broadcasting, goes together."""
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

    def keep(self, ids: Tensor) -> None:
        """None of these is removed."""
        self.tie(ids, torch.tensor(WHOLE))

    def merge(self, ids: Tensor, axes: Sequence[int]) -> Tensor:
        """Ties along ``axes``: they do not shrink, or all at once."""
        for axis in axes:
            if ids.shape[axis] > 1:
                first = ids.narrow(axis, 0, 1)
                self.tie(ids, first)
                ids = first
        return ids

    def meet(self, operands: Sequence[Seen], shape: tuple[int, ...]) -> Tensor:
        """An elementwise result of ``shape``: what meets is tied, with broadcasting.

        Along the axes of an operand that stays whole the result does not shrink.
        """
        rank = len(shape)
        aligned = [s.to_rank(rank) for s in operands]
        moving = self._without_masks([s for s in aligned if not s.is_whole])
        if not moving:
            return torch.full((1,) * rank, WHOLE)
        met = torch.broadcast_tensors(*(s.ids for s in moving))
        for other in met[1:]:
            self.tie(met[0], other)
        fixed = [s for s in aligned if not any(s is m for m in moving)]
        return self.merge(met[0], [a for a in range(rank) if any(s.shape[a] > 1 for s in fixed)])

    def _without_masks(self, moving: list[Seen]) -> list[Seen]:
        """Leaves out, and whole, what is the same for all channels of the others: a mask, a gate."""
        for s in sorted(moving, key=lambda s: -s.ids.numel()):
            others = {a for o in moving if o is not s for a in o.varies}
            if others and not others & s.varies and all(s.shape[a] == 1 for a in others):
                self.keep(s.ids)
                moving = [o for o in moving if o is not s]
        return moving

    def matmul(self, a: Seen, b: Seen) -> Tensor:
        """(..., N, D) @ (..., D, M)"""
        return self._sum_of_products(a.wider(-1), b.wider(-3), -2).ids

    def attention(self, q: Seen, k: Seen, v: Seen, mask: Seen | None) -> Tensor:
        """softmax(q k' + mask) v, for q, k, v (..., tokens, D)"""
        scores = self._sum_of_products(q.wider(-2), k.wider(-3), -1)
        if mask is not None:
            scores = Seen(scores.shape, self.meet([scores, mask], scores.shape))
        return self.matmul(Seen(scores.shape, self.merge(scores.ids, [-1])), v)

    def _sum_of_products(self, a: Seen, b: Seen, axis: int) -> Seen:
        """Elementwise products, summed over ``axis``.

        Where there are too many products, tokens that differ from each other are tied: axes that
        one of the two alone varies along.
        """
        shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
        axis %= len(shape)
        if math.prod(torch.broadcast_shapes(a.ids.shape, b.ids.shape)) > MANY:
            a, b = (
                Seen(s.shape, self.merge(s.ids, sorted(s.varies - other.varies - {axis})))
                for s, other in ((a, b), (b, a))
            )
        ids = self.merge(self.meet([a, b], shape), [axis])
        return Seen(shape[:axis] + shape[axis + 1 :], ids.squeeze(axis))
