"""Source and target of a clone, as the places in them where one can be cut and tapped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..manifest import Candidate
from ..network.graph import Trace
from ..network.head import Head
from ..network.position import Outline, Position
from .adapter import kernel_for, resampled


@dataclass(frozen=True)
class Grid:
    """Both networks' positions, and the pairs of them to try."""

    target: Outline
    source: Trace
    head: Head
    pairs: list[tuple[Position, Position]]

    def cut(self, candidate: Candidate) -> Position:
        """The cut of ``candidate``, at its resolution."""
        return self.source.position(candidate.cut).at(candidate.resolution)

    def resampled(self, cut: Position, features: Tensor) -> Tensor:
        """The source's ``features`` (N, ...) at a cut, at the resolution of ``cut``."""
        return resampled(features, self.source.position(cut.name).layout, cut.layout)

    def kernel(self, tap: Position, cut: Position) -> int:
        """The kernel size of the adapter between two positions."""
        return kernel_for(tap.layout, cut.layout, self.source.macs_after(cut))
