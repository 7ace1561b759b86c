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
from timm.layers import get_notrace_functions
from torch import Tensor, fx, nn

from ..errors import Incompatible
from .cost import FlopCounter
from .position import INPUT, Outline, Position, is_layer, leaves_of
from .shapes import device_of, on_shapes
from .tape import observe

__all__ = ["INPUT", "Position", "Trace", "part_after", "trace"]


@dataclass(frozen=True)
class Trace(Outline):
    """A traced network: ``macs`` are by node."""

    graph: fx.Graph
    constants: dict[str, object]  # non-tensor values that do not depend on the batch, by node

    def macs_after(self, position: Position) -> int:
        """MACs per image of what comes after ``position``."""
        names = [n.name for n in self.graph.nodes]
        return sum(self.macs.get(n, 0) for n in names[names.index(position.node) + 1 :])


class _Tracer(fx.Tracer):
    """timm's leaf modules and functions, plus a note of which module returned which node."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.returned: list[tuple[str, list[fx.Node], bool]] = []  # was one of them given to it?
        self.calls: dict[str, int] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m)

    def call_module(self, m, forward, args, kwargs):  # noqa: ANN001 - torch.fx's signature
        path = self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        self.calls[path] = self.calls.get(path, 0) + 1
        nodes = [p.node for p in leaves_of(out) if isinstance(p, fx.Proxy)]
        given = {p.node for p in leaves_of(args) if isinstance(p, fx.Proxy)}
        self.returned.append((path, nodes, bool(given.intersection(nodes))))
        return out

    def names(self, values: dict[str, object]) -> dict[fx.Node, list[str]]:
        """Modules called once that returned one tensor, the outermost first, by its node.

        Those that return what they were given (an empty ``shortcut``) come last.
        """
        names: dict[fx.Node, list[str]] = {}
        order = sorted(reversed(self.returned), key=lambda r: r[2])
        for path, nodes, _ in order:
            tensors = [n for n in nodes if _holds_tensor(values.get(n.name))]
            if path and self.calls[path] == 1 and len(tensors) == 1:
                names.setdefault(tensors[0], []).append(path)
        return names


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
    small, large = on_shapes(model, lambda m: [_run(m, graph, input_size, n) for n in (2, 3)])
    constants = {
        n: v for n, v in small.values.items() if not _holds_tensor(v) and v == large.values[n]
    }
    seen = observe(model, input_size).positions
    layouts = {name: p.layout for p in seen for name in (p.name, *p.aliases)}
    return Trace(
        root=model,
        graph=graph,
        positions=tuple(_positions(graph, tracer, small, large, constants, layouts)),
        constants=constants,
        macs=small.macs,  # of what depends on the image: the rest can be computed once and kept
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
        self.dependent = {n.name for n in _input_dependent(graph)}
        self.run(torch.zeros(batch, *input_size, device=device_of(model)))

    def run_node(self, n: fx.Node):
        with FlopCounter() as counter:
            out = super().run_node(n)
        if counter.flops and n.name in self.dependent:
            self.macs[n.name] = counter.flops // (2 * self.batch)
        self.values[n.name] = _Shape(out.shape) if isinstance(out, Tensor) else out
        return out


class _Shape(tuple):
    """Stands for a tensor of this shape."""


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (_Shape, Tensor)):
        return True
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return any(_holds_tensor(v) for v in value)
    return isinstance(value, dict) and any(_holds_tensor(v) for v in value.values())


def _positions(graph, tracer, small, large, constants, layouts):
    """Yields the positions in topological order."""
    nodes = list(graph.nodes)
    order = {n: i for i, n in enumerate(nodes)}
    dependent, returned = _input_dependent(graph), tracer.names(small.values)
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
        names = returned.get(n, [])
        if n.op == "placeholder" and not seen_input:
            names, seen_input = [INPUT], True
        a, b = small.values[n.name], large.values[n.name]
        if not names or not isinstance(a, _Shape) or len(a) < 2 or a[0] != 2 or b[0] != 3:
            continue
        if (layout := layouts.get(names[0])) is not None and layout.shape == tuple(a[1:]):
            yield Position(names[0], tuple(names[1:]), layout, spent / total, n.name)
