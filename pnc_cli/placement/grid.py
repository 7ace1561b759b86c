"""The places that a search tries: a tap in the target with a cut in the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..branch.pair import Pair
from ..errors import Incompatible
from ..network.graph import trace
from ..network.head import cuts, find_head
from ..network.load import Network
from ..network.position import CONTAINERS, INPUT, Outline, Position
from ..network.tape import observe
from ..plan import Place

NEARLY_ALL = 0.75  # share of a network's MACs: what has more is not one of its blocks
READABLE = 16  # cells a side of a tap, at most, whose average stands for a vector in the source


@dataclass(frozen=True)
class Grid(Pair):
    """Both networks, and the places to try, with all of the module at full resolution."""

    places: list[Place] = field(default_factory=list, kw_only=True)

    def readable_at(self, resolutions: Sequence[float], columns: Sequence[int]) -> Grid:
        """The pairs whose cut's map the part for the classes ``columns`` can read at one of
        ``resolutions``, which may be none; no image is looked at."""
        coarse = [r for r in resolutions if r < 1.0]
        if len(coarse) < len(resolutions) or not coarse:
            return self

        def reads(place: Place) -> bool:
            return any(self.reads_coarser(replace(place, resolution=r), columns) for r in coarse)

        return replace(self, places=[p for p in self.places if reads(p)])


def make_grid(
    source: Network, target: Network, taps: Sequence[str] = (), cut_names: Sequence[str] = ()
) -> Grid:
    """All pairs of block positions, or of the positions named.

    A pair whose tap is coarser than its cut is left out: what the tap has averaged away cannot
    be had back.  ``input`` is paired with ``input`` alone, whatever their sizes: an image is not
    a feature map, and there is nothing finer.
    """
    seen = observe(target.model, target.input_size)
    traced = trace(source.model, source.input_size)
    head = find_head(traced, source.classifier)
    possible = cuts(traced, head)
    named = {n for p in possible for n in (p.name, *p.aliases)}
    t = [seen.position(n) for n in taps] or block_positions(seen)
    s = [traced.position(n) for n in cut_names]
    s = s or [c for c in block_positions(traced) if c.name in named]
    pairs = [(tap, cut) for tap in t for cut in s]
    if not (taps and cut_names):
        pairs = [(tap, cut) for tap, cut in pairs if _worth_a_try(tap, cut)]
    if not pairs:
        known = "; ".join(
            f"{what}: " + ", ".join(p.name for p in positions)
            for what, positions in (("taps", seen.positions), ("cuts", possible))
        )
        raise Incompatible("no pair of positions to try", hint=known)
    return Grid(seen, traced, head, places=[Place(tap.name, cut.name) for tap, cut in pairs])


def _worth_a_try(tap: Position, cut: Position) -> bool:
    if (tap.name == INPUT) != (cut.name == INPUT) or tap.layout.kind == "NC":
        return False
    if cut.layout.kind == "NC" and tap.layout.grid[0] > READABLE:
        return False
    return tap.name == INPUT or _finer(tap, cut)


def _finer(tap: Position, cut: Position) -> bool:
    """Whether the tap resolves the image at least half as finely as the cut, along each axis."""
    return all(2 * t >= c for t, c in zip(tap.layout.grid, cut.layout.grid))


def block_positions(network: Outline) -> list[Position]:
    """The positions between blocks, without those inside one and those that cost nothing more.

    A position inside a block that is itself a position (``blocks.0.0.bn1``) is left out, unless
    the block is a plain sequence or nearly the whole network; so is all but the last of a run
    without any work in between (``bn1``, ``act1``, ``maxpool``).
    """
    named = {n: p for p in network.positions for n in (p.name, *p.aliases)}
    starts: dict[str, float] = {}  # the depth at which each module begins
    for before, p in zip((0.0, *(p.depth for p in network.positions)), network.positions):
        for parent in _parents(p.name):
            starts.setdefault(parent, before)

    def is_block(name: str) -> bool:
        if name not in named or isinstance(network.root.get_submodule(name), CONTAINERS):
            return False
        return named[name].depth - starts[name] < NEARLY_ALL

    outer = [p for p in network.positions if not any(map(is_block, _parents(p.name)))]
    kept = []
    for p, following in zip(outer, outer[1:]):
        free = following.depth == p.depth and following.layout.elements <= p.layout.elements
        if p.name == INPUT or not free:
            kept.append(p)
    return [*kept, *outer[-1:]]


def _parents(name: str) -> list[str]:
    """``a.b.c`` -> ``a.b``, ``a``."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]
