"""Reading the nodes of a ``torch.fx`` graph: what they call, and what they give to it.

FX annotates a node's target and arguments with all that they may ever be; which of it they are
follows from the node's ``op``.  That is said here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import fx


def path_of(n: fx.Node) -> str:
    """What a node of a module, an attribute or a method calls: its path, or the method's name."""
    return cast(str, n.target)


def function_of(n: fx.Node) -> Callable[..., Any]:
    """What a ``call_function`` node calls."""
    return cast(Callable[..., Any], n.target)


def node_name(n: fx.Node) -> str:
    """What a node calls, by one name for ``torch.relu``, ``F.relu`` and ``Tensor.relu``."""
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")


def argument(n: fx.Node, index: int, name: str, default: object = None) -> Any:
    """An argument of a node, given by position or by name."""
    return n.args[index] if len(n.args) > index else n.kwargs.get(name, default)


def given_first(n: fx.Node) -> fx.Node | None:
    """The node whose value is the first positional argument of ``n``, if it is one's."""
    return n.args[0] if n.args and isinstance(n.args[0], fx.Node) else None
