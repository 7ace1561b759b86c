"""Counting multiply-accumulates, with PyTorch's own formulas.

Its ``FlopCounterMode`` breaks on some graphs without gradients, so the formulas are used directly.
"""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry


def count_flops(func: OpOverload, args: tuple, kwargs: dict, out: object) -> int:
    """Floating point operations, two a multiply-accumulate, of a call of an ATen operator."""
    count = flop_registry.get(func._overloadpacket)
    if count is None and "scaled_dot_product" in str(func):
        count = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
    return 0 if count is None else count(*args, **kwargs, out_val=out)
