"""Networks without memory for their weights: their shapes, names and modules, in an instant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters on the meta device, and no time goes into them."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Weights without memory need no initial values; giving them some takes most of the time."""

    FILLS = {"normal_", "uniform_", "fill_", "zero_", "erfinv_", "mul_", "add_", "clamp_", "copy_"}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        tensor = args[0] if args else kwargs.get("tensor")
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            if name in self.FILLS:
                return tensor
            if name in ("item", "tolist"):  # older timms compute rates of stochastic depth so
                return getattr(torch.zeros(tensor.shape, device="cpu"), name)()
        return func(*args, **kwargs)
