"""Numbers in a graph that count channels: where they are, and how they change with the channels.

``x.reshape(B, N, 3, 4, 48)`` says that there are four heads.  When one is removed, the 4 must
become a 3: channels stand in such a number as they stand in an axis of a weight.  So they do in
buffers that no checkpoint holds, such as masks, which are shortened here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..network.nodes import argument, node_name

_VIEWS = ("reshape", "view", "expand")
_SPLITS = ("chunk", "split", "split_with_sizes")
_WHOLE_AXES = {  # work on all of an axis, whatever its length; where it is among the arguments
    "unbind": (1, "dim"),
    "roll": (2, "dims"),
    "flip": (1, "dims"),
}


@dataclass(frozen=True)
class ChannelCount:
    """Numbers in the arguments of ``node`` that count channels along an axis of ``length``.

    They are the distances of ``bounds``: of (0, length) for a size, of all ends for a split, of
    (start, stop) for a slice.  ``slot`` says which size, which axis is split, which item.
    """

    node: str
    slot: int
    length: int
    bounds: tuple[int, ...]


@dataclass(frozen=True)
class BufferAxis:
    """An axis, of ``length``, of a buffer that no checkpoint holds."""

    buffer: str
    axis: int
    length: int


class Fixed(Exception):
    """The axis cannot become shorter at this node."""


def count_in(
    n: fx.Node, before: Tensor, after: Tensor | None
) -> tuple[ChannelCount, Tensor] | None:
    """The numbers in ``n`` that change when channels go, and the channel ids along their axis.

    ``before`` and ``after`` are the ids (in full shape, varying along one axis at most) of what
    goes into ``n`` and, if that is one tensor, of what comes out.  None where no number changes.

    Raises ``Fixed`` where the channels' axis must keep its length.
    """
    name = node_name(n)
    if name in _VIEWS or name == "unflatten":
        return None if after is None else _size(n, name, after)
    axis = _varying(before)
    if axis is None:
        return None
    if name in _SPLITS:
        return _split(n, name, axis, before)
    if name == "getitem":
        return _slice(n, axis, before)
    if name in _WHOLE_AXES:
        dims = argument(n, *_WHOLE_AXES[name], 0)
        if axis in [d % before.ndim for d in ([dims] if isinstance(dims, int) else dims)]:
            raise Fixed
    return None


def _size(n: fx.Node, name: str, after: Tensor) -> tuple[ChannelCount, Tensor] | None:
    """The size that a view gives to the channels' axis."""
    axis, sizes = _varying(after), _sizes(n)
    if axis is None or isinstance(sizes, fx.Node):
        return None  # a size that is taken from a tensor follows by itself
    slot = axis
    if name == "unflatten":  # its sizes are those of the axes from ``dim`` on
        dim = argument(n, 1, "dim", 0)
        slot = axis - (dim if dim >= 0 else dim + after.ndim - len(sizes) + 1)
        if not 0 <= slot < len(sizes):
            return None
    if sizes[slot] == -1:
        return None  # it follows from the others
    if not isinstance(sizes[slot], int):
        raise Fixed
    return _count(n, slot, axis, after, (0, after.shape[axis]))


def _split(n: fx.Node, name: str, axis: int, before: Tensor) -> tuple[ChannelCount, Tensor] | None:
    """The sizes of the parts that the channels' axis is split into."""
    if axis != argument(n, 2, "dim", 0) % before.ndim:
        return None
    how = n.args[1] if len(n.args) > 1 else next(v for k, v in n.kwargs.items() if k != "dim")
    sizes = _part_sizes(how, name == "chunk", before.shape[axis])
    return _count(n, axis, axis, before, (0, *np.cumsum(sizes).tolist()))


