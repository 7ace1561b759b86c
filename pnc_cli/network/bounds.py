"""Networks are bounded while they are built: a few words of ``model_args`` can ask for any size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.nn.modules import module as hooks

from ..errors import BadInput


class TooLarge(BadInput):
    """A network with more than its file can fill."""


@dataclass(frozen=True)
class Bounds:
    """The most that is built; ``None``: without bound."""

    tensors: int
    numbers: int | None = None  # parameters
    why: str = "pnc's limit"

    @classmethod
    def of_file(cls, tensors: int, numbers: int) -> Bounds:
        """What a file with so many tensors and numbers can fill, and some more: constructors replace
        layers that they have made."""
        why = f"the file has {tensors:,} tensors with {numbers:,} numbers"
        return cls(2 * tensors + 1000, 2 * numbers + SMALL, why)


SMALL = 50_000_000  # numbers that are no burden: 200 MB, and not touched
LARGEST = Bounds(10_000)  # of a clone's source; of timm's networks none has 3,000 tensors to train
MODULES_A_TENSOR = 50
PRUNED = (
    100  # a copied part's numbers, to those that were kept of it: more is not pruned but made up
)


@contextmanager
def bounded(where: str, most: Bounds) -> Iterator[None]:
    """Stops whatever network this thread builds inside with ``TooLarge`` once it has more than ``most``;
    ``where`` its arguments come from is named."""
    me, tensors, numbers, modules = threading.get_ident(), 0, 0, 0

    def refuse(what: str) -> TooLarge:
        return TooLarge(
            f"{where}: its model_args ask for a network of {what}: {most.why}",
            hint="correct model_args, or do not use the file",
        )

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal tensors, numbers
        if threading.get_ident() != me:
            return
        tensors, numbers = tensors + 1, numbers + parameter.numel()
        if tensors > most.tensors:
            raise refuse(f"more than {most.tensors:,} tensors")
        if most.numbers is not None and numbers > most.numbers:
            raise refuse(f"more than {most.numbers:,} numbers")

    def count_module(module: nn.Module, name: str, inside: nn.Module) -> None:
        nonlocal modules
        modules += threading.get_ident() == me
        if modules > MODULES_A_TENSOR * most.tensors:
            raise refuse(f"more than {MODULES_A_TENSOR * most.tensors:,} modules")

    registered: list[Callable[[], None]] = [
        hooks.register_module_parameter_registration_hook(count).remove,
        hooks.register_module_module_registration_hook(count_module).remove,
    ]
    try:
        yield
    finally:
        for remove in registered:
            remove()
