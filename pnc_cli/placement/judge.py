"""What a branch gives on images that it was not fitted to, and what it costs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..branch.adapter import Adapter
from ..branch.cost import Amounts, beside_module, of_module
from ..branch.join import fit_one_sided, gate_elsewhere
from ..branch.material import Material
from ..branch.pair import Pair
from ..branch.recipe import run_module
from ..branch.score import UNKNOWN, Scores, rounded, score
from ..branch.task import Task
from ..manifest import Candidate, Place
from ..network.head import mean_logit
from ..network.part import Module

PRICE = 0.005  # accuracy that a candidate must gain to double what an image costs


def price(pair: Pair, macs: float) -> float:
    """The accuracy that so many added MACs are worth."""
    return PRICE * math.log2(1 + macs / max(pair.target_macs, 1))


class Judge:
    """Judges branches on the images of ``material`` that are held out.

    ``whole`` is the task with all its original classes, which the join of a clone tells apart;
    the material may be of some of them.
    """

    def __init__(self, whole: Task, material: Material) -> None:
        self.whole, self.material = whole, material
        first = next(iter(material.cuts))
        module, _ = material.pair.part(first, material.task.columns)
        self.reference, _ = run_module(module, material.cuts[first])  # the source's pre-logits

    def __call__(self, place: Place, adapter: Adapter, module: Module) -> Candidate:
        """The candidate of ``place`` with this adapter and module.

        With images its score is the mean accuracy on original and clone classes, averaged with the
        mean probability of the right class, which is less noisy (without original images: the
        branch's, averaged with the share of the variance of the source's pre-logits that
        survives), less the ``PRICE`` of the added MACs.  Without images it is that share, on
        generated ones.
        """
        pre, z_b = run_module(module, self.material.tap(place), adapter)
        fit = self._explained(pre)
        scores = self._scores(pre, z_b) if bool(self.material.task.is_new.any()) else None
        adds = self.adds(place, adapter, module)
        worth = fit if scores is None else _worth(scores, fit)
        known = scores or UNKNOWN
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
        width = material.target_pre.shape[1] + self.reference.shape[1]
        return beside_module(adapter, module, self.whole, width)

    def _explained(self, pre: Tensor) -> float:
        """The share of the variance of the source's pre-logits that survives in ``pre`` (N, D)."""
        held = self.material.task.judged
        wanted = self.reference[held]
        rest = (pre[held] - wanted).square().sum()
        spread = (wanted - wanted.mean(0)).square().sum()
        return 1.0 - (rest / spread.clamp(min=1e-12)).item()

    def _scores(self, pre: Tensor, z_b: Tensor) -> Scores:
        """Figures of the branch's pre-logits (N, D) and logits (N, K), with a join of its own."""
        material, task = self.material, self.material.task
        held, fit = task.judged, material.fit
        target_pre, pre, z_t, z_b = (t.cpu() for t in (material.target_pre, pre, material.z_t, z_b))
        if task.old:
            features = torch.cat([target_pre, pre], dim=1)
            g = gate_elsewhere(features, task.ids, fit, held, task.old, task.new)
            z_new = (g + z_t[held].logsumexp(1))[:, None] + z_b[held].log_softmax(1)
        else:
            mean = mean_logit(material.pair.source, material.pair.head)
            gate = fit_one_sided(pre[fit], z_t[fit], z_b[fit], mean, task.levels)
            z_new = gate(target_pre[held], pre[held], z_t[held], z_b[held])
        return score(z_t[held], z_new, task.label_index[held])


def _worth(scores: Scores, fit: float) -> float:
    if scores.average is None or scores.soft is None:
        return ((scores.branch or 0.0) + fit) / 2
    return (scores.average + scores.soft) / 2
