"""Positions of a network and the part after a cut, read from its FX graph.

A *position* is a node of the graph after which it alone is still needed, and which is the output
of some module, so it has a name a person can type (``layer3``, ``blocks.7``).  Cutting there
splits the network in two exactly: the part after the cut, fed the recorded value, gives the
network's logits bit for bit.  No table per architecture is needed.
"""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import Incompatible
from .layout import Layout, map_kind, token_grid

INPUT = "input"  # the position before the first layer: the preprocessed image itself


@dataclass(frozen=True)
class Position:
    """A place where exactly one tensor is alive."""

    name: str  # the module that outputs the tensor, or "input"
    aliases: tuple[str, ...]  # other modules that output the same tensor (layer1.1 for layer1)
    node: str  # the FX node
    layout: Layout
    depth: float  # share of the network's MACs spent up to here, 0 to 1


@dataclass(frozen=True)
class Trace:
    """A traced network: its graph, what each node returns, and its positions in order."""

    root: nn.Module
    graph: fx.Graph
    positions: tuple[Position, ...]
    constants: dict[str, object]  # non-tensor values that do not depend on the batch, by node
    macs: dict[str, int]  # multiply-accumulates per image, by node

    def position(self, name: str) -> Position:
        for p in self.positions:
            if name == p.name or name in p.aliases:
                return p
        raise Incompatible(
            f"'{name}' is not a position of this network",
            hint="positions are: " + ", ".join(p.name for p in self.positions),
        )

    def macs_after(self, position: Position) -> int:
        """MACs per image of what comes after ``position``."""
        names = [n.name for n in self.graph.nodes]
        return sum(self.macs.get(n, 0) for n in names[names.index(position.node) + 1 :])


class _Tracer(fx.Tracer):
    """timm's leaf modules and functions, plus a note of which module returned which node."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._leaves = (*get_notrace_modules(), nn.Linear)  # timm has a Linear of its own
        self.returned: dict[fx.Node, list[str]] = {}
        self.calls: dict[str, int] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m, forward, args, kwargs):  # noqa: ANN001 - torch.fx's signature
        path = self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        self.calls[path] = self.calls.get(path, 0) + 1
        if isinstance(out, fx.Proxy):
            self.returned.setdefault(out.node, []).append(path)
        return out


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Traces an eval-mode network for images of ``input_size`` (C, H, W).

    Raises ``Incompatible`` when the architecture cannot be traced.
    """
    tracer = _Tracer()
    defaults = {
        name: p.default
        for name, p in list(inspect.signature(model.forward).parameters.items())[1:]
        if p.default is not inspect.Parameter.empty
    }
    try:
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as e:  # FX raises many kinds; all mean the same to the user
        raise Incompatible(
            f"the architecture {type(model).__name__} cannot be traced by torch.fx: {e}",
            hint="use another architecture as the source",
        ) from e
    _drop_dead(graph)
    small, large = _run(model, graph, input_size, 2), _run(model, graph, input_size, 3)
    constants = {
        n: v for n, v in small.values.items() if not _holds_tensor(v) and v == large.values[n]
    }
    return Trace(
        root=model,
        graph=graph,
        positions=tuple(_positions(model, graph, tracer, small, large, constants, input_size)),
        constants=constants,
        macs=small.macs,
    )


def part_after(tr: Trace, position: Position, outputs: list[str]) -> fx.GraphModule:
    """The network after ``position``: a module from the position's tensor to the named nodes.

    Parameter-only expressions computed before the cut are carried along; sizes that do not
    depend on the batch become constants.  Modules are shared with ``tr.root``, not copied.
    """
    nodes = list(tr.graph.nodes)
    cut = nodes.index(next(n for n in nodes if n.name == position.node))
    depends = _input_dependent(tr.graph)
    part = fx.Graph()
    env: dict[fx.Node, object] = {nodes[cut]: part.placeholder("features")}

    def value(n: fx.Node) -> object:
        if n not in env:
            if n.name in tr.constants:
                env[n] = tr.constants[n.name]
            elif n not in depends:
                for a in n.all_input_nodes:
                    value(a)
                env[n] = part.node_copy(n, value)
            else:
                raise Incompatible(f"'{n.name}' is still needed after '{position.name}'")
        return env[n]

    for n in nodes[cut + 1 :]:
        if n.op != "output" and n.name not in tr.constants and (n in depends):
            env[n] = part.node_copy(n, value)
    by_name = {n.name: n for n in nodes}
    part.output(tuple(value(by_name[o]) for o in outputs))
    _drop_dead(part)
    part.lint()
    return fx.GraphModule(tr.root, part)


_PURE = {getattr, operator.getitem, operator.eq, operator.ne, operator.floordiv, operator.mul}
_PURE |= {operator.add, operator.sub, operator.mod, operator.truediv, operator.ge, operator.le}
_PURE |= {operator.gt, operator.lt, operator.not_, bool, int}


