"""Positions of a network from an ordinary forward pass: no tracing, so any network will do.

A pass over blank images is taped: which tensors each operation reads and makes, and what each
module returned meanwhile.  A module that is called once and returns one tensor can be tapped.
Where that tensor alone is still needed afterwards it is a position in the strict sense, the same
that :mod:`pnc_cli.network.graph` finds; beside these the tape offers the outputs of the network's
top-level blocks, which a tap, that only reads, may just as well have.

The pass runs on shapes alone where the network allows it.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import Incompatible, in_words
from ..manifest import Layout
from .flops import count_flops
from .layout import layout_of_shape
from .position import CONTAINERS, INPUT, Outline, Position, is_layer, tensors_in
from .shapes import device_of, on_shapes

BATCH = 23  # no other axis is likely to have this length
REACH = 64  # operations after a place that may tell its layout


def observe(model: nn.Module, input_size: tuple[int, int, int]) -> Outline:
    """The positions of an eval-mode network for images of ``input_size`` (C, H, W).

    Raises ``Incompatible`` when the network does not run on them.
    """
    try:
        tape = on_shapes(model, lambda m: _tape(m, input_size))
    except Exception as e:  # networks raise what they like
        raise Incompatible(
            f"the network {type(model).__name__} does not run on a batch of images of size "
            f"{tuple(input_size)}: {type(e).__name__}: {in_words(e)}",
            hint="is the input_size of the checkpoint's document right?",
        ) from e
    return Outline(model, tuple(_positions(model, tape, input_size)), tape.macs)


@dataclass
class _Return:
    """A module returned the one tensor ``value``, after ``at`` operations."""

    value: int
    at: int
    spent: int  # MACs so far
    shape: tuple[int, ...]
    names: list[str]  # modules that computed and returned it, the innermost first
    passed: list[str]  # modules that were given it and returned it as it was


@dataclass(frozen=True)
class _Op:
    """An operation that reads something that depends on the image."""

    at: int
    name: str
    args: tuple  # with tensors replaced by their shapes
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    shape: tuple[int, ...]  # of its first output


@dataclass
class _Call:
    """A module that is running."""

    name: str
    at: int  # operations before it
    first: int  # index of the first return within it


class Tape(TorchDispatchMode):
    """Records operations and returns of modules.

    A *value* is a tensor that depends on the image, numbered in order of appearance; a tensor that
    is written in place becomes a new value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[_Op] = []
        self.at = 0  # operations so far
        self.spent = 0
        self.born: list[int] = []
        self.last_use: list[int] = []
        self.returns: list[_Return] = []
        self._latest: dict[int, _Return] = {}  # of each value
        self.calls: list[_Call] = []
        self.count: dict[str, int] = {}
        self.macs: dict[str, int] = {}
        self._value: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._written: dict[StorageWeakRef, int] = {}  # storages that depend on the image

    def value_of(self, tensor: Tensor) -> int | None:
        """The number of a tensor; None if it does not depend on the image."""
        if (known := self._value.get(tensor)) is None and self._written:
            at = self._written.get(_storage(tensor))
            known = None if at is None else self.new(tensor, at)
        return known

    def new(self, tensor: Tensor, born: int) -> int:
        self.born.append(born)
        self.last_use.append(-1)
        self._value[tensor] = len(self.born) - 1
        return len(self.born) - 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        reads = [v for t in given if (v := self.value_of(t)) is not None]
        out = func(*args, **kwargs)
        self.at += 1
        for v in reads:
            self.last_use[v] = self.at
        if reads:
            self._spend(count_flops(func, args, kwargs, out) // (2 * BATCH))
            made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            for t in made:
                if any(t is g for g in given):  # written in place
                    self._written[_storage(t)] = self.at
            makes = tuple(self.new(t, self.at) for t in made)
            shown = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in args)
            shape = tuple(made[0].shape) if made else ()
            name = func._overloadpacket.__name__
            self.ops.append(_Op(self.at, name, shown, tuple(reads), makes, shape))
        return out

    def _spend(self, macs: int) -> None:
        name = self.calls[-1].name if self.calls else ""
        self.macs[name] = self.macs.get(name, 0) + macs
        self.spent += macs

    def entered(self, name: str) -> None:
        self.calls.append(_Call(name, self.at, len(self.returns)))

    def left(self, out: object, *, layer: bool) -> None:
        call = self.calls.pop()
        self.count[call.name] = self.count.get(call.name, 0) + 1
        found = tensors_in(out)
        value = self.value_of(found[0]) if len(found) == 1 else None
        if value is None or not call.name:
            return
        before = self._latest.get(value)
        if len(self.returns) > call.first and self.returns[-1].value == value:
            self.returns[-1].names.append(call.name)
        elif before and not layer and self.born[value] <= call.at:
            before.passed.append(call.name)
        else:
            self.returned(value, found[0], call.name)

    def returned(self, value: int, tensor: Tensor, name: str) -> None:
        new = _Return(value, self.at, self.spent, tuple(tensor.shape), [name], [])
        self.returns.append(new)
        self._latest[value] = new


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _tape(model: nn.Module, input_size: tuple[int, int, int]) -> Tape:
    with _taping(model, Tape()) as tape:
        x = torch.zeros(BATCH, *input_size, device=device_of(model))
        tape.returned(tape.new(x, 0), x, INPUT)
        tape.count[INPUT] = 1
        with tape:
            out = model(x)
    for t in tensors_in(out):
        if (value := tape.value_of(t)) is not None:
            tape.last_use[value] = tape.at + 1
    return tape


