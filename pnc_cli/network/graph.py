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
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_aggregate

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
        model, lambda m: [_values(m, graph, input_size, n) for n in (SMALL, LARGE)]
    )
    known = known_values(small, large)
    depends = image_dependent(graph, known)
    seen = seen or observe(model, input_size)
    return Trace(
        root=model,
        positions=tuple(_positions(seen, graph, tracer, small, depends)),
        macs=seen.macs,
        graph=graph,
        known=known,
    )


def part_after(tr: Trace, position: Position, outputs: list[str]) -> fx.GraphModule:
    """The network after ``position``: a module from the position's tensor to the ``outputs``.

    These are names of nodes; the module returns a tuple of their values.  What the parameters
    alone give is computed again, sizes are taken from the position's tensor.  Modules are shared
    with ``tr.root``, not copied; the part's state holds nothing that the root's does not.

    Raises ``Incompatible`` where something else that depends on the image is still needed.
    """
    nodes = list(tr.graph.nodes)
    cut = nodes.index(next(n for n in nodes if n.name == position.node))
    depends = image_dependent(tr.graph, tr.known)
    part = fx.Graph()
    features = part.placeholder("features")
    env: dict[fx.Node, Argument] = {nodes[cut]: features}  # what each node is in the part

    def value(n: fx.Node) -> Argument:
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
    _forget_constants(module, set(tr.root.state_dict()))
    return module


def _forget_constants(module: nn.Module, own: set[str]) -> None:
    """Takes buffers that are not the checkpoint's ``own`` out of the module's state.

    They are computed from the architecture: constants of the trace, masks, tables of indices.
    """
    for name, constant in list(module.named_buffers(remove_duplicate=False)):
        if name not in own:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_buffer(leaf, constant, persistent=False)


_PURE: set[Any] = {getattr, operator.getitem, operator.not_, bool, int}
_PURE |= {operator.eq, operator.ne, operator.ge, operator.le, operator.gt, operator.lt}
_PURE |= {operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv}
_PURE |= {operator.mod}


def _drop_dead(graph: fx.Graph) -> None:
    """Removes assertions and the size arithmetic that only they used; in-place work stays."""
    for n in list(graph.nodes):
        if n.op == "call_function" and n.target is torch._assert:
            graph.erase_node(n)
    for n in reversed(list(graph.nodes)):
        if not n.users and _is_pure(n):
            graph.erase_node(n)


def _is_pure(n: fx.Node) -> bool:
    """Whether ``n`` does nothing but give its value."""
    if n.op == "call_function":
        return n.target in _PURE
    return n.op == "get_attr" or (n.op == "call_method" and n.target in ("size", "dim"))


def _values(
    model: nn.Module, graph: fx.Graph, input_size: tuple[int, int, int], batch: int
) -> dict[str, object]:
    """The nodes' values, by name, on a blank batch; shapes instead of tensors."""
    device = device_of(model)
    run = _Run(fx.GraphModule(model, graph), device)
    run.run(torch.zeros(batch, *input_size, device=device))
    return run.values


class _Run(fx.Interpreter):
    """A forward pass on ``device`` that notes what each node gives."""

    def __init__(self, module: fx.GraphModule, device: torch.device) -> None:
        super().__init__(module)
        self.device = device
        self.values: dict[str, object] = {}

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple, dict]:
        given: Any = super().fetch_args_kwargs_from_env(n)
        return map_aggregate(given, self._here)

    def _here(self, value: object) -> Any:
        """The graph may name the device of the network that was traced."""
        return self.device if isinstance(value, torch.device) else value

    def run_node(self, n: fx.Node) -> object:
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
