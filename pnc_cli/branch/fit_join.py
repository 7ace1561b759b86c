"""Fitting a join, in closed form and by a few Newton steps.

Gaussians are fitted to the images; what weighs them against the networks' own evidence is fitted
to scores of images that they have not seen (cross-fitting).  With few images of a class the gate
leans on the evidence, which needs none: the Gaussians' part is n / (n + ``TRUSTED``) for n images
a class.  Without images of originals the evidence is all there is: its difference for the clone
images and for their mirror image tells how clear it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .discriminant import SHRINKAGE, balanced, best_shrinkage, discriminant, left_out, log_odds
from .join import Join, Mixture
from .logistic import logistic, mirrored_slope, mixing_weights

MOST_ORIGINALS = 10.0  # original classes for each clone class, that the gate takes there to be
TRUSTED = 25  # images a class with which the Gaussians count for half of the gate
START = torch.tensor([1.0, 0.05])  # of the ranking: the branch's logits nearly alone
CAUTION = 1.1  # worth of an original prediction kept, beside a clone image recognised
REJECTED = 0.22  # share of clone images given up where evidence cannot be compared
MOST_REJECTED = 0.35  # and where it can, however unclear it is


@dataclass(frozen=True)
class Evidence:
    """Pre-logits (N, D) and logits (N, C) of target and branch, on the CPU.

    Those of a branch without a copied part are (N, 0) and zeros (N, K).
    """

    target_pre: Tensor
    pre: Tensor
    z_t: Tensor
    z_b: Tensor

    @classmethod
    def without_branch(cls, target_pre: Tensor, z_t: Tensor, new: int) -> Evidence:
        n = len(z_t)
        return cls(target_pre, target_pre.new_zeros(n, 0), z_t, z_t.new_zeros(n, new))

    def of(self, images: Tensor) -> Evidence:
        """That of some images, a mask (N,) or indices (n,)."""
        return Evidence(*(t[images] for t in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.target_pre, self.pre, self.z_t, self.z_b

    @property
    def features(self) -> Tensor:
        """Pre-logits of both, (N, D_T + D_B)."""
        return torch.cat([self.target_pre, self.pre], dim=1)

    @property
    def has_branch(self) -> bool:
        return self.pre.shape[1] > 0


@dataclass(frozen=True)
class Levels:
    """What makes two networks' logits comparable.

    ``mean_logit`` are weight (D,) and bias () of the mean of the source's logits, where they are
    linear in its pre-logits; ``classes`` how many target and source have.
    """

    mean_logit: tuple[Tensor, Tensor] | None
    classes: tuple[int, int]

    def odds_of_old(self, new: int) -> float:
        """How much likelier an original class is beforehand than one of ``new`` clone classes: as many
        times as the target has classes for them, whichever of these there are images of; at most
        ``MOST_ORIGINALS``, as who adds a class to a thousand will have images of it."""
        return min(self.classes[0] / new, MOST_ORIGINALS)

    def put_into(self, join: Mixture) -> None:
        """To be as sure, a network of C classes needs a logit that is higher by log(C - 1)."""
        if self.mean_logit is not None and join.has_branch:
            of_target, of_source = (math.log(max(c - 1, 1)) for c in self.classes)
            join.mean_weight.copy_(self.mean_logit[0])
            join.mean_bias.copy_(self.mean_logit[1] + of_source - of_target)


def fit_join(
    evidence: Evidence,
    classes: Tensor,
    old: int,
    new: int,
    levels: Levels,
    shrinkage: float | None = None,
) -> Mixture:
    """The join from images whose ``classes`` (N,) number old ones 0..old-1, new ones old..old+new-1;
    with no old ones, from clone images alone.  ``shrinkage`` None: chosen by cross-validation."""
    if shrinkage is None:
        shrinkage = best_shrinkage(evidence.features, classes, old, new)
    scores, known = left_out(evidence.features, classes, old + new, shrinkage)
    join = _with_scores(evidence, classes, old, new, levels, shrinkage)
    _calibrate(join, scores[known], evidence.of(known), classes[known], _trust(classes), levels)
    if not old:
        _open_gate(join, evidence, levels)
    return join


def fit_elsewhere(
    evidence: Evidence,
    classes: Tensor,
    fit: Tensor,
    judged: Tensor,
    old: int,
    new: int,
    levels: Levels,
    shrinkage: float,
) -> Join:
    """A join with Gaussians of the images ``fit``, its other numbers those that suit the images
    ``judged`` best, masks (N,) both.

    These are few, and the same for every candidate of a search: so candidates are not told apart
    by their calibration.
    """
    seen, shown = evidence.of(fit), evidence.of(judged)
    join = _with_scores(seen, classes[fit], old, new, levels, shrinkage)
    scores = join.double().scores(shown.target_pre.double(), shown.pre.double())
    join.float()
    _calibrate(join, scores, shown, classes[judged], _trust(classes[fit]), levels)
    if not old:
        _open_gate(join, seen, levels)
    return join


def _with_scores(
    evidence: Evidence, classes: Tensor, old: int, new: int, levels: Levels, shrinkage: float
) -> Mixture:
    join = Mixture(evidence.target_pre.shape[1], evidence.pre.shape[1], old, new)
    weight, bias = discriminant(evidence.features, classes, old + new, shrinkage)
    join.weight.copy_(weight)
    join.bias.copy_(bias)
    levels.put_into(join)
    return join


def _trust(classes: Tensor) -> float:
    """Part of the gate that is the Gaussians'."""
    sizes = torch.bincount(classes).double()
    each = 1.0 / (1.0 / sizes[sizes > 0]).mean().item()  # the classes with fewest count most
    return each / (each + TRUSTED)


