"""What a clone adds to its target: MACs, parameters and bytes."""

from __future__ import annotations

from typing import NamedTuple

from ..network.part import Module
from ..plan import Candidate, Place
from .adapter import Adapter
from .join import Mixture
from .mixing import numbers_of, shapes_of
from .modulation import identity
from .pair import Pair
from .task import Task


class Amounts(NamedTuple):
    """What something adds to the target: MACs per image, parameters, and bytes of tensors."""

    macs: float
    parameters: float
    bytes: float

    @classmethod
    def of(cls, candidate: Candidate) -> Amounts:
        return cls(candidate.macs, candidate.parameters, candidate.bytes)

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(*(a + b for a, b in zip(self, other)))

    def within(self, room: Amounts) -> bool:
        return all(adds <= limit for adds, limit in zip(self, room))


def of_module(pair: Pair, place: Place, columns: list[int], module: Module) -> Amounts:
    """What ``module`` adds, a share of the part after the place's cut for the classes ``columns``, with
    the mixing of its inputs."""
    own, mixing = numbers_of_module(pair.part(place.cut, columns)[0], module)
    copied = sum(t.numel() * t.element_size() for t in module.part.state_dict().values())
    return Amounts(module_macs(pair, place, columns, module), own + mixing, copied + 4 * mixing)


def numbers_of_module(dense: Module, module: Module) -> tuple[int, int]:
    """Parameters of ``module``, a share of ``dense``, and numbers of the mixing of its inputs."""
    mixing = numbers_of(module.part, shapes_of(dense.part))
    return sum(p.numel() for p in module.parameters()), mixing


def join_numbers(target: int, branch: int, task: Task) -> int:
    """Numbers of a join on pre-logits of these widths, for all classes of ``task``; as many MACs."""
    join = Mixture(target, branch, 0, 1)
    beside_rows = sum(t.numel() for t in join.state_dict().values()) - (target + branch + 1)
    of_pool = 0 if task.pool is None else task.target.ref.num_classes  # at most
    return (target + branch + 1) * (task.old + of_pool + task.new) + beside_rows


def beside_module(adapter: Adapter, module: Module, task: Task, widths: tuple[int, int]) -> Amounts:
    """What adapter, modulation and join add; ``widths`` are those of both networks' pre-logits, and
    ``task`` has all the original classes that the join will tell apart."""
    join = join_numbers(*widths, task)
    numbers = join + sum(p.numel() for p in adapter.parameters())
    numbers += sum(t.numel() for t in identity(module.part).values())
    return Amounts(adapter.macs + join, numbers, 4 * numbers)


def module_macs(pair: Pair, place: Place, columns: list[int], module: Module) -> int:
    """MACs per image of ``module``, a share of the part after the place's cut, at its resolution.

    What is no layer's (attention) is counted as it is at full resolution, which is too much.
    """
    before = pair.cells(Place(place.tap, place.cut), columns)
    now = pair.cells(place, columns)
    whole, after = dict(pair.source.root.state_dict()), module.part.state_dict()
    saved = sum(whole[n].numel() * before[n] - after[n].numel() * now[n] for n in before)
    return pair.source.macs_after(pair.source.position(place.cut)) - saved
