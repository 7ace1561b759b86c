"""Running a network on shapes alone: no data, no memory, next to no time, whatever its size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")


def on_shapes(model: nn.Module, run: Callable[[nn.Module], T]) -> T:
    """``run`` of a twin of ``model`` without data; of ``model`` itself where that fails, because
    the network looks into its tensors."""
    with torch.no_grad():
        try:
            return run(twin(model))
        except Exception:  # what operations without data raise has no common type
            return run(model)


def twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose tensors have shapes but no data (on the device ``meta``)."""
    memo: dict[int, object] = {}
    for module in model.modules():
        own = (module._parameters, module._buffers, vars(module))
        for tensor in (t for group in own for t in group.values() if isinstance(t, Tensor)):
            blank = tensor.detach().to("meta")
            if isinstance(tensor, nn.Parameter):
                blank = nn.Parameter(blank, requires_grad=False)
            memo[id(tensor)] = blank
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        if isinstance(module, nn.LSTM):
            module.forward = partial(_lstm, module)
    return copied


def _lstm(lstm: nn.LSTM, x: Tensor) -> tuple[Tensor, None]:
    """The shapes and the multiply-accumulates of an LSTM, without its loop over time."""
    directions = 1 + lstm.bidirectional
    for layer in range(0, len(lstm.all_weights), directions):
        ways = []
        for input_weight, hidden_weight, *_ in lstm.all_weights[layer : layer + directions]:
            ways.append(F.linear(x, input_weight)[..., : lstm.hidden_size])
            F.linear(ways[-1], hidden_weight)
        x = torch.cat(ways, dim=-1)
    return x, None


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
