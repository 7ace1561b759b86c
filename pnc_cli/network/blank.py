"""Networks whose weights are not given values: built in an instant, for their shapes or to be filled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built inside have parameters on the meta device, and no time goes into them."""
    with torch.device("meta"), _Unfilled():
        yield


@contextmanager
def without_filling() -> Iterator[None]:
    """Parameters of modules built inside have memory and no values: to be read from a file.

    What constructors compute besides (buffers, rotary tables, indices of relative positions) is as
    ever.  Memory that nothing was written to is not resident, so such a network weighs nothing yet.
    """
    with _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Weights that come from elsewhere need no initial values; these take most of the time."""

    FILLS = {
        *("normal_", "uniform_", "fill_", "zero_", "copy_"),
        *("erfinv_", "mul_", "div_", "add_", "clamp_"),
    }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        tensor = args[0] if args else kwargs.get("tensor")
        fills = name in self.FILLS or getattr(func, "__module__", "") == nn.init.__name__
        if fills and isinstance(tensor, torch.Tensor):
            if tensor.is_meta or isinstance(tensor, nn.Parameter):
                return tensor
        if isinstance(tensor, torch.Tensor) and tensor.is_meta:
            if name in ("item", "tolist"):  # older timms compute rates of stochastic depth so
                return getattr(torch.zeros(tensor.shape, device="cpu"), name)()
        return func(*args, **kwargs)
