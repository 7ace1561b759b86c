"""Source and target of a clone, as the places in them where one can be tapped and the other cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..channels.groups import weight_cells
from ..limits import Limits
from ..manifest import ModuleTensor
from ..network.graph import Trace
from ..network.head import Head
from ..network.part import Module, module_after
from ..network.position import Outline, Position
from ..network.shapes import device_of
from ..plan import Place
from .adapter import kernel_for, resampled

INSIDE = 6  # layers of a block are as much wider, or as many of its tensors are alive at once

Slices = dict[str, ModuleTensor]  # how each tensor of a module is sliced out of the source's


@dataclass(frozen=True)
class Pair:
    """The target's positions, and the source's graph with where it ends."""

    target: Outline
    source: Trace
    head: Head
    _parts: dict[tuple[str, tuple[int, ...]], tuple[Module, Slices]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _read: dict[tuple[str, float], bool] = field(default_factory=dict, repr=False, compare=False)
    _cells: dict[tuple[str, float], dict[str, int]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def target_macs(self) -> int:
        """Multiply-accumulates of the target per image."""
        return sum(self.target.macs.values())

    def elements(self, taps: Iterable[str], cuts: Iterable[str]) -> int:
        """Numbers of an image's features at some positions of the two networks."""
        found = [self.target.position(t) for t in taps] + [self.source.position(c) for c in cuts]
        return sum(p.layout.elements for p in found)

    @property
    def widest(self) -> int:
        """Numbers of the largest layer's output, of either network, for an image, about."""
        every = (*self.target.positions, *self.source.positions)
        return INSIDE * max(p.layout.elements for p in every)

    def at_once(self, taps: Iterable[str], cuts: Iterable[str], limits: Limits) -> int:
        """Images that both networks are run on together, with the features that are wanted."""
        each = 4 * (self.widest + self.elements(taps, cuts))
        return max(1, min(limits.batch, limits.running // each))

    def runs_together(self, limits: Limits) -> int:
        """Images that one network can be run on in one go, at most."""
        return max(2, 2 * limits.running // (4 * self.widest))

    @property
    def source_macs(self) -> int:
        return sum(self.source.macs.values())

    def plain_macs(self, images: int) -> int:
        """MACs of a plain pass: of both networks over so many images."""
        return (self.target_macs + self.source_macs) * images

    @property
    def pre_logits(self) -> Sequence[str] | None:
        """The source's modules whose input are its pre-logits, as ``watching`` takes them: its
        classifier's (None), or none where its logits stand for them."""
        return () if self.head.pre == self.head.logits else None

    def tap(self, place: Place) -> Position:
        return self.target.position(place.tap)

    def cut(self, place: Place) -> Position:
        """The place's cut, at its resolution."""
        return self.source.position(place.cut).at(place.resolution)

    def resampled(self, place: Place, features: Tensor) -> Tensor:
        """The source's ``features`` (N, ...) at the place's cut, at its resolution."""
        return resampled(features, self.source.position(place.cut).layout, self.cut(place).layout)

    def kernel(self, place: Place) -> int:
        """The kernel size of the place's adapter."""
        cut = self.cut(place)
        return kernel_for(self.tap(place).layout, cut.layout, self.source.macs_after(cut))

    def part(self, cut: str, columns: Sequence[int]) -> tuple[Module, Slices]:
        """All of the source after ``cut`` for the classes ``columns``; shared, not to be changed."""
        key = (cut, tuple(columns))
        if key not in self._parts:
            position = self.source.position(cut)
            self._parts[key] = module_after(self.source, self.head, position, list(columns))
        return self._parts[key]

    def reads_coarser(self, place: Place, columns: Sequence[int]) -> bool:
        """Whether the place's cut has another map at the place's resolution, and the part after it
        reads that: tokens have none, and a size may stand in the part's graph."""
        key = (place.cut, place.resolution)
        if key not in self._read:
            full = self.source.position(place.cut)
            other = full.layout.at(place.resolution) not in (None, full.layout)
            self._read[key] = other and self._answers_alike(full, self.cut(place), columns)
        return self._read[key]

    @torch.no_grad()
    def _answers_alike(self, cut: Position, coarse: Position, columns: Sequence[int]) -> bool:
        """Whether the part after ``cut`` says as much of a blank map at ``coarse`` as of one there."""
        module, _ = self.part(cut.name, columns)
        device = device_of(self.source.root)
        try:
            found, expected = (
                [t.shape for t in module(torch.zeros(2, *p.layout.shape, device=device))]
                for p in (coarse, cut)
            )
        except (RuntimeError, ValueError, IndexError):
            return False
        return found == expected

    def cells(self, place: Place, columns: Sequence[int]) -> dict[str, int]:
        """How often an image uses each weight of the part after the place's cut, at its resolution
        (:func:`~pnc_cli.channels.groups.weight_cells`)."""
        key = (place.cut, place.resolution)
        if key not in self._cells:
            dense, _ = self.part(place.cut, columns)
            shape, device = self.cut(place).layout.shape, device_of(self.source.root)
            self._cells[key] = weight_cells(dense.part, torch.zeros(1, *shape, device=device))
        return self._cells[key]
