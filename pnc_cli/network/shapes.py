"""Networks of shapes alone: no data, no memory, next to no time, whatever their size.

Their tensors are on PyTorch's device ``meta``.  A few common operations are slow even there, and
are given their results' shapes directly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
aten = torch.ops.aten


def on_shapes(model: nn.Module, run: Callable[[nn.Module], T]) -> T:
    """``run`` of a twin of ``model`` without data; of ``model`` itself where that fails, because
    the network looks into its tensors."""
    with torch.no_grad():
        try:
            with _Shortcuts():
                return run(model if _is_blank(model) else twin(model))
        except Exception:  # what operations without data raise has no common type
            return run(model)


def twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose tensors have shapes but no data."""
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
            # this one's own forward, which torch's annotations do not foresee
            module.forward = partial(_lstm, module)  # type: ignore[method-assign, assignment]
    return copied


def _is_blank(model: nn.Module) -> bool:
    slow = any(isinstance(m, nn.LSTM) for m in model.modules())
    return device_of(model).type == "meta" and not slow


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class _Shortcuts(TorchDispatchMode):
    """Gives results of slow operations on tensors without data directly."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shortcut = _SHORTCUTS.get(func)
        if shortcut is not None and args[0].is_meta and args[0].is_floating_point():
            return shortcut(*args)
        if func in _BINARY and _one_shape(*args):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _one_shape(a: object, b: object, *_: object) -> bool:
    """Whether a binary operation gives something like ``a``."""
    if not isinstance(a, Tensor) or not a.is_meta or not a.is_floating_point():
        return False
    return not isinstance(b, Tensor) or a.shape == b.shape


def _like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _normalised(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


_SHORTCUTS: dict[object, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    aten.native_layer_norm.default: _normalised,
    aten.native_batch_norm.default: _normalised,
    aten._native_batch_norm_legit_no_training.default: _normalised,
    aten.gelu.default: _like,
    aten._safe_softmax.default: _like,
    aten._softmax.default: _like,
    aten.addmm.default: lambda bias, x, weight: x.new_empty(len(x), weight.shape[1]),
}
_BINARY = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


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
