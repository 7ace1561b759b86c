"""The copied part of a source: its layers after a cut, for some of its classes."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from ..manifest import Kept, ModuleTensor
from .graph import Trace, part_after
from .head import Head, as_vector
from .position import Position

M = TypeVar("M", bound=nn.Module)


class Module(nn.Module):
    """The copied part of the source: cut features -> (pre-logits (B, D), logits (B, K)).

    ``columns`` are the K clone classes among the logits of ``part``.
    """

    columns: Tensor

    def __init__(self, part: fx.GraphModule, columns: list[int]) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.classes = list(columns)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        # not self.part(…), where FX prints what goes wrong: it may be expected to
        pre, logits = self.part.forward(features)
        return as_vector(pre), logits[:, self.columns]


def _part(tr: Trace, cut: Position, head: Head) -> fx.GraphModule:
    """The source after ``cut``: its features -> (pre-logits, logits of all its classes)."""
    return part_after(tr, cut, [head.pre, head.logits])


def module_after(
    tr: Trace, head: Head, cut: Position, class_indices: list[int]
) -> tuple[Module, dict[str, ModuleTensor]]:
    """The part of the source after ``cut`` for some classes, and how its tensors were sliced.

    A linear classifier keeps the rows of the clone classes only; its order is that of
    ``class_indices``.
    """
    part = sharing(_part(tr, cut, head))
    kept: dict[str, ModuleTensor] = {n: ModuleTensor(kept=[]) for n in part.state_dict()}
    columns = list(class_indices)
    if head.weight in kept:
        rows = ModuleTensor(kept=[Kept(axis=0, indices=list(class_indices))])
        kept[head.weight] = rows
        bias = head.weight.removesuffix("weight") + "bias"
        if bias in kept:
            kept[bias] = rows
        columns = list(range(len(class_indices)))
    sliced = {n: t for n, t in part.state_dict().items() if kept[n].kept}
    resize(part, {n: slice_tensor(t, kept[n]) for n, t in sliced.items()})
    return Module(part, columns), kept


def sharing(module: M) -> M:
    """A copy of a frozen ``module`` with modules of its own and the same tensors: one of them may get
    other tensors in their place (:func:`resize`), none may be changed."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(t): t for t in tensors})


def slice_tensor(tensor: Tensor, how: ModuleTensor) -> Tensor:
    """The copied slice of a source tensor."""
    for k in how.kept:
        tensor = tensor.index_select(k.axis, torch.tensor(k.indices, device=tensor.device))
    return tensor.clone()


def resize(part: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Sets parameters and buffers to ``tensors``, whatever their shapes; frozen."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = part.get_submodule(owner)
        old = getattr(module, leaf)
        tensor = tensor.to(old.dtype) if old.is_floating_point() else tensor
        if leaf == "weight" and isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = module.groups * len(tensor) // len(old)
        if isinstance(old, nn.Parameter):
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            setattr(module, leaf, tensor)
