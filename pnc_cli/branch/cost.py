"""What a clone adds to its target: MACs, parameters and bytes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..channels.groups import weight_cells
from ..manifest import Candidate
from ..network.part import Module
from ..network.position import Position
from .adapter import Adapter
from .modulation import identity
from .pair import Grid
from .task import Task


class Amounts(NamedTuple):
    """What something adds to the target: MACs per image, parameters, and bytes of tensors."""

    macs: float
    parameters: float
    bytes: float

    @classmethod
    def of(cls, candidate: Candidate) -> Amounts:
        return cls(candidate.macs, candidate.parameters, candidate.bytes)

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(a + b for a, b in zip(self, other)))

    def within(self, room: Amounts) -> bool:
        return all(adds <= limit for adds, limit in zip(self, room))


def of_module(grid: Grid, cut: Position, dense: Module, module: Module, example: Tensor) -> Amounts:
    """What ``module`` adds, a pruned copy of ``dense``; arguments as for :func:`module_macs`."""
    return Amounts(
        module_macs(grid, cut, dense, module, example),
        sum(p.numel() for p in module.parameters()),
        sum(t.numel() * t.element_size() for t in module.part.state_dict().values()),
    )


def beside_module(adapter: Adapter, module: Module, task: Task, width: int) -> Amounts:
    """What adapter, modulation and join add; ``width`` is that of both networks' pre-logits, and
    ``task`` has all the original classes that the join will tell apart."""
    join = (width + 1) * (task.old + task.new) if task.old else width
    numbers = join + sum(p.numel() for p in adapter.parameters())
    numbers += sum(t.numel() for t in identity(module.part).values())
    return Amounts(adapter.macs + join, numbers, 4 * numbers)


def module_macs(grid: Grid, cut: Position, dense: Module, module: Module, example: Tensor) -> int:
    """MACs per image of ``module``, a pruned copy of ``dense``, the part after ``cut``, at the
    resolution of ``cut``; ``example`` is a feature at its full one.

    What is no layer's (attention) is counted as it is at full resolution, which is too much.
    """
    full = grid.source.position(cut.name)
    before = weight_cells(dense.part, example)
    now = weight_cells(dense.part, grid.resampled(cut, example))
    whole, after = dict(grid.source.root.state_dict()), module.part.state_dict()
    saved = sum(whole[n].numel() * before[n] - after[n].numel() * now[n] for n in before)
    return grid.source.macs_after(full) - saved
