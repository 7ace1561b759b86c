"""``torch.fx`` traces of timm networks, with a note of which module returned which node.

What decides the way through a network may be the size of the images, never what they show.  Plain
FX does not know sizes; where it fails, the network is traced again with shadows: beside each node
its value on blank batches of two sizes is computed, and a question about sizes ("is this a batch
of images?") gets its answer from them.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.layers import get_notrace_functions
from torch import Tensor, fx, nn

from ..errors import Incompatible
from .constants import LARGE, SMALL, holds_tensor
from .nodes import function_of, path_of
from .position import is_layer, leaves_of
from .shapes import twin

# While FX traces, it stands in the place of ``nn.Module``'s own methods, for every thread.
_ONE_AT_A_TIME = threading.RLock()


class Tracer(fx.Tracer):
    """Traces with timm's leaf modules and functions, and notes what each module returned.

    What other threads run meanwhile is left alone.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.returned: list[tuple[str, list[fx.Node], bool]] = []  # was one of them given to it?
        self.calls: dict[str, int] = {}  # of each module
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m, forward, args, kwargs):
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
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
            tensors = [n for n in nodes if holds_tensor(values.get(n.name))]
            if path and self.calls[path] == 1 and len(tensors) == 1:
                names.setdefault(tensors[0], []).append(path)
        return names


_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")


class _Shadowing(Tracer):
    """Knows the value of each node on blank batches of two sizes."""

    proxy_buffer_attributes = True  # they may be expanded to a size

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.blank, self.input_size = twin(model), input_size
        self.shadows: dict[fx.Node, tuple[Any, Any]] = {}

    def create_proxy(self, kind, target, args, kwargs, *rest, **named):
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        self.shadows[proxy.node] = (self._shadow(proxy.node, 0), self._shadow(proxy.node, 1))
        return proxy

    def _shadow(self, n: fx.Node, k: int) -> object:
        """The value of ``n`` on the small (``k`` = 0) or the large batch (1)."""
        if n.op == "placeholder":
            first = not self.shadows
            size = (SMALL, LARGE)[k]
            return torch.zeros(size, *self.input_size, device="meta") if first else None
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: self.shadows[a][k])
        with torch.no_grad():
            if n.op == "get_attr":
                return operator.attrgetter(path_of(n))(self.blank)
            if n.op == "call_module":
                return self.blank.get_submodule(path_of(n))(*args, **kwargs)
            if n.op == "call_method":
                return getattr(args[0], path_of(n))(*args[1:], **kwargs)
            return function_of(n)(*args, **kwargs)

    def call_module(self, m, forward, args, kwargs):
        if any(isinstance(p, fx.Proxy) for p in leaves_of((args, kwargs))):
            return super().call_module(m, forward, args, kwargs)
        return forward(*args, **kwargs)

    def trace(self, root, concrete_args=None):
        with self._factories_traced():
            return super().trace(root, concrete_args)

    @contextlib.contextmanager
    def _factories_traced(self) -> Iterator[None]:
        """FX does not see functions that take sizes and give tensors."""
        originals = {name: getattr(torch, name) for name in _FACTORIES}

        def seen(original, *args, **kwargs):
            if any(isinstance(p, fx.Proxy) for p in leaves_of((args, kwargs))):
                return self.create_proxy("call_function", original, args, kwargs)
            return original(*args, **kwargs)

        try:
            for name, original in originals.items():
                setattr(torch, name, partial(seen, original))
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)

    def to_bool(self, obj: fx.Proxy) -> bool:
        small, large = self.shadows[obj.node]
        if isinstance(small, Tensor) or bool(small) != bool(large):
            return super().to_bool(obj)
        return bool(small)


def trace_graph(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[fx.Graph, Tracer]:
    """The graph of ``model``.  Raises ``Incompatible`` when it cannot be traced."""
    defaults = {
        name: p.default
        for name, p in list(inspect.signature(model.forward).parameters.items())[1:]
        if p.default is not inspect.Parameter.empty
    }
    for name in [n for n in vars(model) if n.startswith("_tensor_constant")]:
        delattr(model, name)  # FX left it there in an earlier trace, and numbers on from it
    try:
        tracer = Tracer()
        with _ONE_AT_A_TIME, _without_memory(model):
            return tracer.trace(model, concrete_args=defaults or None), tracer
    except Exception as e:  # FX raises many kinds; all mean the same to the user
        reason = e
    try:
        tracer = _Shadowing(model, input_size)
        with _ONE_AT_A_TIME, _without_memory(model):
            return tracer.trace(model, concrete_args=defaults or None), tracer
    except Exception as e:
        raise Incompatible(
            f"the architecture {type(model).__name__} cannot be traced by torch.fx: {reason}",
            hint="use another architecture as the source",
        ) from e


@contextlib.contextmanager
def _without_memory(model: nn.Module) -> Iterator[None]:
    """Empties the modules' dictionaries of remembered tensors (levit's attention biases) for a
    trace: what they hold would be constants of the graph, and what is traced would stay in them."""
    memories = [
        memory
        for m in model.modules()
        for name, memory in vars(m).items()
        if type(memory) is dict and not name.startswith("_")
        if all(isinstance(v, Tensor) for v in memory.values())
    ]
    kept = [dict(memory) for memory in memories]
    for memory in memories:
        memory.clear()
    try:
        yield
    finally:
        for memory, before in zip(memories, kept):
            memory.clear()
            memory.update(before)
