"""The pairs of positions that a search tries: a tap in the target, a cut in the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import Incompatible
from ..manifest import Candidate
from ..network.adapter import resampled
from ..network.branch import Head, cuts, find_head
from ..network.build import Network
from ..network.graph import Trace, trace
from ..network.position import INPUT, Outline, Position
from ..network.tape import observe
from .adapter import kernel_for
from .features import block_positions


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


def make_grid(
    source: Network, target: Network, taps: Sequence[str] = (), cut_names: Sequence[str] = ()
) -> Grid:
    """All pairs of block positions, or of the positions named.

    A pair whose tap is coarser than its cut is left out: what the tap has averaged away cannot
    be had back.  ``input`` is paired with ``input`` alone, whatever their sizes: an image is not
    a feature map, and there is nothing finer.
    """
    seen = observe(target.model, target.input_size)
    tr_s = trace(source.model, source.input_size)
    head = find_head(tr_s, source.classifier)
    possible = cuts(tr_s, head)
    named = {n for p in possible for n in (p.name, *p.aliases)}
    t = [seen.position(n) for n in taps] or block_positions(seen)
    s = [tr_s.position(n) for n in cut_names] or [
        c for c in block_positions(tr_s) if c.name in named
    ]
    pairs = [
        (tap, cut)
        for tap in t
        for cut in s
        if (tap.name == INPUT) == (cut.name == INPUT)
        and tap.layout.kind != "NC"
        and (cut.layout.kind != "NC" or tap.layout.grid[0] <= 16)
        and (tap.name == INPUT or _finer(tap, cut))
    ]
    if taps and cut_names:
        pairs = [(tap, cut) for tap in t for cut in s]
    if not pairs:
        raise Incompatible(
            "no pair of positions to try",
            hint="taps: " + ", ".join(p.name for p in seen.positions)
            + "; cuts: " + ", ".join(p.name for p in possible),
        )  # fmt: skip
    return Grid(seen, tr_s, head, pairs)


def _finer(tap: Position, cut: Position) -> bool:
    """Whether the tap resolves the image at least half as finely as the cut, along each axis."""
    return all(2 * t >= c for t, c in zip(tap.layout.grid, cut.layout.grid))
