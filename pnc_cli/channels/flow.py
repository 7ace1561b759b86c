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

import numpy as np
import torch
from torch import Tensor, fx, nn

from .numbers import node_name
from .ties import WHOLE, Seen, Ties, along, compact, whole

Site = tuple[str, int]  # a tensor of the state dict and an axis of it
FINE = 1 << 16  # elements up to which a bare parameter's are followed one by one
MANY = 1 << 22  # products of elements that are followed one by one, at most
_ELEMENTWISE = set(
    """
    relu relu_ relu6 gelu silu silu_ swish mish hardswish hardsigmoid hardtanh leaky_relu elu selu softplus
    sigmoid sigmoid_ tanh tanh_ dropout contiguous clone float to type_as abs exp neg sqrt rsqrt square
    clamp clamp_ pow add add_ iadd mul mul_ imul sub sub_ isub div div_ truediv itruediv maximum minimum
    where hard_sigmoid hard_swish quick_gelu gelu_tanh maybe_add_mask addcmul
""".split()
)
_RESHAPING = set(
    """
    reshape view flatten unflatten permute transpose swapaxes movedim squeeze unsqueeze unbind chunk split
    cat concat stack repeat reshape_as view_as getitem roll flip window_reverse window_reverse_nchw grid_reverse
    grid_reverse_nchw deblockify
""".split()
)
_OVER_AN_AXIS = set(
    "mean sum amax amin var std norm softmax log_softmax normalize logsumexp".split()
)
_SPATIAL = set(
    """
    interpolate pad avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d
    AvgPool2d MaxPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool2dSame MaxPool2dSame LPPool2d
    Upsample UpsamplingBilinear2d ZeroPad2d ReflectionPad2d ReplicationPad2d
""".split()
)
_ELEMENTWISE_MODULES = set(
    """
    ReLU ReLU6 GELU SiLU Hardswish Hardsigmoid LeakyReLU ELU SELU Mish Sigmoid Tanh Hardtanh Dropout Dropout2d
    Identity Softplus DropPath Swish HardSwish HardSigmoid HardMish GELUTanh QuickGELU SquaredReLU
""".split()
)
_CONVOLUTIONS = {"Conv1d", "Conv2d", "Conv2dSame"}  # not those that standardise their weights


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

    def run_node(self, n: fx.Node):
        out = super().run_node(n)
        if n.op == "output":
            self._leave(n)
        elif isinstance(out, Tensor):
            self.seen[n] = self._follow(n, out)
        elif isinstance(out, (tuple, list)) and any(isinstance(o, Tensor) for o in out):
            carried = self._carried(n) if node_name(n) in _RESHAPING else None
            if carried is None:
                self._leave(n)
                carried = tuple(whole(getattr(o, "shape", ())) for o in out)
            self.seen[n] = carried
        return out

    # what each kind of node does ------------------------------------------------------------------

    def _follow(self, n: fx.Node, out: Tensor) -> Seen:
        shape = tuple(out.shape)
        if n.op == "placeholder" or not out.is_floating_point():
            self._leave(n)
            return whole(shape)
        if n.op == "get_attr":
            return self._parameter(n.target, shape)
        if n.op == "call_module":
            ids = self._module(n, n.target, self.submodules[n.target], shape)
        else:
            ids = self._function(n, node_name(n), shape)
        if ids is None:
            self._leave(n)
            return whole(shape)
        return Seen(shape, ids)

    def _function(self, n: fx.Node, name: str, shape: tuple[int, ...]) -> Tensor | None:
        operands = [s for a in n.all_input_nodes if isinstance(s := self.seen.get(a), Seen)]
        if name in _RESHAPING:
            carried = self._carried(n)
            if not isinstance(carried, Seen) or carried.shape != shape:
                return None
            return (
                self._meet([carried, operands[1]], shape) if name.endswith("_as") else carried.ids
            )
        if not operands:
            return None
        x = operands[0]
        if name == "expand":
            return self._expanded(n, x, shape)
        if name in _ELEMENTWISE:
            return self._meet(operands, shape)
        if name in _OVER_AN_AXIS and len(operands) == 1:
            return self._over(x, _dims(n, name, len(x.shape)), shape)
        if name in _SPATIAL and len(operands) == 1:
            return self._merge(x.ids, range(-2, 0)) if len(x.shape) > 2 else None
        if name in ("layer_norm", "rms_norm") and n.args[0] in self.seen:
            for weights in operands[1:]:
                self.ties.tie(weights.ids, torch.tensor(WHOLE))
            return self._merge(x.ids, range(-len(n.args[1]), 0))
        if name in ("matmul", "bmm") and len(operands) == 2:
            a, b = (self.seen[a] for a in n.args)
            return self._matmul(a, b) if min(len(a.shape), len(b.shape)) > 1 else None
        if name == "scaled_dot_product_attention" and not n.kwargs.get("enable_gqa"):
            return self._attention(n, shape)
        if name == "linear":
            return self._bare_linear(n, x, len(shape))
        return None

    def _module(self, n: fx.Node, name: str, m: nn.Module, shape: tuple[int, ...]) -> Tensor | None:
        kind = type(m).__name__
        x = self.seen.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        if not isinstance(x, Seen):
            return None
        if kind in _ELEMENTWISE_MODULES:
            return x.ids
        if kind in _CONVOLUTIONS and len(x.shape) == m.weight.ndim:
            return self._convolution(name, m, x)
        if kind == "ConvMlp":  # a leaf of timm's, in VGG's head
            hidden = self._convolution(f"{name}.fc1", m.fc1, x)
            self._read(f"{name}.fc2.weight", Seen((1, m.fc1.out_channels, 1, 1), hidden), 1)
            return self._rows(f"{name}.fc2", m.fc2).reshape(1, -1, 1, 1)
        if isinstance(m, nn.Linear):
            self._read(f"{name}.weight", x, -1)
            return self._rows(name, m).expand((1,) * (len(shape) - 1) + (-1,))
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)) and _plain_activation(m):
            ids = self._merge(x.ids, [a for a in range(len(shape)) if a != 1])
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                if getattr(m, leaf, None) is not None:
                    self._site(f"{name}.{leaf}", 0, along(ids, 1, shape))
            return ids
        if kind in _SPATIAL:
            return self._merge(x.ids, range(-2, 0)) if len(shape) > 2 else None
        if isinstance(m, nn.LayerNorm):
            return self._merge(x.ids, range(-len(m.normalized_shape), 0))
        if isinstance(m, (nn.GroupNorm, nn.InstanceNorm2d)):
            return self._merge(x.ids, range(1, len(shape)))
        if isinstance(m, nn.Softmax):
            return self._merge(x.ids, [m.dim])
        if isinstance(m, nn.Flatten):
            return compact(m(x.full))
        return None

    def _convolution(self, name: str, m: nn.Conv1d | nn.Conv2d, x: Seen) -> Tensor:
        rows = self._rows(name, m)
        if m.groups == 1:
            self._read(f"{name}.weight", x, 1)
        else:  # whole groups, of one channel each when depthwise
            ids = self._merge(x.ids, [a for a in range(len(x.shape)) if a != 1])
            given = along(ids, 1, x.shape).reshape(m.groups, -1)
            written = rows.expand(m.out_channels).reshape(m.groups, -1)
            self.ties.tie(given, written[:, :1])
            self.ties.tie(written, written[:, :1])
        return rows.reshape(1, -1, *[1] * (len(x.shape) - 2))

    def _read(self, weight: str, x: Seen, axis: int) -> None:
        """The columns of ``weight`` are the channels along ``axis`` of ``x``."""
        axis %= len(x.shape)
        ids = self._merge(x.ids, [a for a in range(len(x.shape)) if a != axis])
        self._site(weight, 1, along(ids, axis, x.shape))
        self.readers.add(weight)

    def _rows(self, name: str, m: nn.Module) -> Tensor:
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

    def _parameter(self, name: str, shape: tuple[int, ...]) -> Seen:
        """A bare parameter or buffer: an id for each element, or for each row of a large one."""
        if name not in self.parameters:
            sizes = list(shape)
            if np.prod(sizes) > FINE:
                sizes[1:] = [1] * (len(sizes) - 1)
            if name not in self.stored and len(shape) > 1:  # a mask
                sizes = [1] * len(shape)
            count = int(np.prod(sizes, dtype=int))
            ids = self.ties.fresh(count) if count > 1 else torch.tensor([WHOLE])
            self.parameters[name] = ids.reshape(sizes)
        return Seen(shape, self.parameters[name])

    def _bare_linear(self, n: fx.Node, x: Seen, rank: int) -> Tensor | None:
        weight, bias = (
            n.kwargs.get(name, n.args[place] if len(n.args) > place else None)
            for place, name in ((1, "weight"), (2, "bias"))
        )
        weight = self.seen.get(weight)
        if not isinstance(weight, Seen):
            return None
        self.ties.tie(x.ids, torch.tensor(WHOLE))
        rows = self._merge(weight.ids, [1])[:, 0]
        if isinstance(bias, fx.Node):
            self.ties.tie(self.seen[bias].full, rows)
        return rows.reshape((1,) * (rank - 1) + (-1,))

    # arithmetic on ids ----------------------------------------------------------------------------

    def _leave(self, n: fx.Node) -> None:
        """What runs into something that is not understood stays whole."""
        for a in n.all_input_nodes:
            seen = self.seen.get(a, ())
            for s in [seen] if isinstance(seen, Seen) else seen:
                self.ties.tie(s.ids, torch.tensor(WHOLE))

    def _merge(self, ids: Tensor, axes: Sequence[int]) -> Tensor:
        """Ties along ``axes``: they do not shrink, or all at once."""
        for axis in axes:
            if ids.shape[axis] > 1:
                first = ids.narrow(axis, 0, 1)
                self.ties.tie(ids, first)
                ids = first
        return ids

    def _meet(self, operands: Sequence[Seen], shape: tuple[int, ...]) -> Tensor:
        """Elementwise, with broadcasting: what meets is tied."""
        rank = len(shape)
        aligned = [s.to_rank(rank) for s in operands]
        moving = [s for s in aligned if not s.is_whole]
        for s in sorted(moving, key=lambda s: -s.ids.numel()):
            others = {a for o in moving if o is not s for a in o.varies}
            if others and not others & s.varies and all(s.shape[a] == 1 for a in others):
                self.ties.tie(
                    s.ids, torch.tensor(WHOLE)
                )  # the same for all channels: a mask, a gate
                moving = [o for o in moving if o is not s]
        if not moving:
            return torch.full((1,) * rank, WHOLE)
        met = torch.broadcast_tensors(*(s.ids for s in moving))
        for other in met[1:]:
            self.ties.tie(met[0], other)
        fixed = [s for s in aligned if not any(s is m for m in moving)]
        return self._merge(met[0], [a for a in range(rank) if any(s.shape[a] > 1 for s in fixed)])

    def _over(self, x: Seen, dims: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        ids = self._merge(x.ids, dims)
        return ids if len(shape) == len(x.shape) else ids.squeeze(tuple(dims))

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

    def _sum_of_products(self, a: Seen, b: Seen, axis: int) -> Seen:
        """Where there are too many products, tokens that differ from each other are tied: axes that
        one of the two alone varies along."""
        shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
        axis %= len(shape)
        if math.prod(torch.broadcast_shapes(a.ids.shape, b.ids.shape)) > MANY:
            a, b = (
                Seen(s.shape, self._merge(s.ids, sorted(s.varies - other.varies - {axis})))
                for s, other in ((a, b), (b, a))
            )
        ids = self._merge(self._meet([a, b], shape), [axis])
        return Seen(shape[:axis] + shape[axis + 1 :], ids.squeeze(axis))

    def _matmul(self, a: Seen, b: Seen) -> Tensor:
        """(..., N, D) @ (..., D, M)"""
        return self._sum_of_products(a.wider(-1), b.wider(-3), -2).ids

    def _attention(self, n: fx.Node, shape: tuple[int, ...]) -> Tensor | None:
        """softmax(q k' + mask) v, for q, k, v (..., tokens, D)"""
        mask = n.args[3] if len(n.args) > 3 else n.kwargs.get("attn_mask")
        q, k, v = (self.seen[a] for a in n.args[:3])
        scores = self._sum_of_products(q.wider(-2), k.wider(-3), -1)
        if isinstance(mask, fx.Node):
            scores = Seen(scores.shape, self._meet([scores, self.seen[mask]], scores.shape))
        weights = Seen(scores.shape, self._merge(scores.ids, [-1]))
        return self._matmul(weights, v)

    def _carried(self, n: fx.Node) -> Seen | tuple[Seen, ...] | None:
        """A reshaping operation, done on the ids."""
        if any(
            isinstance(s := self.seen.get(a), Seen) and s.ids.numel() > 1 for a in n.all_input_nodes
        ):
            args = fx.node.map_arg(n.args, self._ids_for)
            kwargs = fx.node.map_arg(n.kwargs, self._ids_for)
            if n.op == "call_method":
                method = {"view": "reshape"}.get(n.target, n.target)
                out = getattr(args[0], method)(*args[1:], **kwargs)
            else:
                out = n.target(*args, **kwargs)
            if isinstance(out, Tensor):
                return Seen(tuple(out.shape), compact(out))
            return tuple(Seen(tuple(o.shape), compact(o)) for o in out)
        if node_name(n) == "getitem" and isinstance(picked := self.seen.get(n.args[0]), tuple):
            return picked[n.args[1]]
        return None

    def _ids_for(self, a: fx.Node):
        seen, value = self.seen.get(a), self.env[a]
        follows = isinstance(value, Tensor) and value.is_floating_point()
        return seen.full if follows and isinstance(seen, Seen) else value


def _dims(n: fx.Node, name: str, rank: int) -> list[int]:
    place = 2 if name in ("normalize", "norm") else 1
    dims = n.args[place] if len(n.args) > place else n.kwargs.get("dim")
    dims = (1 if name == "normalize" else None) if dims is None else dims
    dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    return [d % rank for d in dims]


def _plain_activation(m: nn.Module) -> bool:
    """A batch norm, perhaps with an activation that keeps channels apart (timm's BatchNormAct2d)."""
    return all(type(c).__name__ in _ELEMENTWISE_MODULES for c in m.children())
