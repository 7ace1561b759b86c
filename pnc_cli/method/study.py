"""Scoring candidates in closed form, from one pass of each network.

For each pair of positions: a closed-form adapter, the source's part after the cut on what it
gives, and a closed-form join, all fitted on some images and judged on others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from ..data import Images, Progress, batches, no_progress
from ..manifest import Candidate, ModuleTensor
from ..network.adapter import Adapter
from ..network.branch import Module, mean_logit, module_after
from ..network.channels import weight_cells
from ..network.graph import INPUT, Position
from ..network.modulation import fold, identity
from .adapter import exact_input, ridge
from .features import BATCH, localised_features, source_features, target_features
from .grid import Grid
from .join import fit_one_sided, gate_elsewhere
from .localize import Ranked, prune, rank_channels, select
from .modulation import fit_modulation
from .probe import probe_images
from .score import Scores, score
from .task import Task, subset

RECOVERED = 0.5  # of what a module loses with its channels, once the clone is refined
PRICE = 0.005  # accuracy that a candidate must gain to double what an image costs
SMALLEST = 0.05  # share of a module that is tried
PER_CLASS = 100  # images of a class looked at: one half to fit, the other to judge
FEWEST = 16  # images of a class looked at, where there are so many
PROBES = 256  # generated images looked at when there are no others
MEMORY = 3 << 30  # bytes of recorded features, at most
WORK = 8e11  # MACs of all pairs' modules on all images, about
ROWS = 40_000  # of a regression


@dataclass
class Study:
    """A task on the images of a search, with what both networks say about them."""

    task: Task
    grid: Grid
    seed: int
    target_pre: Tensor
    z_t: Tensor
    taps: dict[str, Tensor]
    cuts: dict[str, Tensor]
    modules: dict[str, tuple[Module, dict[str, ModuleTensor]]]
    reference: Tensor  # the source's pre-logits
    adapters: dict[tuple[str, str], Adapter] = field(default_factory=dict)
    ranked: dict[str, list[Ranked]] = field(default_factory=dict)
    pairs: list[Candidate] = field(default_factory=list)
    shares: dict[tuple[str, str, float], Candidate] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, grid: Grid, seed: int, progress: Progress = no_progress) -> Study:
        """Runs both networks on the task's images; on generated ones if it has none."""
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
        return cls(task, grid, seed, target_pre, z_t, tap_features, cut_features, modules,
                   reference)  # fmt: skip

    def score_pairs(self, progress: Progress = no_progress) -> list[Candidate]:
        """Every pair with all its channels; asked again, what was found before.

        With images the score is the mean accuracy on original and clone classes, averaged with the
        mean probability of the right class, which is less noisy (without original images: the
        branch's, averaged with the share of the variance of the source's pre-logits that survives), less the ``PRICE`` of the added MACs.  Without images it is that share, on
        generated ones.
        """
        if self.pairs:
            return self.pairs
        for (_, _, kernel, _), group in _groups(self.grid).items():
            tap = group[0][0]
            adapters = fit_adapters(
                self.task, tap, [c for _, c in group], self.taps[tap.name],
                [self.cuts[c.name] for _, c in group], kernel, ROWS,
            )  # fmt: skip
            for (_, cut), adapter in zip(group, adapters):
                progress("scoring pairs", len(self.pairs), len(self.grid.pairs))
                self.adapters[tap.name, cut.name] = adapter
                self.pairs.append(self._candidate(tap, cut, self.modules[cut.name][0], 1.0))
        progress("scoring pairs", len(self.pairs), len(self.pairs))
        return self.pairs

    def score_shares(self, candidate: Candidate, shares: Sequence[float]) -> list[Candidate]:
        """The pair of ``candidate``, with all its channels, at each share of its module, modulated in
        closed form."""
        tap, cut = (
            self.grid.target.position(candidate.tap),
            self.grid.source.position(candidate.cut),
        )
        module, slices = self.modules[cut.name]
        example = self.cuts[cut.name][:2]
        if cut.name not in self.ranked and min(shares) < 1.0:
            fit = ~self.task.held_out & (self.task.is_new | (self.task.ids < 0))
            features = localised_features(
                self.task.source, self.task.images.views[1][fit], cut, self.seed
            )
            self.ranked[cut.name] = rank_channels(module, features)
        cells = weight_cells(module.part, example)
        for share in shares:
            if (tap.name, cut.name, share) in self.shares:
                continue
            pruned, kept = copy.deepcopy(module), slices
            if share < 1.0:
                chosen = select(module, self.ranked[cut.name], share, cells)
                pruned, kept = prune(module, slices, chosen, example)
            self._modulate(tap, cut, pruned, kept)
            found = self._candidate(tap, cut, pruned, share)
            self.shares[tap.name, cut.name, share] = self._refined(found, candidate)
        return [self.shares[tap.name, cut.name, share] for share in shares]

    def _refined(self, found: Candidate, dense: Candidate) -> Candidate:
        """``found`` with the score that it will have once refined: refining wins back some of what
        it lost against ``dense``, the same pair with all its channels."""
        lost = dense.score + self._price(dense.macs) - found.score - self._price(found.macs)
        score = round(found.score + RECOVERED * max(lost, 0.0), 6)
        return msgspec.structs.replace(found, score=score)

    def _price(self, macs: float) -> float:
        return PRICE * math.log2(1 + macs / max(sum(self.grid.target.macs.values()), 1))

    def _modulate(self, tap: Position, cut: Position, module: Module, kept) -> None:
        """Puts right in closed form what an adapter and lost channels do to ``module``."""
        fit = ~self.task.held_out
        seen = self.adapters[tap.name, cut.name](self.taps[tap.name][fit])
        dense, _ = self.modules[cut.name]
        fold(module.part, fit_modulation(dense, module, kept, self.cuts[cut.name][fit], seen))

    def largest_shares(self, candidate: Candidate, room: Amounts) -> set[float]:
        """The share of the candidate's module that each limit of ``room`` leaves by itself.

        A module pruned for its MACs loses parameters too, so the larger ones may keep to all.
        """
        beside = self._beside(candidate.tap, candidate.cut)
        shares = [(limit - fixed) / max(whole - fixed, 1)
                  for limit, fixed, whole in zip(room, beside, Amounts.of(candidate))
                  if limit < math.inf]  # fmt: skip
        return {1.0 if s >= 1.0 else max(round(s - 0.005, 2), SMALLEST) for s in shares} or {1.0}

    def _candidate(self, tap: Position, cut: Position, module: Module, share: float) -> Candidate:
        adapter = self.adapters[tap.name, cut.name]
        pre, z_b = run_module(module, self.taps[tap.name], adapter)
        scores, fit = self._judge(pre, z_b)
        dense, _ = self.modules[cut.name]
        adds = self._beside(tap.name, cut.name) + Amounts(
            module_macs(self.grid, cut, dense, module, self.cuts[cut.name][:1]),
            sum(p.numel() for p in module.parameters()),
            sum(t.numel() * t.element_size() for t in module.part.state_dict().values()),
        )
        if scores is None:
            worth = fit
        else:
            worth = (
                (scores.branch + fit) / 2
                if scores.average is None
                else (scores.average + scores.soft) / 2
            )
        worth -= self._price(adds.macs)
        return Candidate(
            tap=tap.name, cut=cut.name, share=share, score=round(worth, 6),
            branch_accuracy=scores and rounded(scores.branch),
            joint_accuracy=scores and rounded(scores.joint),
            average_accuracy=scores and rounded(scores.average),
            locality=scores and rounded(scores.locality), fit=round(fit, 6), **adds._asdict(),
        )  # fmt: skip

    def _beside(self, tap: str, cut: str) -> Amounts:
        """What a clone of the pair adds beside its module: adapter, modulation and join."""
        adapter, (module, _) = self.adapters[tap, cut], self.modules[cut]
        width = self.target_pre.shape[1] + self.reference.shape[1]
        join = (width + 1) * (self.task.old + self.task.new) if self.task.old else width
        numbers = join + sum(p.numel() for p in adapter.parameters())
        numbers += sum(t.numel() for t in identity(module.part).values())
        return Amounts(adapter.macs + join, numbers, 4 * numbers)

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
            gate = fit_one_sided(pre[fit], z_t[fit], z_b[fit],
                                 mean_logit(self.grid.source, self.grid.head), task.levels)  # fmt: skip
            z_new = gate(target_pre[held], pre[held], z_t[held], z_b[held])
        return score(z_t[held], z_new, task.label_index[held]), explained


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


