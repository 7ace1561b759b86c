"""What branches are made from: a task's images as both networks see them, a batch at a time.

Nothing that grows with the number of images is kept but what is small: pre-logits and logits.
Features pass by (:meth:`Material.look`); a :class:`Sample` of them stays, as many as memory holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Progress, no_progress, spread
from ..limits import LIMITS, Limits
from ..network.features import Seen, device_of, glancing, prepared, watching
from ..network.part import Module
from ..network.position import INPUT
from ..plan import Place
from .adapter import Adapter, AdapterFit, Regression, exact_input
from .pair import Pair
from .task import Task

ROWS_AN_INPUT = 4  # of a regression: with fewer, what it explains says little


@dataclass(frozen=True)
class Look:
    """Features (B, ...) of some images: the target's at taps, the source's at cuts."""

    index: Tensor  # (B,) of the task's images
    taps: dict[str, Tensor]
    cuts: dict[str, Tensor]


@dataclass(frozen=True)
class Sample(Look):
    """Features of fitted images that stay: what is put right or checked on them needs them twice."""


class Fits:
    """The adapters of some places, fitted while features pass by."""

    def __init__(self, pair: Pair, task: Task, places: Sequence[Place], rows: int) -> None:
        """Each is fitted to about ``rows`` cells of the images that are not held out; to more where
        it has many inputs."""
        self._exact: dict[Place, Adapter] = {}
        self._groups: list[tuple[list[Place], AdapterFit]] = []
        self.explained: dict[Place, float] = {}
        images, device = max(int((~task.held_out).sum()), 1), device_of(task.target)
        for group in alike(pair, places):
            tap, cuts = pair.tap(group[0]), [pair.cut(p) for p in group]
            if tap.name == cuts[0].name == INPUT:
                views = task.target.ref.preprocessing, task.source.ref.preprocessing
                exact = exact_input(tap.layout, cuts[0].layout, *views)
                if exact is not None:
                    self._exact |= {p: exact.requires_grad_(False).to(device) for p in group}
                    continue
            size = Size.of(pair, group)
            cells = -(-size.rows(rows) // images)
            layouts = [c.layout for c in cuts]
            fit = AdapterFit(tap.layout, layouts, pair.kernel(group[0]), cells, device)
            self._groups.append((group, fit))
        self._generator = torch.Generator().manual_seed(0)

    @property
    def needs_features(self) -> bool:
        return bool(self._groups)

    def add(self, look: Look) -> None:
        """Adds images, none of which is held out."""
        for group, fit in self._groups:
            cuts = [look.cuts[p.cut] for p in group]
            fit.add(look.taps[group[0].tap], cuts, self._generator)

    def solve(self) -> dict[Place, Adapter]:
        """The adapter of each place; ``explained`` then says how much each explains."""
        found = dict(self._exact)
        self.explained = dict.fromkeys(found, 1.0)
        while self._groups:
            group, fit = self._groups.pop()
            for place, (adapter, explained) in zip(group, fit.solve()):
                found[place] = adapter.to(fit.sums.xx.device)
                self.explained[place] = explained
        return found


@dataclass(frozen=True)
class Size:
    """Of a regression: how many inputs, and outputs of all its places."""

    inputs: int
    outputs: int

    @classmethod
    def of(cls, pair: Pair, group: Sequence[Place]) -> Size:
        """Of places that are :func:`alike`."""
        inputs = pair.tap(group[0]).layout.channels * pair.kernel(group[0]) ** 2
        return cls(inputs, sum(pair.cut(p).layout.channels for p in group))

    @property
    def bytes(self) -> int:
        return Regression.bytes_of(self.inputs, self.outputs)

    def rows(self, wanted: int) -> int:
        """Rows to fit it to: ``wanted``, but enough for its inputs."""
        return max(wanted, ROWS_AN_INPUT * self.inputs)

    def macs(self, wanted: int) -> float:
        return float(self.rows(wanted)) * self.inputs * (self.inputs + self.outputs)


def alike(pair: Pair, places: Sequence[Place]) -> list[list[Place]]:
    """Places by tap, grid size and kernel, which they have in common: their regressions share
    their left side."""
    groups: dict[tuple, list[Place]] = {}
    for place in places:
        cells = pair.cut(place).layout.grid
        key = (place.tap, cells, pair.kernel(place), place.cut == INPUT)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


@dataclass(frozen=True)
class Material:
    """The N images of ``task`` with what both networks answer: pre-logits (N, D) and logits (N, C)
    of the target, and those of the source, the logits of the clone classes alone."""

    task: Task
    pair: Pair
    limits: Limits
    target_pre: Tensor
    z_t: Tensor
    source_pre: Tensor
    z_s: Tensor

    @classmethod
    def of(
        cls,
        task: Task,
        pair: Pair,
        fits: Fits | None = None,
        taps: Iterable[str] = (),
        cuts: Iterable[str] = (),
        *,
        limits: Limits = LIMITS,
        progress: Progress = no_progress,
    ) -> Material:
        """One forward pass of each network over the task's images, which feeds ``fits`` with the
        features at ``taps`` and ``cuts``."""
        taps, cuts = list(dict.fromkeys(taps)), list(dict.fromkeys(cuts))
        fit, found = ~task.held_out, []
        batch = pair.at_once(taps, cuts, limits)
        with (
            watching(task.target, taps) as see_target,
            watching(task.source, cuts, pair.pre_logits) as see_source,
        ):
            for index in torch.arange(len(task.ids)).split(batch):
                progress("looking at the images", int(index[0]), len(task.ids))
                for_target, for_source = (task.pixels.at(index, view) for view in (0, 1))
                target = see_target(prepared(task.target, for_target))
                source = see_source(prepared(task.source, for_source))
                if fits is not None and bool(fit[index].any()):
                    fits.add(_of(target, source, index, fit[index]))
                answers = (target.answers, source.answers)
                found.append([t.cpu() for a in answers for t in (a.pre, a.logits)])
        progress("looking at the images", len(task.ids), len(task.ids))
        target_pre, z_t, source_pre, z_s = (torch.cat(t) for t in zip(*found))
        return cls(task, pair, limits, target_pre, z_t, source_pre, z_s[:, task.columns])

    @property
    def fit(self) -> Tensor:
        """(N,) the images that something may be fitted to."""
        return ~self.task.held_out

    @property
    def plain_macs(self) -> int:
        """MACs of a plain pass over all images."""
        return self.pair.plain_macs(len(self.task.ids))

    @property
    def device(self) -> torch.device:
        return device_of(self.task.target)

    def look(
        self,
        index: Tensor,
        taps: Iterable[str],
        cuts: Iterable[str] = (),
        *,
        what: str = "",
        progress: Progress = no_progress,
    ) -> Iterator[Look]:
        """Features of the images ``index`` (n,), a batch at a time; each network runs no further
        than it has to."""
        taps, cuts = list(dict.fromkeys(taps)), list(dict.fromkeys(cuts))
        task, seen = self.task, 0
        with glancing(task.target, taps) as at_target, glancing(task.source, cuts) as at_source:
            for part in index.split(self.pair.at_once(taps, cuts, self.limits)):
                if what:
                    progress(what, seen, len(index))
                for_target, for_source = (task.pixels.at(part, view) for view in (0, 1))
                found_taps = at_target(prepared(task.target, for_target)) if taps else {}
                found_cuts = at_source(prepared(task.source, for_source)) if cuts else {}
                yield Look(part, found_taps, found_cuts)
                seen += len(part)
        if what:
            progress(what, len(index), len(index))

    def sample(self, taps: Iterable[str], cuts: Iterable[str]) -> Sample:
        """Features of fitted images at some positions, as many as memory holds, evenly drawn."""
        taps, cuts = list(dict.fromkeys(taps)), list(dict.fromkeys(cuts))
        most = self.limits.sample // max(4 * self.pair.elements(taps, cuts), 1)
        most = max(2, min(most, self.pair.runs_together(self.limits)))
        fitted = self.fit.nonzero()[:, 0]
        index = fitted[spread(len(fitted), most)]
        kept: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
        seen = 0
        for look in self.look(index, taps, cuts):
            for store, features in zip(kept, (look.taps, look.cuts)):
                for name, f in features.items():
                    room = store.setdefault(name, f.new_empty(len(index), *f.shape[1:]))
                    room[seen : seen + len(f)] = f
            seen += len(look.index)
        return Sample(index, *kept)

    def answers(
        self,
        branches: Sequence[tuple[Place, Adapter, Module]],
        index: Tensor,
        progress: Progress = no_progress,
    ) -> list[tuple[Tensor, Tensor]]:
        """Pre-logits (n, D) and logits (n, K) of branches for the images ``index`` (n,), in one
        pass of the target."""
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in branches]
        taps = [place.tap for place, *_ in branches]
        with torch.no_grad():
            for look in self.look(index, taps, what="judging on images", progress=progress):
                for (place, adapter, module), answers in zip(branches, found):
                    pre, z = module(adapter(look.taps[place.tap]))
                    answers.append((pre.cpu(), z.cpu()))
        return [(torch.cat([p for p, _ in a]), torch.cat([z for _, z in a])) for a in found]


def _of(target: Seen, source: Seen, index: Tensor, keep: Tensor) -> Look:
    """Of a batch ``index`` (B,), the images that ``keep`` (B,) marks."""
    taps, cuts = target.features, source.features
    if not bool(keep.all()):
        taps, cuts = ({n: f[keep.to(f.device)] for n, f in x.items()} for x in (taps, cuts))
    return Look(index[keep], taps, cuts)
