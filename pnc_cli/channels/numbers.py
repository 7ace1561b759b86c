"""Sizes that stand in a graph as numbers: where they are, and how they change with the channels.

``x.reshape(B, N, 3, 4, 48)`` says that there are four heads.  When one is removed, the 4 must
become a 3: such a number is a place where channels stand, as an axis of a weight is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

_VIEWS = ("reshape", "view", "expand")
_SPLITS = ("chunk", "split", "split_with_sizes")


@dataclass(frozen=True, order=True)
class Place:
    """Numbers in the arguments of ``node`` that count channels along an axis of ``length``.

    They are the distances of ``bounds``: of (0, length) for a size, of all ends for a split, of
    (start, stop) for a slice.  ``slot`` says which size, which axis is split, which item.
    Without bounds, ``node`` is a buffer that no checkpoint holds, and ``slot`` an axis of it.
    """

    node: str
    slot: int
    length: int
    bounds: tuple[int, ...]


class Fixed(Exception):
    """The axis cannot become shorter at this node."""


def node_name(n: fx.Node) -> str:
    """What a node calls, by one name for ``torch.relu``, ``F.relu`` and ``Tensor.relu``."""
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")


def place_of(n: fx.Node, before: Tensor, after: Tensor | None) -> tuple[Place, Tensor] | None:
    """The numbers in ``n`` that change when channels go, and the channel ids along their axis.

    ``before`` and ``after`` are the ids (in full shape, varying along one axis at most) of what
    goes into ``n`` and, if that is one tensor, of what comes out.  None where no number changes.

    Raises ``Fixed`` where it cannot be changed.
    """
    name = node_name(n)
    if name in _VIEWS or name == "unflatten":
        return _size(n, name, after)
    axis = varying(before)
    if axis is None:
        return None
    if name in _SPLITS:
        return _split(n, name, axis, before)
    if name == "getitem":
        return _slice(n, axis, before)
    dims = ()
    if name in ("unbind", "roll", "flip"):
        place, key = {"unbind": (1, "dim"), "roll": (2, "dims"), "flip": (1, "dims")}[name]
        dims = _argument(n, place, key, 0)
        dims = [dims] if isinstance(dims, int) else dims
    if axis in [d % before.ndim for d in dims]:
        raise Fixed
    return None


def _size(n: fx.Node, name: str, after: Tensor | None):
    axis, sizes = varying(after), _sizes(n)
    slot = axis
    if axis is not None and name == "unflatten":
        dim = _argument(n, 1, "dim", 0)
        slot = axis - (dim if dim >= 0 else dim + after.ndim - len(sizes) + 1)
        if not 0 <= slot < len(sizes):
            return None
    if axis is None or isinstance(sizes, fx.Node) or sizes[slot] == -1:
        return None  # a size that is taken from a tensor, or from the others, follows by itself
    if not isinstance(sizes[slot], int):
        raise Fixed
    return _place(n, slot, axis, after, (0, after.shape[axis]))


def _split(n: fx.Node, name: str, axis: int, before: Tensor):
    how = n.args[1] if len(n.args) > 1 else next(v for k, v in n.kwargs.items() if k != "dim")
    if axis != _argument(n, 2, "dim", 0) % before.ndim:
        return None
    length = before.shape[axis]
    if name == "chunk":
        how = -(-length // how)
    sizes = (
        [how] * (length // how) + [length % how] * (length % how > 0)
        if isinstance(how, int)
        else how
    )
    if any(isinstance(s, fx.Node) for s in sizes):
        raise Fixed
    return _place(n, axis, axis, before, (0, *np.cumsum(sizes).tolist()))


def _slice(n: fx.Node, axis: int, before: Tensor):
    items = n.args[1] if isinstance(n.args[1], tuple) else (n.args[1],)
    slot = _item_for(items, axis, before.ndim)
    item = slice(None) if slot is None else items[slot]
    if item == slice(None):
        return None
    if not isinstance(item, slice) or item.step not in (None, 1):
        raise Fixed
    if any(isinstance(bound, fx.Node) for bound in (item.start, item.stop)):
        raise Fixed
    start, stop, _ = item.indices(before.shape[axis])
    return _place(n, slot, axis, before, (start, max(start, stop)))


def shrink(part: fx.GraphModule, gone: Mapping[Place, np.ndarray]) -> None:
    """Changes the numbers in the graph for what is ``gone``: indices along each place's axis."""
    nodes = {n.name: n for n in part.graph.nodes}
    for place, indices in gone.items():
        stays = np.ones(place.length, dtype=bool)
        stays[indices] = False
        if not place.bounds:
            owner, _, leaf = place.node.rpartition(".")
            module, index = part.get_submodule(owner), torch.from_numpy(np.flatnonzero(stays))
            buffer = getattr(module, leaf)
            setattr(module, leaf, buffer.index_select(place.slot, index.to(buffer.device)))
            continue
        upto = np.concatenate([[0], np.cumsum(stays)])  # how many of the first i stay
        _rewrite(nodes[place.node], place.slot, upto[list(place.bounds)].tolist())
    part.recompile()


def _rewrite(n: fx.Node, slot: int, bounds: list[int]) -> None:
    name = node_name(n)
    distances = np.diff(bounds).tolist()
    if name in _SPLITS:
        n.target = "split" if n.op == "call_method" else torch.split
        n.args, n.kwargs = (n.args[0], distances, slot), {}
    elif name == "getitem":
        items = list(n.args[1]) if isinstance(n.args[1], tuple) else [n.args[1]]
        items[slot] = slice(*bounds)
        n.args = (n.args[0], tuple(items))
    else:
        sizes = list(_sizes(n))
        sizes[slot] = distances[0]
        dim = (_argument(n, 1, "dim", 0),) if name == "unflatten" else ()
        n.args, n.kwargs = (n.args[0], *dim, tuple(sizes)), {}


def varying(ids: Tensor) -> int | None:
    """The axis that ids of full shape vary along, if any."""
    for axis, size in enumerate(ids.shape):
        if size > 1 and not bool((ids == ids.narrow(axis, 0, 1)).all()):
            return axis
    return None


def _place(n: fx.Node, slot: int, axis: int, ids: Tensor, bounds: tuple[int, ...]):
    along = ids.movedim(axis, 0).flatten(1)[:, 0]
    return Place(n.name, slot, ids.shape[axis], bounds), along


def _argument(n: fx.Node, place: int, name: str, default):
    return n.args[place] if len(n.args) > place else n.kwargs.get(name, default)


def _sizes(n: fx.Node):
    """The sizes given to a view: a sequence of numbers and nodes, or one node for all."""
    first = 2 if node_name(n) == "unflatten" else 1
    given = n.args[first:] or tuple(v for k, v in n.kwargs.items() if k != "dim")
    return given[0] if len(given) == 1 and not isinstance(given[0], int) else given


def _item_for(items: tuple, axis: int, rank: int) -> int | None:
    """Which of the items of an indexing expression is for ``axis``; None if none is."""
    real = [i for i, item in enumerate(items) if item is not None and item is not Ellipsis]
    dots = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    before, after = [i for i in real if i < dots], [i for i in real if i > dots]
    if axis < len(before):
        return before[axis]
    if axis >= rank - len(after):
        return after[axis - (rank - len(after))]
    return None
