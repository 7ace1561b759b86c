"""Scoring candidates in closed form, from one pass of each network.

For each pair of positions: a closed-form adapter, the source's part after the cut on what it
gives, and a closed-form join, all fitted on some images and judged on others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import torch
from torch import Tensor

from ..branch.adapter import Adapter, fit_adapters, resampled
from ..branch.cost import Amounts, beside_module, of_module
from ..branch.join import fit_one_sided, gate_elsewhere
from ..branch.modulation import fit_modulation, fold
from ..branch.pair import Grid
from ..branch.recipe import SMALLEST, run_module
from ..branch.score import Scores, rounded, score
from ..branch.task import Task, subset
from ..channels.groups import Group, prunable_groups, weight_cells
from ..channels.localised import localised_features
from ..channels.prune import Ranked, prune, rank_groups, select
from ..data import Images, Progress, no_progress
from ..manifest import Candidate, ModuleTensor
from ..network.features import source_features, target_features
from ..network.head import mean_logit
from ..network.part import Module, module_after
from ..network.position import INPUT, Position
from .probe import probe_images

RECOVERED = 0.5  # of what a module loses with its channels, once the clone is refined
PER_CLASS = 100  # images of a class looked at: one half to fit, the other to judge
FEWEST = 16  # images of a class looked at, where there are so many
SOME = 10  # original classes looked at, where there are so many
PROBES = 256  # generated images looked at when there are no others
MEMORY = 3 << 30  # bytes of recorded features, at most
WORK = 8e11  # MACs of all pairs' modules on all images, about
ROWS = 40_000  # of a regression


@dataclass(frozen=True)
class Place:
    """A pair of positions, the cut at some resolution, with the adapter from one to the other."""

    tap: Position
    cut: Position
    resolution: float
    adapter: Adapter

    @property
    def key(self) -> tuple[str, str, float]:
        return self.tap.name, self.cut.name, self.resolution


@dataclass
class Study:
    """A task on the images of a search, with what both networks say about them."""

    whole: Task
    task: Task  # on the images that are looked at
    grid: Grid
    seed: int
    target_pre: Tensor
    z_t: Tensor
    taps: dict[str, Tensor]
    cuts: dict[str, Tensor]
    modules: dict[str, tuple[Module, dict[str, ModuleTensor]]]
    reference: Tensor  # the source's pre-logits
    places: dict[tuple[str, str, float], Place | None] = field(default_factory=dict)
    ranked: dict[str, list[Ranked]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], Candidate] = field(default_factory=dict)
    shares: dict[tuple[str, str, float, float], Candidate] = field(default_factory=dict)
    tried: dict[tuple[str, str, float, float, int], Candidate] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, grid: Grid, seed: int, progress: Progress = no_progress) -> Study:
        """Runs both networks on the task's images; on generated ones if it has none."""
        whole = task
        task = _with_probes(task, seed) if task.images is None else _within_means(task, grid)
        taps = list(dict.fromkeys(t.name for t, _ in grid.pairs))
        positions = list({c.name: c for _, c in grid.pairs}.values())
        target_pre, z_t, tap_features = target_features(
            task.target, task.images.views[0], taps, progress=progress
        )
        _, cut_features = source_features(
            task.source, task.images.views[1], positions, progress=progress
        )
        modules = {c.name: module_after(grid.source, grid.head, c, task.columns) for c in positions}
        first = positions[0].name
        reference, _ = run_module(modules[first][0], cut_features[first])
        return cls(
            whole, task, grid, seed, target_pre, z_t, tap_features, cut_features, modules, reference
        )

    def score_pairs(self, progress: Progress = no_progress) -> list[Candidate]:
        """Every pair with all its channels; asked again, what was found before.

        With images the score is the mean accuracy on original and clone classes, averaged with the
        mean probability of the right class, which is less noisy (without original images: the
        branch's, averaged with the share of the variance of the source's pre-logits that
        survives), less the ``PRICE`` of the added MACs.  Without images it is that share, on
        generated ones.
        """
        if self.pairs:
            return list(self.pairs.values())
        for (_, _, kernel, _), group in _groups(self.grid).items():
            tap = group[0][0]
            adapters = fit_adapters(
                self.task,
                tap,
                [c for _, c in group],
                self.taps[tap.name],
                [self.cuts[c.name] for _, c in group],
                kernel,
                ROWS,
            )
            for (_, cut), adapter in zip(group, adapters):
                progress("scoring pairs", len(self.pairs), len(self.grid.pairs))
                place = Place(tap, cut, 1.0, adapter)
                self.places[place.key] = place
                found = self.judged(place, self.modules[cut.name][0])
                self.pairs[tap.name, cut.name] = found
        progress("scoring pairs", len(self.pairs), len(self.pairs))
        return list(self.pairs.values())

    def place(self, pair: Candidate, resolution: float) -> Place | None:
        """The place of ``pair`` at a resolution; None where its module cannot read that."""
        key = (pair.tap, pair.cut, resolution)
        if key not in self.places:
            self.places[key] = self._at(*key)
        return self.places[key]

    def score_shares(self, place: Place, shares: Sequence[float]) -> list[Candidate]:
        """A place with each share of its module, modulated in closed form."""
        for share in shares:
            if (*place.key, share) not in self.shares:
                module, kept = self._pruned(place, share)
                self._modulate(place, module, kept)
                self.shares[(*place.key, share)] = self.refined(self.judged(place, module, share))
        return [self.shares[(*place.key, share)] for share in shares]

    def _pruned(self, place: Place, share: float) -> tuple[Module, dict[str, ModuleTensor]]:
        """A share of the place's module, and how its tensors are sliced."""
        module, slices = self.modules[place.cut.name]
        if share >= 1.0:
            return copy.deepcopy(module), slices
        self.rank([place.cut.name])
        example = self.cuts[place.cut.name][:2]
        cells = weight_cells(module.part, self.grid.resampled(place.cut, example))
        chosen = select(module, self.ranked[place.cut.name], share, cells)
        return prune(module, slices, chosen, example)

    def rank(self, cuts: Iterable[str]) -> None:
        """Ranks the channels of the modules after ``cuts``.

        What is cut earlier comes first: a group of channels is the same group in every module that
        has all of it, so it is ranked once.
        """
        new = [self.grid.source.position(c) for c in dict.fromkeys(cuts) if c not in self.ranked]
        for cut in sorted(new, key=lambda c: c.spent):
            module, _ = self.modules[cut.name]
            groups = prunable_groups(module.part, self.cuts[cut.name][:2])
            known = {_stands(r.group): r for ranked in self.ranked.values() for r in ranked}
            left = [g for g in groups if _stands(g) not in known]
            if left:
                fit = ~self.task.held_out & (self.task.is_new | (self.task.ids < 0))
                features = localised_features(
                    self.task.source, self.task.images.views[1][fit], cut, self.seed
                )
                known |= {_stands(r.group): r for r in rank_groups(module, features, left)}
            self.ranked[cut.name] = [replace(known[_stands(g)], group=g) for g in groups]

    def _at(self, tap: str, cut: str, resolution: float) -> Place | None:
        full, there = self.grid.source.position(cut), self.grid.target.position(tap)
        layout = full.layout.at(resolution)
        if layout is None or layout == full.layout:
            return None
        module, example = self.modules[cut][0], self.cuts[cut][:2]
        try:
            found = run_module(module, resampled(example, full.layout, layout))
        except (RuntimeError, ValueError, IndexError):  # a size stands in its graph
            return None
        if [t.shape for t in found] != [t.shape for t in run_module(module, example)]:
            return None
        coarse = full.at(resolution)
        [adapter] = fit_adapters(
            self.task,
            there,
            [coarse],
            self.taps[tap],
            [self.cuts[cut]],
            self.grid.kernel(there, coarse),
            ROWS,
        )
        return Place(there, coarse, resolution, adapter)

    def refined(self, found: Candidate) -> Candidate:
        """``found`` with the score that it will have once refined: refining wins back some of what
        it lost against the same pair with all its channels and cells."""
        dense = self.pairs[found.tap, found.cut]
        lost = dense.score - found.score
        lost += price(self.grid, dense.macs) - price(self.grid, found.macs)
        score = round(found.score + RECOVERED * max(lost, 0.0), 6)
        return msgspec.structs.replace(found, score=score)

    def _modulate(self, place: Place, module: Module, kept: dict[str, ModuleTensor]) -> None:
        """Puts right in closed form what an adapter and lost channels do to ``module``."""
        fit = ~self.task.held_out
        seen = place.adapter(self.taps[place.tap.name][fit])
        dense, _ = self.modules[place.cut.name]
        features = self.grid.resampled(place.cut, self.cuts[place.cut.name][fit])
        fold(module.part, fit_modulation(dense, module, kept, features, seen))

    def largest_share(self, place: Place, room: Amounts) -> float:
        """The largest share of the place's module, about, that ``room`` leaves."""
        module, _ = self.modules[place.cut.name]
        beside, whole = self.beside(place), self._adds(place, module)
        limits = [
            (limit - fixed) / max(all_of_it - fixed, 1)
            for limit, fixed, all_of_it in zip(room, beside, whole)
            if limit < math.inf
        ]
        shares = [min(max(round(s - 0.005, 2), SMALLEST), 1.0) for s in limits] or [1.0]
        low, high = min(shares), max(shares)
        # What is pruned for its MACs loses parameters too, so more than ``low`` may do for both.
        share = high
        while high - low > 0.03:
            adds = self._adds(place, self._pruned(place, share)[0])
            if adds.within(room):
                low = share
            else:
                high = share
            share = round((low + high) / 2, 2)
        return low

    def judged(self, place: Place, module: Module, share: float = 1.0) -> Candidate:
        """What a branch with ``module``, a ``share`` of the place's, gives on the images held out,
        and what it costs."""
        pre, z_b = run_module(module, self.taps[place.tap.name], place.adapter)
        scores, fit = self._judge(pre, z_b)
        adds = self._adds(place, module)
        if scores is None:
            worth = fit
        else:
            worth = (
                (scores.branch + fit) / 2
                if scores.average is None
                else (scores.average + scores.soft) / 2
            )
        worth -= price(self.grid, adds.macs)
        tap, cut, resolution = place.key
        return Candidate(
            tap=tap,
            cut=cut,
            share=share,
            resolution=resolution,
            score=round(worth, 6),
            branch_accuracy=scores and rounded(scores.branch),
            joint_accuracy=scores and rounded(scores.joint),
            average_accuracy=scores and rounded(scores.average),
            locality=scores and rounded(scores.locality),
            fit=round(fit, 6),
            **adds._asdict(),
        )

    def _adds(self, place: Place, module: Module) -> Amounts:
        """What a clone of ``place`` with ``module`` costs."""
        dense, _ = self.modules[place.cut.name]
        example = self.cuts[place.cut.name][:1]
        return self.beside(place) + of_module(self.grid, place.cut, dense, module, example)

    def beside(self, place: Place) -> Amounts:
        """What a clone of ``place`` costs beside its module."""
        module, _ = self.modules[place.cut.name]
        width = self.target_pre.shape[1] + self.reference.shape[1]
        return beside_module(place.adapter, module, self.whole, width)

    def _judge(self, pre: Tensor, z_b: Tensor) -> tuple[Scores | None, float]:
        """Figures on the held-out images, and the share of the pre-logits' variance explained."""
        task, reference = self.task, self.reference
        held, fit = task.judged, ~task.held_out
        rest = (pre[held] - reference[held]).square().sum()
        spread = (reference[held] - reference[held].mean(0)).square().sum()
        explained = 1.0 - (rest / spread.clamp(min=1e-12)).item()
        if not bool(task.is_new.any()):
            return None, explained
        target_pre, pre, z_t, z_b = (t.cpu() for t in (self.target_pre, pre, self.z_t, z_b))
        if task.old:
            features = torch.cat([target_pre, pre], dim=1)
            g = gate_elsewhere(features, task.ids, fit, held, task.old, task.new)
            z_new = (g + z_t[held].logsumexp(1))[:, None] + z_b[held].log_softmax(1)
        else:
            gate = fit_one_sided(
                pre[fit],
                z_t[fit],
                z_b[fit],
                mean_logit(self.grid.source, self.grid.head),
                task.levels,
            )
            z_new = gate(target_pre[held], pre[held], z_t[held], z_b[held])
        return score(z_t[held], z_new, task.label_index[held]), explained


