"""Follows channels through an FX graph, beside the values.

Every element of every tensor gets the *id* of the channel it belongs to, and two kinds of facts
are gathered: which ids must go together (ties), and which rows and columns of which weights an
id stands for (sites).  Reshaping operations are simply done on the ids too, so heads, windows,
gates and concatenations need no rules of their own; only arithmetic does:

- elementwise: what meets is tied; a constant lets nothing shrink along its axes;
- sums, norms and softmax over an axis: that axis does not shrink, so it is tied together;
- products of matrices: a product of elements, summed over an axis;
- layers with weights: new ids for what they write, columns for what they read.

What is not understood ties its inputs to ``WHOLE``, which is never removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..network.nodes import argument, function_of, given_first, node_name, path_of
from .layers import Layer
from .operations import (
    CONVOLUTIONS,
    ELEMENTWISE,
    ELEMENTWISE_LAYERS,
    OVER_AN_AXIS,
    RESHAPING,
    SPATIAL,
)
from .ties import WHOLE, Seen, Ties, along, compact, whole

Site = tuple[str, int]  # a tensor of the state dict and an axis of it
FINE = 1 << 16  # elements up to which a bare parameter's are followed one by one


class Flow(fx.Interpreter):
    """Runs a graph on example features and follows channels through it."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__(part)
        self.ties = Ties()
        self.seen: dict[fx.Node, Seen | tuple[Seen, ...]] = {}
        self.sites: dict[Site, Tensor] = {}  # ids along an axis of a layer's weight
        self.readers: set[str] = set()  # weights whose axis 1 reads channels
        self.parameters: dict[str, Tensor] = {}  # ids of tensors that the graph uses bare
        self.stored = set(part.state_dict())

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "output":
            self._leave(n)
        elif isinstance(out, Tensor):
            self.seen[n] = self._follow(n, out)
        elif isinstance(out, (tuple, list)) and any(isinstance(o, Tensor) for o in out):
            carried = self._carried(n) if node_name(n) in RESHAPING else None
            if carried is None:
                self._leave(n)
                carried = tuple(whole(getattr(o, "shape", ())) for o in out)
            self.seen[n] = carried
        return out

    def _follow(self, n: fx.Node, out: Tensor) -> Seen:
        """The ids of what ``n`` gave."""
        shape = tuple(out.shape)
        ids: Tensor | None
        if n.op == "placeholder" or not out.is_floating_point():
            ids = None
        elif n.op == "get_attr":
            ids = self._parameter(path_of(n), shape)
        elif n.op == "call_module":
            ids = self._layer(n, shape)
        else:
            ids = self._function(n, shape)
        if ids is None:
            self._leave(n)
            return whole(shape)
        return Seen(shape, ids)

    def _of(self, value: object) -> Seen | None:
        """The ids of an argument, if it is the value of a node that is one tensor."""
        seen = self.seen.get(value) if isinstance(value, fx.Node) else None
        return seen if isinstance(seen, Seen) else None

    def _operands(self, n: fx.Node) -> list[Seen]:
        return [s for a in n.all_input_nodes if (s := self._of(a)) is not None]

    def _leave(self, n: fx.Node) -> None:
        """What runs into something that is not understood stays whole."""
        for a in n.all_input_nodes:
            seen = self.seen.get(a, ())
            for s in [seen] if isinstance(seen, Seen) else seen:
                self.ties.keep(s.ids)

    # functions and methods; None where one is not understood

    def _function(self, n: fx.Node, shape: tuple[int, ...]) -> Tensor | None:
        name, operands = node_name(n), self._operands(n)
        if name in RESHAPING:
            return self._reshaped(n, operands, shape)
        if not operands:
            return None
        x = operands[0]
        if name == "expand":
            return self._expanded(n, x, shape)
        if name in ELEMENTWISE:
            return self.ties.meet(operands, shape)
        if name in OVER_AN_AXIS and len(operands) == 1:
            dims = _dims(n, name, len(x.shape))
            ids = self.ties.merge(x.ids, dims)
            return ids if len(shape) == len(x.shape) else ids.squeeze(tuple(dims))
        if name in SPATIAL and len(operands) == 1:
            return self._spatial(x, len(x.shape))
        if name in ("layer_norm", "rms_norm") and self._of(given_first(n)) is not None:
            for weights in operands[1:]:
                self.ties.keep(weights.ids)
            return self.ties.merge(x.ids, range(-len(argument(n, 1, "normalized_shape")), 0))
        if name in ("matmul", "bmm") and len(operands) == 2:
            a, b = operands
            return self.ties.matmul(a, b) if min(len(a.shape), len(b.shape)) > 1 else None
        if name == "scaled_dot_product_attention" and not n.kwargs.get("enable_gqa"):
            return self._attention(n)
        if name == "linear":
            return self._bare_linear(n, x, len(shape))
        return None

    def _reshaped(
        self, n: fx.Node, operands: Sequence[Seen], shape: tuple[int, ...]
    ) -> Tensor | None:
        carried = self._carried(n)
        if not isinstance(carried, Seen) or carried.shape != shape:
            return None
        if node_name(n).endswith("_as"):  # it shrinks with what it is shaped like
            return self.ties.meet([carried, operands[1]], shape)
        return carried.ids

    def _carried(self, n: fx.Node) -> Seen | tuple[Seen, ...] | None:
        """A reshaping operation, done on the ids."""
        if any(s.ids.numel() > 1 for s in self._operands(n)):
            args: Any = fx.node.map_arg(n.args, self._ids_for)
            kwargs: Any = fx.node.map_arg(n.kwargs, self._ids_for)
            if n.op == "call_method":
                method = {"view": "reshape"}.get(path_of(n), path_of(n))
                out = getattr(args[0], method)(*args[1:], **kwargs)
            else:
                out = function_of(n)(*args, **kwargs)
            if isinstance(out, Tensor):
                return Seen(tuple(out.shape), compact(out))
            return tuple(Seen(tuple(o.shape), compact(o)) for o in out)
        first = given_first(n)
        picked = self.seen.get(first) if first is not None else None
        if node_name(n) == "getitem" and isinstance(picked, tuple):
            return picked[argument(n, 1, "index")]
        return None

    def _ids_for(self, a: fx.Node) -> Any:
        """What a reshaping operation is given on the ids: these for a tensor, sizes as they are."""
        seen, value = self._of(a), self.env[a]
        follows = isinstance(value, Tensor) and value.is_floating_point()
        return value if seen is None or not follows else seen.full

    def _expanded(self, n: fx.Node, x: Seen, shape: tuple[int, ...]) -> Tensor:
        """What is repeated a number of times can be repeated less, if what it meets shrinks."""
        x = x.to_rank(len(shape))
        sizes = n.args[1] if isinstance(n.args[1], (tuple, list)) else n.args[1:]
        if not x.is_whole or len(sizes) != len(shape):
            return x.ids
        counted = [
            a for a, size in enumerate(sizes) if isinstance(size, int) and shape[a] > x.shape[a]
        ]
        if len(counted) != 1:
            return x.ids
        fresh = self.ties.fresh(shape[counted[0]])
        return fresh.reshape([-1 if a == counted[0] else 1 for a in range(len(shape))])

    def _spatial(self, x: Seen, rank: int) -> Tensor | None:
        """What works on maps (..., H, W), each for itself."""
        return self.ties.merge(x.ids, range(-2, 0)) if rank > 2 else None

    def _attention(self, n: fx.Node) -> Tensor | None:
        q, k = self._of(argument(n, 0, "query")), self._of(argument(n, 1, "key"))
        v, mask = self._of(argument(n, 2, "value")), self._of(argument(n, 3, "attn_mask"))
        if q is None or k is None or v is None:
            return None
        return self.ties.attention(q, k, v, mask)

    def _bare_linear(self, n: fx.Node, x: Seen, rank: int) -> Tensor | None:
        """``F.linear`` with weights of the graph's own: its rows may go, not what it reads."""
        weight, bias = self._of(argument(n, 1, "weight")), self._of(argument(n, 2, "bias"))
        if weight is None:
            return None
        self.ties.keep(x.ids)
        rows = self.ties.merge(weight.ids, [1])[:, 0]
        if bias is not None:
            self.ties.tie(bias.full, rows)
        return rows.reshape((1,) * (rank - 1) + (-1,))

    def _parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A bare parameter or buffer: an id for each element, or for each row of a large one."""
        if name not in self.parameters:
            sizes = list(shape)
            if math.prod(sizes) > FINE:
                sizes[1:] = [1] * (len(sizes) - 1)
            if name not in self.stored and len(shape) > 1:  # a mask
                sizes = [1] * len(shape)
            count = math.prod(sizes)
            ids = self.ties.fresh(count) if count > 1 else torch.tensor([WHOLE])
            self.parameters[name] = ids.reshape(sizes)
        return self.parameters[name]

    # layers; None where one is not understood

    def _layer(self, n: fx.Node, shape: tuple[int, ...]) -> Tensor | None:
        m, x = self.submodules[path_of(n)], self._of(given_first(n))
        kind = type(m).__name__
        if x is None:
            return None
        if kind in ELEMENTWISE_LAYERS:
            return x.ids
        if kind in SPATIAL:
            return self._spatial(x, len(shape))
        if isinstance(m, nn.LayerNorm):
            return self.ties.merge(x.ids, range(-len(m.normalized_shape), 0))
        if isinstance(m, (nn.GroupNorm, nn.InstanceNorm2d)):
            return self.ties.merge(x.ids, range(1, len(shape)))
        if isinstance(m, nn.Softmax) and m.dim is not None:
            return self.ties.merge(x.ids, [m.dim])
        if isinstance(m, nn.Flatten):
            return compact(m(x.full))
        return self._weighted(path_of(n), m, x, len(shape))

    def _weighted(self, name: str, m: nn.Module, x: Seen, rank: int) -> Tensor | None:
        """A layer with a weight that can shrink."""
        kind = type(m).__name__
        if isinstance(m, (nn.Conv1d, nn.Conv2d)) and kind in CONVOLUTIONS:
            return self._convolution(name, m, x) if len(x.shape) == m.weight.ndim else None
        if kind == "ConvMlp":  # a leaf of timm's, in VGG's head
            fc1, fc2 = cast(nn.Conv2d, m.fc1), cast(nn.Conv2d, m.fc2)
            hidden = self._convolution(f"{name}.fc1", fc1, x)
            self._read(f"{name}.fc2.weight", Seen((1, fc1.out_channels, 1, 1), hidden), 1)
            return self._rows(f"{name}.fc2", fc2).reshape(1, -1, 1, 1)
        if isinstance(m, nn.Linear):
            self._read(f"{name}.weight", x, -1)
            return self._rows(name, m).expand((1,) * (rank - 1) + (-1,))
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)) and _plain_activation(m):
            return self._batch_norm(name, m, x)
        return None

    def _convolution(self, name: str, m: nn.Conv1d | nn.Conv2d, x: Seen) -> Tensor:
        rows = self._rows(name, m)
        if m.groups == 1:
            self._read(f"{name}.weight", x, 1)
        else:  # whole groups, of one channel each when depthwise
            given = self._channels(x, 1).reshape(m.groups, -1)
            written = rows.expand(m.out_channels).reshape(m.groups, -1)
            self.ties.tie(given, written[:, :1])
            self.ties.tie(written, written[:, :1])
        return rows.reshape(1, -1, *[1] * (len(x.shape) - 2))

    def _batch_norm(self, name: str, m: nn.BatchNorm1d | nn.BatchNorm2d, x: Seen) -> Tensor:
        ids = self.ties.merge(x.ids, [a for a in range(len(x.shape)) if a != 1])
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            if getattr(m, leaf, None) is not None:
                self._site(f"{name}.{leaf}", 0, along(ids, 1, x.shape))
        return ids

    def _channels(self, x: Seen, axis: int) -> Tensor:
        """The ids of the channels along ``axis`` of ``x``; the other axes do not shrink."""
        ids = self.ties.merge(x.ids, [a for a in range(len(x.shape)) if a != axis])
        return along(ids, axis, x.shape)

    def _read(self, weight: str, x: Seen, axis: int) -> None:
        """The columns of ``weight`` are the channels along ``axis`` of ``x``."""
        self._site(weight, 1, self._channels(x, axis % len(x.shape)))
        self.readers.add(weight)

    def _rows(self, name: str, m: Layer) -> Tensor:
        """The ids of what a layer writes."""
        ids = self.sites.get((f"{name}.weight", 0))
        if ids is None:
            ids = self.ties.fresh(len(m.weight)) if len(m.weight) > 1 else torch.tensor([WHOLE])
        self._site(f"{name}.weight", 0, ids)
        if m.bias is not None:
            self._site(f"{name}.bias", 0, ids)
        return ids

    def _site(self, tensor: str, axis: int, ids: Tensor) -> None:
        if (tensor, axis) in self.sites:  # a layer that is used twice
            self.ties.tie(self.sites[tensor, axis], ids)
        self.sites[tensor, axis] = ids


def _dims(n: fx.Node, name: str, rank: int) -> list[int]:
    """The axes that a sum, a norm or a softmax goes over."""
    dims = argument(n, 2 if name in ("normalize", "norm") else 1, "dim")
    if dims is None:
        dims = 1 if name == "normalize" else range(rank)
    return [d % rank for d in ([dims] if isinstance(dims, int) else dims)]


def _plain_activation(m: nn.Module) -> bool:
    """A batch norm, perhaps with an activation that keeps channels apart (timm's BatchNormAct2d)."""
    return all(type(c).__name__ in ELEMENTWISE_LAYERS for c in m.children())