def _drop_dead(graph: fx.Graph) -> None:
    """Removes assertions and the size arithmetic that only they used; in-place work stays."""
    for n in list(graph.nodes):
        if n.op == "call_function" and n.target is torch._assert:
            graph.erase_node(n)
    for n in reversed(list(graph.nodes)):
        pure = n.op == "get_attr" or (n.op == "call_function" and n.target in _PURE)
        pure = pure or (n.op == "call_method" and n.target in ("size", "dim"))
        if pure and not n.users:
            graph.erase_node(n)


def _input_dependent(graph: fx.Graph) -> set[fx.Node]:
    dependent: set[fx.Node] = set()
    for n in graph.nodes:
        if n.op == "placeholder" or any(a in dependent for a in n.all_input_nodes):
            dependent.add(n)
    return dependent


class _run(fx.Interpreter):
    """One forward pass, keeping shapes instead of tensors, and counting MACs per node."""

    def __init__(self, model: nn.Module, graph: fx.Graph, input_size, batch: int) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.values: dict[str, object] = {}
        self.macs: dict[str, int] = {}
        self.batch = batch
        with torch.no_grad():
            self.run(torch.zeros(batch, *input_size))

    def run_node(self, n: fx.Node):
        with _FlopCounter() as counter:
            out = super().run_node(n)
        if counter.flops:
            self.macs[n.name] = counter.flops // (2 * self.batch)
        self.values[n.name] = _Shape(out.shape) if isinstance(out, Tensor) else out
        return out


class _FlopCounter(TorchDispatchMode):
    """Counts with PyTorch's own formulas (its FlopCounterMode breaks on some no-grad graphs)."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is None and "scaled_dot_product" in str(func):
            count = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


class _Shape(tuple):
    """Stands for a tensor of this shape."""


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (_Shape, Tensor)):
        return True
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, dict) and any(_holds_tensor(v) for v in value.values())


def _positions(model, graph, tracer, small, large, constants, input_size):
    """Yields the positions in topological order."""
    nodes = list(graph.nodes)
    order = {n: i for i, n in enumerate(nodes)}
    dependent = _input_dependent(graph)
    last_use = {n: max((order[u] for u in n.users), default=-1) for n in nodes}
    total = sum(small.macs.values()) or 1
    spent, alive = 0, []
    seen_input = False
    for i, n in enumerate(nodes[:-1]):
        spent += small.macs.get(n.name, 0)
        alive = [a for a in alive if last_use[a] > i]
        if n in dependent and n.name not in constants and last_use[n] > i:
            alive.append(n)
        if alive != [n]:
            continue
        names = [p for p in reversed(tracer.returned.get(n, [])) if p and tracer.calls[p] == 1]
        if n.op == "placeholder" and not seen_input:
            names, seen_input = [INPUT], True
        a, b = small.values[n.name], large.values[n.name]
        if not names or not isinstance(a, _Shape) or len(a) < 2 or a[0] != 2 or b[0] != 3:
            continue
        if (layout := _layout(model, n, tuple(a[1:]), input_size)) is None:
            continue
        yield Position(names[0], tuple(names[1:]), n.name, layout, spent / total)


def _layout(model, node: fx.Node, shape: tuple[int, ...], input_size) -> Layout | None:
    if node.op == "placeholder" or (len(shape) == 3 and shape == tuple(input_size)):
        return Layout("NCHW", shape, shape[1:])
    if len(shape) == 1:
        return Layout("NC", shape, (1, 1))
    if len(shape) == 2:
        split = token_grid(
            shape[0], getattr(model, "num_prefix_tokens", 0) or 0, input_size[2] / input_size[1]
        )
        return split and Layout("NLC", shape, split[1], split[0])
    if len(shape) == 3:
        kind = map_kind(shape, _consumer_hint(model, node))
        return Layout(kind, shape, shape[1:] if kind == "NCHW" else shape[:2])
    return None


def _consumer_hint(model: nn.Module, node: fx.Node) -> str | None:
    """Whether the layers that read ``node`` want channels first or last."""
    frontier, seen = list(node.users), set()
    while frontier and len(seen) < 32:
        n = frontier.pop(0)
        if n in seen:
            continue
        seen.add(n)
        m = model.get_submodule(n.target) if n.op == "call_module" else None
        if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)) or "2d" in type(m).__name__:
            return "first"
        if isinstance(m, (nn.Linear, nn.LayerNorm)):
            return "last"
        if n.op in ("call_function", "call_module") and not isinstance(m, nn.Flatten):
            frontier.extend(n.users)
        else:  # permute, reshape, ...: beyond them the axes mean something else
            return None
    return None
