"""The layers that channels are cut from, and what they read while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Linear
Watcher = Callable[[Tensor], Tensor | None]  # what a layer reads -> what it is to read instead


def layer_of(part: nn.Module, weight: str) -> Layer:
    """The layer of ``part`` that has this ``weight``, by its name in the state dict."""
    return cast(Layer, part.get_submodule(weight.removesuffix(".weight")))


def channel_axis(layer: Layer) -> int:
    """The axis of its input that a layer's weight reads with its axis 1."""
    return 1 if layer.weight.ndim > 2 else -1


@contextmanager
def watching(part: nn.Module, watchers: Iterable[tuple[str, Watcher]]) -> Iterator[None]:
    """Within it, each watcher is given what the layer of its weight reads, whenever it does.

    The layer reads what the watcher returns, unless that is None.
    """

    def hook(watcher: Watcher) -> Callable[..., tuple | None]:
        def read(layer: nn.Module, args: tuple) -> tuple | None:
            instead = watcher(args[0])
            return None if instead is None else (instead, *args[1:])

        return read

    handles = [
        layer_of(part, weight).register_forward_pre_hook(hook(watcher))
        for weight, watcher in watchers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