def module_macs(grid: Grid, cut: Position, dense: Module, module: Module, example: Tensor) -> int:
    """MACs per image of ``module``, a pruned copy of ``dense``, the part after ``cut``."""
    cells = weight_cells(dense.part, example)
    before, after = dense.part.state_dict(), module.part.state_dict()
    whole = dict(grid.source.root.state_dict())
    sliced = sum((whole[n].numel() - after[n].numel()) * k for n, k in cells.items() if n in before)
    return grid.source.macs_after(cut) - sliced


def fit_adapters(
    task: Task,
    tap: Position,
    cuts: Sequence[Position],
    tap_features: Tensor,
    cut_features: Sequence[Tensor],
    kernel: int,
    rows: int,
) -> list[Adapter]:
    """Closed-form adapters from one tap to cuts of one grid size, from the images not held out."""
    if tap.name == INPUT and cuts[0].name == INPUT:
        adapter = exact_input(task.target.ref.preprocessing, task.source.ref.preprocessing)
        if adapter is not None:
            return [adapter.to(tap_features.device)]
    adapters = [Adapter(tap.layout, c.layout, kernel).to(tap_features.device) for c in cuts]
    fit = (~task.held_out).to(tap_features.device)
    ridge(adapters, tap_features[fit], [c[fit] for c in cut_features], rows=rows)
    return [a.requires_grad_(False) for a in adapters]


@torch.no_grad()
def run_module(
    module: Module, features: Tensor, adapter: Adapter | None = None
) -> tuple[Tensor, Tensor]:
    """Pre-logits (N, D) and logits (N, K) of features at the cut, or at the tap of ``adapter``."""
    out = []
    for part in batches(len(features), BATCH):
        x = features[part]
        out.append(module(adapter(x) if adapter else x.clone()))
    return torch.cat([p for p, _ in out]), torch.cat([z for _, z in out])


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


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
    return Task(task.source, task.target, task.classes, [], images,
                torch.full((PROBES,), -1), held)  # fmt: skip


def _within_means(task: Task, grid: Grid) -> Task:
    """The task on as many images as memory and patience allow."""
    positions = {("t", t.name): t for t, _ in grid.pairs}
    positions |= {("s", c.name): c for _, c in grid.pairs}
    memory = 4 * sum(p.layout.elements for p in positions.values())
    work = sum(grid.source.macs_after(cut) for _, cut in grid.pairs)
    images = min(MEMORY / memory, WORK / max(work, 1)) / (task.old + task.new)
    return subset(task, max(FEWEST, min(PER_CLASS, int(images))), held_out_every=2)