def _calibrate(
    join: Mixture,
    scores: Tensor,
    evidence: Evidence,
    classes: Tensor,
    trust: float,
    levels: Levels,
) -> None:
    """Gating and ranking from ``scores`` (N, old + new) of images that the Gaussians have not seen."""
    is_new = classes >= join.old
    if join.old:
        weight = _weights(classes, is_new, levels.odds_of_old(join.new))
        join.gating.copy_(_gating(join, scores, evidence, is_new, weight, trust))
    join.ranking.copy_(START if join.has_branch else torch.tensor([0.0, 1.0]))
    if join.new > 1 and bool(is_new.any()):
        opinions = torch.stack([evidence.z_b.double(), scores[:, join.old :]])[:, is_new]
        wanted, weight = classes[is_new] - join.old, balanced(classes[is_new])
        start = START if join.has_branch else torch.tensor([0.0, START[1].item()])
        join.ranking.copy_(mixing_weights(opinions, wanted, weight, start))


def _weights(classes: Tensor, is_new: Tensor, odds_of_old: float) -> Tensor:
    """(N,) of images, 1 in all: classes of a side weigh the same, the sides as the odds say."""
    weight = balanced(classes)
    for side, odds in ((is_new, 1.0), (~is_new, odds_of_old)):
        weight[side] *= odds / weight[side].sum().clamp(min=1e-30)
    return weight / weight.sum().clamp(min=1e-30)


def _gating(
    join: Mixture,
    scores: Tensor,
    evidence: Evidence,
    is_new: Tensor,
    weight: Tensor,
    trust: float,
) -> Tensor:
    """(3,): each kind of evidence through a logistic regression of its own, their mean weighed by
    ``trust``, and that through one more."""
    if not len(scores):  # nothing could be left out
        return torch.tensor([0.0, 1.0, 0.0] if join.has_branch else [1.0, 0.0, 0.0])
    odds = log_odds(scores, join.old)
    slope, offset = logistic([odds], is_new, weight)
    if not join.has_branch:
        return torch.stack([slope, torch.zeros_like(slope), offset])
    e = join.evidence(evidence.pre, evidence.z_t, evidence.z_b).double()
    slope_e, offset_e = logistic([e], is_new, weight)
    both = trust * (slope * odds + offset) + (1 - trust) * (slope_e * e + offset_e)
    scale, shift = logistic([both], is_new, weight)
    level = trust * offset + (1 - trust) * offset_e
    return torch.stack(
        [scale * trust * slope, scale * (1 - trust) * slope_e, scale * level + shift]
    )


def _open_gate(join: Mixture, evidence: Evidence, levels: Levels) -> None:
    """The gate from clone images alone.

    The difference of evidence e of original images is not known, but the two networks play each
    other's part there: it is taken to be -e of the clone images.  A logistic regression of new
    on e and old on -e then tells how clear the evidence is, its slope; an original prediction
    that is kept counts ``CAUTION`` times a clone image that is recognised.  Where the source's
    logits are not linear in its pre-logits the two networks' levels cannot be compared, and the
    gate lets all but ``REJECTED`` of the clone images pass.
    """
    e = join.evidence(evidence.pre, evidence.z_t, evidence.z_b).double()
    if levels.mean_logit is None:
        slope, threshold = torch.ones(()), torch.quantile(e, REJECTED)
    else:
        slope = mirrored_slope(e)
        threshold = torch.quantile(e, MOST_REJECTED).clamp(max=math.log(CAUTION) / slope.item())
    join.gating.copy_(torch.stack([torch.zeros(()), slope, -slope * threshold]))


ROUNDS = 8  # of settling which unlabelled images are new
HALF = 0.5  # of the gate each that is the Gaussians' and the evidence's, without labels


def fit_with_pool(
    evidence: Evidence, classes: Tensor, pool: Evidence, new: int, levels: Levels
) -> tuple[Mixture, float]:
    """The join from clone images (N, ...) of ``classes`` 0..new-1 and a ``pool`` (M, ...) of unlabelled
    ones, and what share of the pool it takes for new.

    Which of the pool are new is settled by turns (expectation and maximisation): what an image is
    taken for, an old class as the target says or a new one as the branch says, weighs it in the
    Gaussians; these and the networks' evidence, half and half, say again what it is.
    """
    first = fit_join(evidence, classes, 0, new, levels)
    told = pool.z_t.argmax(1)
    known, told = told.unique(return_inverse=True)  # old classes that the pool has, about
    old = len(known)
    said = first.rank(pool.target_pre, pool.pre, pool.z_b).argmax(1)
    features = torch.cat([evidence.features, pool.features, pool.features])
    rows = torch.cat([classes + old, told, said + old])
    surely = torch.ones(len(classes), dtype=torch.float64)
    e = first.gate(*pool.tensors).double()
    p = torch.sigmoid(e)
    join = Mixture(evidence.target_pre.shape[1], evidence.pre.shape[1], old, new)
    levels.put_into(join)
    part = torch.ones(())
    for _ in range(ROUNDS):
        weight, bias = discriminant(
            features, rows, old + new, SHRINKAGE, torch.cat([surely, 1 - p, p])
        )
        odds = log_odds(pool.features.double() @ weight.T + bias, old)
        part = e.std() / odds.std().clamp(min=1e-9)
        p = torch.sigmoid(HALF * part * odds + (1 - HALF) * e)
    join.weight.copy_(weight)
    join.bias.copy_(bias)
    join.ranking.copy_(first.ranking)
    join.gating.copy_(
        torch.stack(
            [HALF * part, (1 - HALF) * first.gating[1].double(), (1 - HALF) * first.gating[2]]
        )
    )
    return join, p.mean().item()