@contextlib.contextmanager
def _taping(model: nn.Module, tape: Tape) -> Iterator[Tape]:
    handles = []
    for name, module in named_blocks(model):
        handles.append(module.register_forward_pre_hook(lambda m, a, n=name: tape.entered(n)))
        leave = partial(tape.left, layer=is_layer(module))
        handles.append(module.register_forward_hook(lambda m, a, out, leave=leave: leave(out)))
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def named_blocks(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()`` without those inside layers, which FX would not look into either."""
    yield path, model
    if not is_layer(model):
        for name, child in model.named_children():
            yield from named_blocks(child, f"{path}.{name}" if path else name)


def _positions(
    model: nn.Module, tape: Tape, input_size: tuple[int, int, int]
) -> Iterator[Position]:
    """Yields what can be tapped, in the order in which it is computed."""
    total = sum(tape.macs.values()) or 1
    alive = _alive(tape)
    blocks = set(_blocks(model, {n for r in tape.returns for n in r.names}))
    for r in tape.returns:
        names = [n for n in (*reversed(r.names), *r.passed) if tape.count[n] == 1]
        alone = r.names == [INPUT] or (alive[r.at] == 1 and tape.last_use[r.value] > r.at)
        if not alone:
            names = [n for n in names if n in blocks]
        if not names or len(r.shape) < 2 or r.shape[0] != BATCH:
            continue
        layout = _layout(model, tape, r, input_size)
        if layout is not None and (alone or layout.grid != (1, 1)):
            yield Position(names[0], tuple(names[1:]), layout, r.spent / total, r.spent)


def _layout(
    model: nn.Module, tape: Tape, r: _Return, input_size: tuple[int, int, int]
) -> Layout | None:
    """How the features that ``r`` returned are laid out; None where they are of no known form."""
    if r.names == [INPUT]:
        return Layout("NCHW", r.shape[1:], (input_size[1], input_size[2]))
    prefix = getattr(model, "num_prefix_tokens", 0) or 0
    return layout_of_shape(r.shape[1:], input_size, prefix, _channel_axis(tape, r))


def _alive(tape: Tape) -> list[int]:
    """After each number of operations, how many values are still needed."""
    change = [0] * (tape.at + 3)
    for born, last in zip(tape.born, tape.last_use):
        if last > born:
            change[born] += 1
            change[last] -= 1
    return list(accumulate(change))


def _blocks(model: nn.Module, returned: set[str]) -> Iterator[str]:
    """The network's blocks: children of the network itself and of its containers.

    Containers are looked into, and so are blocks that return more than one tensor.
    """

    def within(module: nn.Module, path: str) -> Iterator[str]:
        main = module is model or isinstance(module, CONTAINERS)
        for name, child in module.named_children():
            full = f"{path}.{name}" if path else name
            if main and full in returned:
                yield full
            if full not in returned or isinstance(child, nn.Sequential):
                yield from within(child, full)

    return within(model, "")


def _channel_axis(tape: Tape, r: _Return) -> str | None:
    """Whether the operations that read ``r`` take channels first or last; None if none tells."""
    if len(r.shape) != 4:
        return None
    axes: dict[int, tuple] = {r.value: (0, 1, 2, 3)}  # per value, which axis of r each axis is
    start = bisect_right(tape.ops, r.at, key=lambda op: op.at)
    for op in tape.ops[start : start + REACH]:
        known = next((axes[v] for v in op.reads if v in axes), None)
        if known is None:
            continue
        if op.name in _CHANNELS_SECOND:
            channel = known[1]
        elif op.name in _CHANNELS_LAST:
            channel = known[-1]
        else:
            moved = _moved(op, known)
            if moved is not None:
                axes |= {v: moved for v in op.makes}
            continue
        if channel in (1, 3):
            return "first" if channel == 1 else "last"
    return None


def _moved(op: _Op, axes: tuple) -> tuple | None:
    """Where the axes of what ``op`` reads are in what it makes; None if that is not known."""
    rank = len(axes)
    if op.name == "permute":
        return tuple(axes[d] for d in op.args[1])
    if op.name == "transpose":
        order = list(range(rank))
        a, b = op.args[1] % rank, op.args[2] % rank
        order[a], order[b] = b, a
        return tuple(axes[d] for d in order)
    before = next((a for a in op.args if isinstance(a, tuple) and len(a) == rank), None)
    if op.shape == before:
        return axes
    if op.name in ("view", "_unsafe_view") and before and op.shape[-1:] == before[-1:]:
        return (*[None] * (len(op.shape) - 1), axes[-1])
    return None


_CHANNELS_SECOND = {
    "convolution",
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "native_group_norm",
    "avg_pool2d",
    "max_pool2d_with_indices",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
}
_CHANNELS_LAST = {"native_layer_norm", "mm", "addmm", "linear", "_fused_rms_norm"}
