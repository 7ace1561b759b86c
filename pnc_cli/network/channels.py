"""Which channels of a module can be removed together, read from its FX graph.

Every tensor's channel axis is followed through the operations that keep channels apart
(normalisation, activations, pooling, depthwise convolutions, adding, concatenating).  Channels
that meet are tied.  What is not understood ties nothing: the channels that run into it are left
whole.  So any architecture works, and some shrink less.  The idea of grouping by dependency is
DepGraph's (Fang et al., CVPR 2023).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Site = tuple[str, int]  # a tensor of the state dict and an axis of it


@dataclass(frozen=True)
class Group:
    """Channels of equal rank: each can be removed alone, by cutting its index out of every site.

    ``sites`` maps (tensor, axis) to an (n, m) array: the m indices that channel i of n has there.
    ``readers`` are the weights (convolutions, linear layers) that read the channels on axis 1.
    """

    sites: dict[Site, np.ndarray]
    readers: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(next(iter(self.sites.values())))

    @property
    def name(self) -> str:
        return min(t for t, axis in self.sites if axis == 0)


def prunable_groups(part: fx.GraphModule, example: Tensor) -> list[Group]:
    """The groups of channels of ``part`` that can be removed, in the order of the graph.

    ``example`` is a batch of features that ``part`` takes.
    """
    flow = _Flow(part)
    with torch.no_grad():
        flow.run(example)
    return flow.groups()


def kept_indices(
    group: Group, kept: np.ndarray, lengths: dict[Site, int]
) -> dict[Site, np.ndarray]:
    """Per site, the indices that stay when only the channels ``kept`` (n,) bool of a group do."""
    out = {}
    for site, indices in group.sites.items():
        stay = np.ones(lengths[site], dtype=bool)
        stay[indices[~kept].ravel()] = False
        out[site] = np.flatnonzero(stay)
    return out


def weight_cells(part: nn.Module, example: Tensor) -> dict[str, int]:
    """How often an image uses each weight of ``part``: cells of a convolution's output, tokens of
    a linear layer's.  MACs are numbers in the weight times this."""
    cells: dict[str, int] = {}

    def watch(name: str):
        def hook(m, args, out) -> None:  # noqa: ANN001
            per_image = out.numel() // len(out) // len(m.weight)
            cells[name] = cells.get(name, 0) + per_image

        return hook

    handles = [
        m.register_forward_hook(watch(f"{name}.weight"))
        for name, m in part.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        part(example)
    for handle in handles:
        handle.remove()
    return cells


@dataclass
class _Channels:
    """The channel axis of a value, and the id of the channel at each of its indices."""

    axis: int
    ids: np.ndarray


@dataclass
class _Union:
    parent: list[int] = field(default_factory=list)

    def fresh(self, n: int) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return np.arange(start, start + n)

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        for i, j in zip(a.tolist(), b.tolist()):
            i, j = self.find(i), self.find(j)
            if i != j:
                self.parent[max(i, j)] = min(i, j)


_POINTWISE = {
    torch.relu, F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu,
    F.mish, F.dropout, torch.sigmoid, torch.tanh, F.hardtanh, F.softplus,
}  # fmt: skip
_POINTWISE_METHODS = {
    "relu",
    "relu_",
    "sigmoid",
    "tanh",
    "contiguous",
    "clone",
    "sigmoid_",
    "float",
}
_BINARY = {
    operator.add,
    operator.iadd,
    operator.mul,
    operator.imul,
    operator.sub,
    torch.add,
    torch.mul,
}
_BINARY_METHODS = {"add", "add_", "mul", "mul_"}
_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Softplus,
)  # fmt: skip
_POINTWISE_NAMES = {"DropPath", "Swish", "Mish", "Sigmoid", "HardSwish", "HardSigmoid", "HardMish",
                    "GELU", "GELUTanh", "QuickGELU", "Tanh", "SquaredReLU"}  # fmt: skip