def _part_sizes(how: Any, is_number: bool, length: int) -> list[int]:
    """Sizes of the parts of ``length``: ``how`` is the size of each, or their number, or all."""
    if isinstance(how, int):
        size = -(-length // how) if is_number else how
        return [min(size, length - start) for start in range(0, length, size)]
    if isinstance(how, fx.Node) or any(isinstance(size, fx.Node) for size in how):
        raise Fixed
    return list(how)


def _slice(n: fx.Node, axis: int, before: Tensor) -> tuple[ChannelCount, Tensor] | None:
    """The start and the stop of a slice of the channels' axis."""
    items = _items(n)
    slot = _item_for(items, axis, before.ndim)
    if slot is None or items[slot] == slice(None):
        return None
    item = items[slot]
    if not isinstance(item, slice) or item.step not in (None, 1):
        raise Fixed
    if any(isinstance(bound, fx.Node) for bound in (item.start, item.stop)):
        raise Fixed
    start, stop, _ = item.indices(before.shape[axis])
    return _count(n, slot, axis, before, (start, max(start, stop)))


def _count(
    n: fx.Node, slot: int, axis: int, ids: Tensor, bounds: tuple[int, ...]
) -> tuple[ChannelCount, Tensor]:
    along = ids.movedim(axis, 0).flatten(1)[:, 0]
    return ChannelCount(n.name, slot, ids.shape[axis], bounds), along


def shrink(part: fx.GraphModule, gone: Mapping[ChannelCount | BufferAxis, np.ndarray]) -> None:
    """Changes numbers and buffers for what is ``gone``: indices along each one's axis."""
    nodes = {n.name: n for n in part.graph.nodes}
    for where, indices in gone.items():
        stays = np.ones(where.length, dtype=bool)
        stays[indices] = False
        if isinstance(where, BufferAxis):
            owner, _, leaf = where.buffer.rpartition(".")
            module, index = part.get_submodule(owner), torch.from_numpy(np.flatnonzero(stays))
            buffer = getattr(module, leaf)
            setattr(module, leaf, buffer.index_select(where.axis, index.to(buffer.device)))
        else:
            upto = np.concatenate([[0], np.cumsum(stays)])  # how many of the first i stay
            _rewrite(nodes[where.node], where.slot, upto[list(where.bounds)].tolist())
    part.recompile()


def _rewrite(n: fx.Node, slot: int, bounds: list[int]) -> None:
    """Puts the distances of ``bounds`` where :func:`count_in` found numbers."""
    name = node_name(n)
    distances = np.diff(bounds).tolist()
    if name in _SPLITS:
        n.target = "split" if n.op == "call_method" else torch.split
        n.args, n.kwargs = (n.args[0], distances, slot), {}
    elif name == "getitem":
        items = list(_items(n))
        items[slot] = slice(*bounds)
        n.args = (n.args[0], tuple(items))
    else:
        sizes = list(_sizes(n))
        sizes[slot] = distances[0]
        dim = (argument(n, 1, "dim", 0),) if name == "unflatten" else ()
        n.args, n.kwargs = (n.args[0], *dim, tuple(sizes)), {}


def _varying(ids: Tensor) -> int | None:
    """The axis that ids of full shape vary along, if any."""
    for axis, size in enumerate(ids.shape):
        if size > 1 and not bool((ids == ids.narrow(axis, 0, 1)).all()):
            return axis
    return None


def _sizes(n: fx.Node) -> Any:
    """The sizes given to a view: a sequence of numbers and nodes, or one node for all."""
    first = 2 if node_name(n) == "unflatten" else 1
    given = n.args[first:] or tuple(v for k, v in n.kwargs.items() if k != "dim")
    return given[0] if len(given) == 1 and not isinstance(given[0], int) else given


def _items(n: fx.Node) -> tuple[Any, ...]:
    """The items of an indexing expression."""
    return n.args[1] if isinstance(n.args[1], tuple) else (n.args[1],)


def _item_for(items: Sequence[object], axis: int, rank: int) -> int | None:
    """Which of the items of an indexing expression is for ``axis``; None if none is."""
    real = [i for i, item in enumerate(items) if item is not None and item is not Ellipsis]
    dots = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    before, after = [i for i in real if i < dots], [i for i in real if i > dots]
    if axis < len(before):
        return before[axis]
    if axis >= rank - len(after):
        return after[axis - (rank - len(after))]
    return None
