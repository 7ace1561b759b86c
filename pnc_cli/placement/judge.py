"""What branches give on images that they were not fitted to, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..branch.adapter import Adapter
from ..branch.cost import Amounts, beside_module, join_numbers, of_module
from ..branch.discriminant import best_shrinkage
from ..branch.fit_join import Evidence, Levels, fit_elsewhere
from ..branch.material import Material
from ..branch.pair import Pair
from ..branch.recipe import is_the_source_itself
from ..branch.score import UNKNOWN, Scores, rounded, score, standard_error
from ..branch.task import Task
from ..data import Progress, no_progress
from ..network.head import mean_logit
from ..network.part import Module
from ..plan import HEAD_ONLY, Candidate, Place

PRICE = 0.005  # accuracy that a candidate must gain to double what an image costs


def price(pair: Pair, macs: float) -> float:
    """The accuracy that so many added MACs are worth."""
    return PRICE * math.log2(1 + macs / max(pair.target_macs, 1))


class Judge:
    """Judges branches on images of ``material`` that are held out.

    ``whole`` is the task with all its original classes, which the join of a clone tells apart;
    the material may be of some of them.
    """

    def __init__(self, whole: Task, material: Material) -> None:
        self.whole, self.material = whole, material
        self._right: dict[Place, Tensor] = {}  # of the held-out images, where all were looked at

    @cached_property
    def shrinkage(self) -> float:
        """Of every candidate's Gaussians: chosen for both whole networks."""
        material, fit = self.material, self.material.fit
        features = torch.cat([material.target_pre, material.source_pre], dim=1)[fit]
        return best_shrinkage(
            features, material.task.ids[fit], material.task.old, material.task.new
        )

    @cached_property
    def levels(self) -> Levels:
        pair = self.material.pair
        return Levels(mean_logit(pair.source, pair.head), self.material.task.levels)

    def difference_error(self, a: Place, b: Place) -> float | None:
        """Standard error of the difference of two candidates' averages, image by image; None where they
        were not both judged on all images."""
        if a not in self._right or b not in self._right:
            return None
        task = self.material.task
        return standard_error(
            self._right[a].double() - self._right[b].double(), task.is_new[task.judged]
        )

    def head_only(self) -> Candidate:
        """The candidate without a copied part, of a task with images of original classes."""
        material, whole = self.material, self.whole
        nothing = Evidence.without_branch(material.target_pre, material.z_t, material.task.new)
        known = self._scores(nothing, torch.arange(len(material.task.ids)))
        self._right[HEAD_ONLY] = known.right
        join = join_numbers(material.target_pre.shape[1], 0, whole)
        return _candidate(HEAD_ONLY, known, _worth(known, 0.0), 0.0, Amounts(join, join, 4 * join))

    def __call__(
        self,
        branches: Sequence[tuple[Place, Adapter, Module]],
        index: Tensor | None = None,
        progress: Progress = no_progress,
    ) -> list[Candidate]:
        """The candidates of these places, with their adapters and modules, in one pass of the target
        over the images ``index`` (n,), both fitted and held-out ones (default: all).

        With images a score is the mean accuracy on original and clone classes, averaged with the
        mean probability of the right class, which is less noisy (without original images: the
        branch's, averaged with the share of the variance of the source's pre-logits that
        survives), less the ``PRICE`` of the added MACs.  Without images it is that share, on
        generated ones.
        """
        if index is None:
            index = torch.arange(len(self.material.task.ids))
        to_run = [b for b in branches if not is_the_source_itself(self.material, b[0])]
        known = (self.material.source_pre[index], self.material.z_s[index])
        ran = iter(self.material.answers(to_run, index, progress) if to_run else [])
        return [
            self._candidate(
                b, known if is_the_source_itself(self.material, b[0]) else next(ran), index
            )
            for b in branches
        ]

    def _candidate(
        self,
        branch: tuple[Place, Adapter, Module],
        answers: tuple[Tensor, Tensor],
        index: Tensor,
    ) -> Candidate:
        place, *_ = branch
        pre, z_b = answers
        fit = self._explained(pre, index)
        known, worth = UNKNOWN, fit
        if bool(self.material.task.is_new.any()):
            shown = self.material.target_pre[index], pre, self.material.z_t[index], z_b
            known = self._scores(Evidence(*shown), index)
            worth = _worth(known, fit)
            if len(index) == len(self.material.task.ids):
                self._right[place] = known.right
        adds = self.adds(*branch)
        return _candidate(place, known, worth - price(self.material.pair, adds.macs), fit, adds)

    def adds(self, place: Place, adapter: Adapter, module: Module) -> Amounts:
        """What a clone of ``place`` with ``module`` costs."""
        material = self.material
        columns = material.task.columns
        return self.beside(place, adapter).plus(of_module(material.pair, place, columns, module))

    def beside(self, place: Place, adapter: Adapter) -> Amounts:
        """What a clone of ``place`` costs beside its module."""
        material = self.material
        module, _ = material.pair.part(place.cut, material.task.columns)
        widths = material.target_pre.shape[1], material.source_pre.shape[1]
        return beside_module(adapter, module, self.whole, widths)

    def _explained(self, pre: Tensor, index: Tensor) -> float:
        """The share of the variance of the source's pre-logits that survives in ``pre`` (n, D)."""
        held = self.material.task.judged[index]
        wanted = self.material.source_pre[index][held]
        rest = (pre[held] - wanted).square().sum()
        spread = (wanted - wanted.mean(0)).square().sum()
        return 1.0 - (rest / spread.clamp(min=1e-12)).item()

    def _scores(self, evidence: Evidence, index: Tensor) -> Scores:
        """Figures of a branch's ``evidence`` of the images ``index`` (n,), with a join of its own."""
        task = self.material.task
        held, fit = task.judged[index], self.material.fit[index]
        join = fit_elsewhere(
            evidence, task.ids[index], fit, held, task.old, task.new, self.levels, self.shrinkage
        )
        shown = evidence.of(held)
        return score(shown.z_t, join(*shown.tensors), task.label_index[index][held])


def _candidate(place: Place, known: Scores, score: float, fit: float, adds: Amounts) -> Candidate:
    return Candidate(
        tap=place.tap,
        cut=place.cut,
        share=place.share,
        resolution=place.resolution,
        most_parameters=place.most_parameters,
        score=round(score, 6),
        branch_accuracy=rounded(known.branch),
        joint_accuracy=rounded(known.joint),
        average_accuracy=rounded(known.average),
        standard_error=rounded(known.error),
        locality=rounded(known.locality),
        fit=round(fit, 6),
        macs=int(adds.macs),
        parameters=int(adds.parameters),
        bytes=int(adds.bytes),
    )


def _worth(scores: Scores, fit: float) -> float:
    if scores.average is None or scores.soft is None:
        return ((scores.branch or 0.0) + fit) / 2
    return (scores.average + scores.soft) / 2
