"""What in a traced graph does not depend on what the images show.

Sizes, devices and the like are found by running the graph on batches of two sizes: what is the
same is a constant, what grows with the batch is so many times the batch size.  Neither is lost by
a cut: both can be had from any tensor of the batch.  What follows from an image is found by
following the graph from its input.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from .nodes import node_name, path_of

SMALL, LARGE = 2, 3  # the batch sizes that are compared


@dataclass(frozen=True)
class Shape:
    """Stands for a tensor of this shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """So many times the batch size."""

    times: int


@dataclass(frozen=True)
class Device:
    """The device of the batch."""


class _Varies(Exception):
    """A value that is neither constant nor a multiple of the batch size."""


def holds_tensor(value: object) -> bool:
    """Whether a node's value is a tensor (or the ``Shape`` of one), or holds one."""
    if isinstance(value, (Shape, Tensor)):
        return True
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return any(holds_tensor(v) for v in value)
    return isinstance(value, dict) and any(holds_tensor(v) for v in value.values())


def known_values(small: dict[str, object], large: dict[str, object]) -> dict[str, object]:
    """The values, by node, that hold no tensor and follow from the batch size.

    ``small`` and ``large`` are the nodes' values with batches of two and of three images.
    """
    known = {}
    for name, value in small.items():
        if not holds_tensor(value):
            try:
                known[name] = _fold(value, large[name])
            except _Varies:
                pass
    return known


def _fold(a: object, b: object) -> object:
    """A node's value in terms of the batch, from what it is for a small one and for a large one."""
    if isinstance(a, torch.device):
        return Device()
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        if all(isinstance(v, int) for v in (*a, *b)) and a == b:
            return a
        return tuple(_fold(v, w) for v, w in zip(a, b))
    if isinstance(a, slice) and isinstance(b, slice):
        return slice(_fold(a.start, b.start), _fold(a.stop, b.stop), _fold(a.step, b.step))
    if type(a) is not type(b):
        raise _Varies
    if isinstance(a, (int, float, str, type(None), torch.dtype)) and a == b:
        return a
    if type(a) is int and a % SMALL == 0 and a // SMALL * LARGE == b:
        return Batch(a // SMALL)
    raise _Varies


def unfold(value: object, features: fx.Node) -> Argument:
    """A known value as an argument in the graph of ``features``, a tensor of the batch."""
    graph = features.graph
    if isinstance(value, Device):
        return graph.call_function(getattr, (features, "device"))
    if isinstance(value, Batch):
        size = graph.call_method("size", (features, 0))
        if value.times == 1:
            return size
        return graph.call_function(operator.mul, (size, value.times))
    if isinstance(value, (tuple, list)):
        return tuple(unfold(v, features) for v in value)
    if isinstance(value, slice):
        return slice(*(unfold(v, features) for v in (value.start, value.stop, value.step)))
    return cast(Argument, value)  # a number, a name, a type


def image_dependent(graph: fx.Graph, known: dict[str, object]) -> set[fx.Node]:
    """The nodes whose values depend on what the images show."""
    dependent: set[fx.Node] = set()
    before = -1
    while len(dependent) > before:
        before = len(dependent)
        for n in graph.nodes:
            if n.name in known:
                continue
            if n.op == "placeholder" or any(a in dependent for a in n.all_input_nodes):
                dependent.add(n)
                if _in_place(n):
                    dependent.update(_written(n.args[0]))
    return dependent


_VIEWS = {operator.getitem, "view", "reshape", "select", "narrow", "transpose", "permute"}
_VIEWS |= {"chunk", "unbind", "split", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"}
_IN_PLACE = {"iadd", "isub", "imul", "itruediv"}


def _in_place(n: fx.Node) -> bool:
    """Whether ``n`` writes to its first argument."""
    if n.op == "call_method":
        return path_of(n).endswith("_") and not path_of(n).endswith("__")
    if n.op == "call_function":
        return n.target is operator.setitem or node_name(n) in _IN_PLACE
    return False


def _written(n: object) -> set[fx.Node]:
    """A node that is written to and those it is a view of, up to what the network was given."""
    found = set()
    while isinstance(n, fx.Node) and n.op not in ("placeholder", "get_attr"):
        found.add(n)
        if n.target not in _VIEWS or not n.args:
            break
        n = n.args[0]
    return found