def _stands(group: Group) -> tuple:
    """Where a group's channels stand: the same in every module that has all of it."""
    return tuple((*site, indices.tobytes()) for site, indices in group.sites.items())


def _groups(grid: Grid) -> dict[tuple, list[tuple[Position, Position]]]:
    """Pairs by tap, grid size and kernel, which they have in common: their regressions share
    their left side."""
    groups: dict[tuple, list] = {}
    for tap, cut in grid.pairs:
        key = (tap.name, cut.layout.grid, grid.kernel(tap, cut), cut.name == INPUT)
        groups.setdefault(key, []).append((tap, cut))
    return groups


def _with_probes(task: Task, seed: int) -> Task:
    """The task on generated images, which belong to no class."""
    views = [probe_images(PROBES, n.input_size, seed) for n in (task.target, task.source)]
    held = torch.arange(PROBES) % 4 == 3
    images = Images(views, [""] * PROBES)
    return Task(task.source, task.target, task.classes, [], images, torch.full((PROBES,), -1), held)


def _within_means(task: Task, grid: Grid) -> Task:
    """The task on as many images as memory and patience allow."""
    positions = {("t", t.name): t for t, _ in grid.pairs}
    positions |= {("s", c.name): c for _, c in grid.pairs}
    memory = 4 * sum(p.layout.elements for p in positions.values())
    work = sum(grid.source.macs_after(cut) for _, cut in grid.pairs)
    images = min(MEMORY / memory, WORK / max(work, 1))
    old = min(task.old, max(SOME, int(images / FEWEST) - task.new))
    per_class = max(FEWEST, min(PER_CLASS, int(images / (old + task.new))))
    return subset(task, per_class, held_out_every=2, originals=old)


PRICE = 0.005  # accuracy that a candidate must gain to double what an image costs


def price(grid: Grid, macs: float) -> float:
    """The accuracy that so many added MACs are worth."""
    return PRICE * math.log2(1 + macs / max(sum(grid.target.macs.values()), 1))
