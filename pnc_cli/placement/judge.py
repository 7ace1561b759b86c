"""What branches give on images that they were not fitted to, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..branch.adapter import Adapter
from ..branch.cost import Amounts, beside_module, of_module
from ..branch.join import fit_one_sided, gate_elsewhere
from ..branch.material import Material
from ..branch.pair import Pair
from ..branch.recipe import is_the_source_itself
from ..branch.score import UNKNOWN, Scores, rounded, score
from ..branch.task import Task
from ..data import Progress, no_progress
from ..manifest import Candidate, Place
from ..network.head import mean_logit
from ..network.part import Module

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
            known = self._scores(pre, z_b, index)
            worth = _worth(known, fit)
        adds = self.adds(*branch)
        return Candidate(
            tap=place.tap,
            cut=place.cut,
            share=place.share,
            resolution=place.resolution,
            score=round(worth - price(self.material.pair, adds.macs), 6),
            branch_accuracy=rounded(known.branch),
            joint_accuracy=rounded(known.joint),
            average_accuracy=rounded(known.average),
            locality=rounded(known.locality),
            fit=round(fit, 6),
            macs=int(adds.macs),
            parameters=int(adds.parameters),
            bytes=int(adds.bytes),
        )

    def adds(self, place: Place, adapter: Adapter, module: Module) -> Amounts:
        """What a clone of ``place`` with ``module`` costs."""
        material = self.material
        columns = material.task.columns
        return self.beside(place, adapter).plus(of_module(material.pair, place, columns, module))

    def beside(self, place: Place, adapter: Adapter) -> Amounts:
        """What a clone of ``place`` costs beside its module."""
        material = self.material
        module, _ = material.pair.part(place.cut, material.task.columns)
        width = material.target_pre.shape[1] + material.source_pre.shape[1]
        return beside_module(adapter, module, self.whole, width)

    def _explained(self, pre: Tensor, index: Tensor) -> float:
        """The share of the variance of the source's pre-logits that survives in ``pre`` (n, D)."""
        held = self.material.task.judged[index]
        wanted = self.material.source_pre[index][held]
        rest = (pre[held] - wanted).square().sum()
        spread = (wanted - wanted.mean(0)).square().sum()
        return 1.0 - (rest / spread.clamp(min=1e-12)).item()

    def _scores(self, pre: Tensor, z_b: Tensor, index: Tensor) -> Scores:
        """Figures of the branch's pre-logits (n, D) and logits (n, K), with a join of its own."""
        material, task = self.material, self.material.task
        held, fit = task.judged[index], material.fit[index]
        target_pre, z_t, ids = material.target_pre[index], material.z_t[index], task.ids[index]
        if task.old:
            features = torch.cat([target_pre, pre], dim=1)
            g = gate_elsewhere(features, ids, fit, held, task.old, task.new)
            z_new = (g + z_t[held].logsumexp(1))[:, None] + z_b[held].log_softmax(1)
        else:
            mean = mean_logit(material.pair.source, material.pair.head)
            gate = fit_one_sided(pre[fit], z_t[fit], z_b[fit], mean, task.levels)
            z_new = gate(target_pre[held], pre[held], z_t[held], z_b[held])
        return score(z_t[held], z_new, task.label_index[index][held])


def _worth(scores: Scores, fit: float) -> float:
    if scores.average is None or scores.soft is None:
        return ((scores.branch or 0.0) + fit) / 2
    return (scores.average + scores.soft) / 2
