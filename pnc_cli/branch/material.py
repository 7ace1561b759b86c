"""What branches are made from: a task's images as both networks see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..data import Progress, no_progress
from ..manifest import Place
from ..network.features import source_features, target_features
from .adapter import Adapter, fit_adapters
from .pair import Pair
from .task import Task


@dataclass(frozen=True)
class Material:
    """The N images of ``task``: the target's pre-logits (N, D) and logits (N, C), and the features
    (N, ...) of the target at some taps and of the source at some cuts."""

    task: Task
    pair: Pair
    target_pre: Tensor
    z_t: Tensor
    taps: dict[str, Tensor]
    cuts: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        task: Task,
        pair: Pair,
        taps: Iterable[str],
        cuts: Iterable[str],
        *,
        progress: Progress = no_progress,
    ) -> Material:
        """One forward pass of each network over the task's images."""
        positions = [pair.source.position(c) for c in dict.fromkeys(cuts)]
        views = task.pixels.views
        target_pre, z_t, tap_features = target_features(
            task.target, views[0], dict.fromkeys(taps), progress=progress
        )
        _, cut_features = source_features(task.source, views[1], positions, progress=progress)
        return cls(task, pair, target_pre, z_t, tap_features, cut_features)

    @property
    def fit(self) -> Tensor:
        """(N,) the images that something may be fitted to."""
        return ~self.task.held_out

    def tap(self, place: Place) -> Tensor:
        return self.taps[place.tap]

    def cut(self, place: Place) -> Tensor:
        """The source's features at the place's cut, at full resolution."""
        return self.cuts[place.cut]

    def adapters(self, places: list[Place], rows: int) -> list[Adapter]:
        """Closed-form adapters of places with one tap, one kernel and one grid at their cuts."""
        return fit_adapters(
            self.task,
            self.pair.tap(places[0]),
            [self.pair.cut(p) for p in places],
            self.tap(places[0]),
            [self.cut(p) for p in places],
            self.pair.kernel(places[0]),
            rows,
        )
