"""A plan: what a search found, candidate by candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from .errors import Incompatible, UsageError
from .schema import KnownAs, Label, Natural, Sha256, Strict

Side = Literal["clone", "original"]  # classes to be cloned, or the target's own
FEWEST = 5  # images that a class must have for any of them to be held out
NOTHING: Final = "-"  # tap and cut of a clone without a copied part


@dataclass(frozen=True, order=True)
class Place:
    """Where a part of the source is attached, and how much of it: what candidates are told apart by."""

    tap: str  # position in the target
    cut: str  # position in the source
    share: float = 1.0  # of the module's cost
    resolution: float = 1.0  # of the cut's grid, along each axis
    most_parameters: int = 0  # that the copied part may keep, whatever its share; 0: no limit

    @property
    def is_head_only(self) -> bool:
        """Whether nothing of the source is copied."""
        return self.cut == NOTHING

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the module is left out."""
        return (self.share, self.resolution, self.most_parameters) == (1.0, 1.0, 0)

    @property
    def pair(self) -> Place:
        """The same positions with all of the module, at full resolution."""
        return Place(self.tap, self.cut)

    @property
    def dense(self) -> Place:
        """The same positions and resolution with all of the module's channels."""
        return replace(self, share=1.0, most_parameters=0)

    def with_share(self, share: float, most_parameters: int = 0) -> Place:
        return replace(self, share=share, most_parameters=most_parameters)


HEAD_ONLY: Final = Place(NOTHING, NOTHING, share=0.0)


class Candidate(Strict, frozen=True):
    """One (tap, cut, share, resolution) of a search, with what it gives and what it costs."""

    tap: str
    cut: str
    share: float
    score: float
    branch_accuracy: float | None
    joint_accuracy: float | None
    average_accuracy: float | None
    locality: float | None
    fit: float  # share of the variance of the source's pre-logits that survives, on held-out images
    parameters: Natural
    macs: Natural
    bytes: Natural
    most_parameters: Natural = 0  # that a budget leaves for the copied part; 0: no limit
    resolution: float = 1.0  # of the cut's grid, along each axis
    standard_error: float | None = None  # of the average accuracy

    @property
    def place(self) -> Place:
        return Place(self.tap, self.cut, self.share, self.resolution, self.most_parameters)

    @property
    def ends(self) -> tuple[list[str], list[str]]:
        """The taps and the cuts that a grid of it has; none of either is all of them."""
        return ([], []) if self.place.is_head_only else ([self.tap], [self.cut])

    @property
    def place_in_words(self) -> str:
        if self.place.is_head_only:
            return "the target's pre-logits, no copied part"
        return f"target '{self.tap}' -> source '{self.cut}', {self.kept}"

    @property
    def not_finite(self) -> str | None:
        """The first figure that is no number, if any."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                return name
        return None

    @property
    def kept(self) -> str:
        """How much of the copied part stays, in words."""
        if self.place.is_head_only:
            return "no copied part"
        coarse = f", resolution {self.resolution:g}" if self.resolution < 1 else ""
        most = f", at most {self.most_parameters:,} parameters" if self.most_parameters else ""
        return f"share {self.share:g}{coarse}{most}"


HEAD_ONLY_CANDIDATE: Final = Candidate(
    tap=NOTHING,
    cut=NOTHING,
    share=0.0,
    score=0.0,
    branch_accuracy=None,
    joint_accuracy=None,
    average_accuracy=None,
    locality=None,
    fit=0.0,
    parameters=0,
    macs=0,
    bytes=0,
)  # before anything was measured


class Plan(Strict, frozen=True):
    """What ``pnc search`` found; ``pnc clone --plan`` takes the chosen candidate from it."""

    schema: Literal["pnc.plan/1"]
    source_sha256: Sha256
    target_sha256: Sha256
    classes: list[Label]
    data: Literal["images", "generated"]
    images: Natural
    original_images: Natural
    target_macs: Natural
    target_parameters: Natural
    seed: int
    chosen: Natural  # index into candidates
    candidates: list[Candidate]
    # standard errors of what the chosen one gives: of what it falls short of the best (None: it is
    # the best), and of what it gains over the clone without a copied part (None: not known)
    error: float | None = None
    floor_error: float | None = None
    best: Natural | None = None  # index of what the chosen one falls short of (None: of nothing)
    # sides whose figures are of images that were fitted on, as none could be held out
    fitted: list[Side] = msgspec.field(default_factory=list)
    # clone classes whose images the target answers with one of its own; left out where there are none
    known_already: list[KnownAs] | UnsetType = UNSET

    @property
    def held_against(self) -> Candidate | None:
        """The best copied part, where the chosen one is another, cheaper one: what ``error`` is of."""
        return None if self.best is None else self.candidates[self.best]

    def row(self, number: int) -> Candidate:
        """The candidate in row ``number``, counted from 1.  Raises ``UsageError``."""
        if not 1 <= number <= len(self.candidates):
            raise UsageError(
                f"--row {number}: the plan has the rows 1 to {len(self.candidates)}",
                hint=f"--row {self.chosen + 1} is the one that it chose",
            )
        return self.candidates[number - 1]

    def pick(self, wanted: Wanted) -> Candidate:
        """The best candidate that copies something and is as ``wanted``.  Raises ``Incompatible``."""
        copying = [c for c in self.candidates if not c.place.is_head_only]
        found = [c for c in copying if not wanted.faults(c, self)]
        if found:
            return found[0]
        near = min(copying, key=lambda c: (len(wanted.faults(c, self)), c.macs))
        raise Incompatible(
            f"no candidate of the plan is as asked for; row {self.candidates.index(near) + 1} is "
            f"nearest, {near.place_in_words}, but: {'; '.join(wanted.faults(near, self))}",
            hint="leave --plan out: pnc clone searches by itself, within the same options",
        )


@dataclass(frozen=True)
class Wanted:
    """What a candidate of a plan is to be like; nothing where it does not matter.  Limits on MACs and
    parameters are shares of the target's."""

    taps: Sequence[str] = ()
    cuts: Sequence[str] = ()
    shares: Sequence[float] = ()
    resolutions: Sequence[float] = ()
    max_macs: float | None = None
    max_params: float | None = None
    max_bytes: float | None = None

    @property
    def is_any(self) -> bool:
        return self != Wanted()

    def faults(self, c: Candidate, plan: Plan) -> list[str]:
        """In what ``c`` is not as wanted, in words."""
        found = []
        for name, value, among in (
            ("tap", c.tap, self.taps),
            ("cut", c.cut, self.cuts),
        ):
            if among and value not in among:
                found.append(f"its {name} is '{value}', wanted {' or '.join(among)}")
        for name, number, numbers in (
            ("share", c.share, self.shares),
            ("resolution", c.resolution, self.resolutions),
        ):
            if numbers and not any(abs(number - n) < SAME for n in numbers):
                listed = " or ".join(f"{n:g}" for n in numbers)
                found.append(f"its {name} is {number:g}, wanted {listed}")
        for name, part, most in (
            ("MACs", c.macs / max(plan.target_macs, 1), self.max_macs),
            ("parameters", c.parameters / max(plan.target_parameters, 1), self.max_params),
        ):
            if most is not None and part > most:
                found.append(f"it adds {part:.3g} of the target's {name}, wanted {most:g} at most")
        if self.max_bytes is not None and c.bytes > self.max_bytes:
            found.append(f"it adds {c.bytes:,} bytes, wanted {self.max_bytes:,} at most")
        return found


SAME = 0.005  # of shares that are written with two digits
