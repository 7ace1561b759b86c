"""Recording what modules output (or are given) while a network runs, by forward hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .position import INPUT, tensors_in


@contextmanager
def recording(
    model: nn.Module, outputs: Iterable[str] = (), inputs: Iterable[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that each forward pass fills.

    It maps the name of each module of ``outputs`` to the one tensor it returned, and ``"<name>:input"`` for
    each of ``inputs`` to its first argument.  Values are copies: later layers may work in place.
    """
    recorded: dict[str, Tensor] = {}
    handles = []

    def after(name: str):
        def hook(module, args, out) -> None:
            [recorded[name]] = [t.clone() for t in tensors_in(out)]

        return hook

    def before(name: str):
        def hook(module, args) -> None:
            recorded[f"{name}:input"] = args[0].clone()

        return hook

    try:
        for name in outputs:
            if name == INPUT:
                handles.append(model.register_forward_pre_hook(_keep_input(recorded)))
            else:
                handles.append(model.get_submodule(name).register_forward_hook(after(name)))
        for name in inputs:
            handles.append(model.get_submodule(name).register_forward_pre_hook(before(name)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _keep_input(recorded: dict[str, Tensor]):
    def hook(module, args) -> None:
        recorded[INPUT] = args[0].clone()

    return hook
