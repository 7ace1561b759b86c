"""Positions of a network and the part after a cut, read from its FX graph.

A *position* is a node of the graph after which it alone is still needed, and which is the output
of some module, so it has a name a person can type (``layer3``, ``blocks.7``).  Cutting there
splits the network in two exactly: the part after the cut, fed the recorded value, gives the
network's logits bit for bit.  No table per architecture is needed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from ..errors import Incompatible
from .constants import LARGE, SMALL, Shape, image_dependent, known_values, unfold
from .position import INPUT, Outline, Position
from .shapes import device_of, on_shapes
from .tape import observe
from .tracer import Tracer, trace_graph

__all__ = ["INPUT", "Position", "Trace", "part_after", "trace"]


@dataclass(frozen=True)
class Trace(Outline):
    """A traced network."""

    graph: fx.Graph
    known: dict[str, object]  # by node, values that follow from the batch size alone


def trace(model: nn.Module, input_size: tuple[int, int, int], seen: Outline | None = None) -> Trace:
    """Traces an eval-mode network for images of ``input_size`` (C, H, W).

    ``seen`` is what :func:`~pnc_cli.network.tape.observe` says of it, where that is known.
    Raises ``Incompatible`` when the architecture cannot be traced.
    """
    graph, tracer = trace_graph(model, input_size)
    _drop_dead(graph)
    small, large = on_shapes(
        model, lambda m: [_run(m, graph, input_size, n) for n in (SMALL, LARGE)]
    )
    known = known_values(small.values, large.values)
    depends = image_dependent(graph, known)
    seen = seen or observe(model, input_size)
    return Trace(
        root=model,
        positions=tuple(_positions(seen, graph, tracer, small.values, depends)),
        macs=seen.macs,
        graph=graph,
        known=known,
    )


def part_after(tr: Trace, position: Position, outputs: list[str]) -> fx.GraphModule:
    """The network after ``position``: a module from the position's tensor to the named nodes.

    Parameter-only expressions computed before the cut are carried along; sizes that do not
    depend on the batch become constants.  Modules are shared with ``tr.root``, not copied.
    """
    nodes = list(tr.graph.nodes)
    cut = nodes.index(next(n for n in nodes if n.name == position.node))
    depends = image_dependent(tr.graph, tr.known)
    part = fx.Graph()
    features = part.placeholder("features")
    env: dict[fx.Node, object] = {nodes[cut]: features}

    def value(n: fx.Node) -> object:
        if n not in env:
            if n.name in tr.known:
                env[n] = unfold(tr.known[n.name], features)
            elif n in depends:
                raise Incompatible(f"'{n.name}' is still needed after '{position.name}'")
            else:
                for a in n.all_input_nodes:
                    value(a)
                env[n] = part.node_copy(n, value)
        return env[n]

    for n in nodes[cut + 1 :]:
        if n.op != "output" and n in depends:
            for a in n.all_input_nodes:
                value(a)
            env[n] = part.node_copy(n, value)
    by_name = {n.name: n for n in nodes}
    part.output(tuple(value(by_name[o]) for o in outputs))
    _drop_dead(part)
    part.lint()
    module = fx.GraphModule(tr.root, part)
    own = tr.root.state_dict().keys()
    for name, constant in list(module.named_buffers()):
        if name not in own:  # computed from the architecture, not read from its checkpoint
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_buffer(leaf, constant, persistent=False)
    return module


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


class _run(fx.Interpreter):
    """One forward pass, keeping shapes instead of tensors."""

    def __init__(self, model: nn.Module, graph: fx.Graph, input_size, batch: int) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.values: dict[str, object] = {}
        self.device = device_of(model)  # the graph may name that of the network that was traced
        self.run(torch.zeros(batch, *input_size, device=self.device))

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple, dict]:
        here = super().fetch_args_kwargs_from_env(n)
        return fx.node.map_aggregate(
            here, lambda a: self.device if isinstance(a, torch.device) else a
        )

    def run_node(self, n: fx.Node):
        out = super().run_node(n)
        self.values[n.name] = Shape(tuple(out.shape)) if isinstance(out, Tensor) else out
        return out


def _positions(
    seen: Outline,
    graph: fx.Graph,
    tracer: Tracer,
    values: dict[str, object],
    depends: set[fx.Node],
) -> Iterator[Position]:
    """Yields the positions in topological order, as they were seen in a forward pass.

    ``values`` are the nodes' on a small batch, ``depends`` are the nodes that depend on the image.
    """
    known = {name: p for p in seen.positions for name in (p.name, *p.aliases)}
    nodes = list(graph.nodes)
    order = {n: i for i, n in enumerate(nodes)}
    returned = {nodes[0]: [INPUT], **tracer.names(values)}
    needy = depends | {nodes[-1]}  # what asks for a size alone can ask any tensor of the batch
    last_use = {n: max((order[u] for u in n.users if u in needy), default=-1) for n in nodes}
    alive: list[fx.Node] = []
    for i, n in enumerate(nodes[:-1]):
        alive = [a for a in alive if last_use[a] > i]
        if n in depends and last_use[n] > i:
            alive.append(n)
        if alive == [n] and (names := returned.get(n)):
            p = known.get(names[0])
            if p is not None and Shape((SMALL, *p.layout.shape)) == values[n.name]:
                yield replace(p, name=names[0], aliases=tuple(names[1:]), node=n.name)
