"""Recording what modules output (or are given) while a network runs, by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .position import INPUT, tensors_in


@contextmanager
def recording(
    model: nn.Module, outputs: Iterable[str] = (), inputs: Iterable[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that each forward pass fills.

    It maps the name of each module of ``outputs`` to the one tensor it returned (``"input"`` to
    what the network is given), and ``"<name>:input"`` for each of ``inputs`` to its first argument.
    Values are copies: later layers may work in place.
    """
    recorded: dict[str, Tensor] = {}
    handles = []

    def keep_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, out: object) -> None:
            [recorded[name]] = [t.clone() for t in tensors_in(out)]

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            recorded[name] = args[0].clone()

        return hook

    try:
        for name in outputs:
            if name == INPUT:
                handles.append(model.register_forward_pre_hook(keep_input(INPUT)))
            else:
                handles.append(model.get_submodule(name).register_forward_hook(keep_output(name)))
        for name in inputs:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(keep_input(f"{name}:input")))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