class _Flow(fx.Interpreter):
    """Runs a graph, following channels beside the values."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__(part)
        self.union = _Union()
        self.frozen: list[np.ndarray] = []
        self.site_ids: dict[Site, np.ndarray] = {}
        self.readers: dict[str, np.ndarray] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.known: dict[fx.Node, _Channels] = {}

    def run_node(self, n: fx.Node):
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.shapes[n] = tuple(out.shape)
        if n.op == "output":
            self._freeze(n)
        elif isinstance(out, Tensor) or n.op.startswith("call"):
            found = self._follow(n)
            if found is not None and self.shapes.get(n, ())[found.axis : found.axis + 1] == (
                len(found.ids),
            ):
                self.known[n] = found
            else:
                if found is not None:
                    self.frozen.append(found.ids)
                self._freeze(n)
        return out

    def _freeze(self, n: fx.Node) -> None:
        """What runs into something that is not understood stays whole."""
        for a in n.all_input_nodes:
            if a in self.known:
                self.frozen.append(self.known[a].ids)

    def _follow(self, n: fx.Node) -> _Channels | None:
        if n.op == "call_module":
            return self._module(n, n.target, self.submodules[n.target])
        first = n.args[0] if n.args and isinstance(n.args[0], fx.Node) else None
        given = self.known.get(first)
        if n.op == "call_function":
            if n.target in _POINTWISE:
                return given
            if n.target in _BINARY:
                return self._binary(n)
            if n.target is torch.cat:
                return self._concatenate(n)
            if n.target is torch.flatten:
                return self._flatten(n, given)
            if n.target in (F.adaptive_avg_pool2d, F.avg_pool2d, F.max_pool2d):
                return given if given and given.axis == 1 else None
        if n.op == "call_method":
            if n.target in _POINTWISE_METHODS:
                return given
            if n.target in _BINARY_METHODS:
                return self._binary(n)
            if n.target == "mean":
                return self._mean(n, given)
            if n.target == "flatten":
                return self._flatten(n, given)
        return None

    def _module(self, n: fx.Node, name: str, m: nn.Module) -> _Channels | None:
        given = self.known.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        rank = len(self.shapes.get(n, ()))
        if isinstance(m, nn.Conv2d):
            return self._convolution(name, m, given)
        if isinstance(m, nn.Linear):
            if given is not None and given.axis != rank - 1:
                self.frozen.append(given.ids)
            elif given is not None:
                self._site(f"{name}.weight", 1, given.ids)
                self.readers[f"{name}.weight"] = given.ids
            return _Channels(rank - 1, self._outputs(name, m, m.out_features))
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
            if given is None or given.axis != 1 or not _plain_norm_act(m):
                return None
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                if getattr(m, leaf, None) is not None:
                    self._site(f"{name}.{leaf}", 0, given.ids)
            return given
        if isinstance(m, _POINTWISE_MODULES) or type(m).__name__ in _POINTWISE_NAMES:
            return given
        if isinstance(m, _POOLS):
            return given if given and given.axis == 1 else None
        if isinstance(m, nn.Flatten):
            return self._flatten(n, given) if (m.start_dim, m.end_dim) == (1, -1) else None
        if type(m).__name__ in ("FastAdaptiveAvgPool2d", "FastAdaptiveAvgPool", "LinearFlatten"):
            return _Channels(1, given.ids) if given and given.axis == 1 else None
        return None

    def _convolution(self, name: str, m: nn.Conv2d, given: _Channels | None) -> _Channels | None:
        if given is not None and given.axis != 1:
            return None
        if m.groups == 1:
            if given is not None:
                self._site(f"{name}.weight", 1, given.ids)
                self.readers[f"{name}.weight"] = given.ids
            return _Channels(1, self._outputs(name, m, m.out_channels))
        if m.groups == m.in_channels == m.out_channels and given is not None:  # depthwise
            self._site(f"{name}.weight", 0, given.ids)
            if m.bias is not None:
                self._site(f"{name}.bias", 0, given.ids)
            return given
        return None

    def _outputs(self, name: str, m: nn.Module, count: int) -> np.ndarray:
        ids = self.site_ids.get((f"{name}.weight", 0))
        ids = self.union.fresh(count) if ids is None else ids
        self._site(f"{name}.weight", 0, ids)
        if m.bias is not None:
            self._site(f"{name}.bias", 0, ids)
        return ids

    def _site(self, tensor: str, axis: int, ids: np.ndarray) -> None:
        if (tensor, axis) in self.site_ids:  # a layer that is used twice
            self.union.tie(self.site_ids[tensor, axis], ids)
        self.site_ids[tensor, axis] = ids

    def _binary(self, n: fx.Node) -> _Channels | None:
        nodes = [a for a in n.args[:2] if isinstance(a, fx.Node) and a in self.shapes]
        known = [self.known.get(a) for a in nodes]
        if len(nodes) == 1 and len(n.args) == 2 and not isinstance(n.args[1], fx.Node):
            return known[0]
        if len(nodes) != 2 or None in known or known[0].axis != known[1].axis:
            return None
        if len(known[0].ids) != len(known[1].ids) or len(self.shapes[nodes[0]]) != len(
            self.shapes[nodes[1]]
        ):
            return None
        self.union.tie(known[0].ids, known[1].ids)
        return known[0]

    def _concatenate(self, n: fx.Node) -> _Channels | None:
        axis = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else 0)
        parts = [self.known.get(a) for a in n.args[0]]
        if None in parts or any(p.axis != axis for p in parts):
            return None
        return _Channels(axis, np.concatenate([p.ids for p in parts]))

    def _mean(self, n: fx.Node, given: _Channels | None) -> _Channels | None:
        axes = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", ())
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        rank = len(self.shapes[n.args[0]])
        axes = tuple(a % rank for a in axes)
        if given is None or not axes or given.axis in axes or 0 in axes:
            return None
        keep = n.kwargs.get("keepdim", n.args[2] if len(n.args) > 2 else False)
        return _Channels(
            given.axis if keep else given.axis - sum(a < given.axis for a in axes), given.ids
        )

    def _flatten(self, n: fx.Node, given: _Channels | None) -> _Channels | None:
        """(B, C, ...) -> (B, C ...): each channel has as many indices as it has cells."""
        shape, out = self.shapes.get(n.args[0]), self.shapes.get(n)
        if given is None or given.axis != 1 or len(out) != 2 or out[0] != shape[0]:
            return None
        return _Channels(1, np.repeat(given.ids, int(np.prod(shape[2:], dtype=int))))

    def groups(self) -> list[Group]:
        """Channels with the same sites, the same number of indices at each, and nothing frozen."""
        frozen = {self.union.find(i) for ids in self.frozen for i in ids.tolist()}
        channels: dict[int, dict[Site, list[int]]] = {}
        for site, ids in self.site_ids.items():
            for index, i in enumerate(ids.tolist()):
                channels.setdefault(self.union.find(i), {}).setdefault(site, []).append(index)
        gathered: dict[tuple, list[dict[Site, list[int]]]] = {}
        for root, sites in channels.items():
            if root not in frozen:
                key = tuple(sorted((site, len(indices)) for site, indices in sites.items()))
                gathered.setdefault(key, []).append(sites)
        found = []
        for key, members in gathered.items():
            names = [site for site, _ in key]
            readers = tuple(t for t, axis in names if axis == 1 and t in self.readers)
            writers = [t for t, axis in names if axis == 0]
            if readers and writers and len(members) > 1:
                sites = {site: np.array([m[site] for m in members]) for site in names}
                found.append(Group(sites, readers))
        return found


def _plain_norm_act(m: nn.Module) -> bool:
    """A batch norm, perhaps with an activation that keeps channels apart (timm's BatchNormAct2d)."""
    inside = [c for c in m.children()]
    return all(
        isinstance(c, _POINTWISE_MODULES) or type(c).__name__ in _POINTWISE_NAMES for c in inside
    )
