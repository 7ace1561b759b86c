"""The join: from the branch's features to logits that compete fairly with the target's.

With z_T the target's logits, g the log-odds of "one of the clone classes" against "one of the
original classes", and r the log-probabilities of the clone classes among themselves, the new
logits are

    g + logsumexp(z_T) + r.

A softmax over [z_T, new logits] is then exactly the mixture of both sides, the original classes
keep their order among themselves, several clones combine by themselves, and a branch with g far
below zero is silent.  Joins differ in how they tell g and r; how they are fitted stands in
``fit_join.py``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .discriminant import log_odds
from .logistic import UNLIKELY

SMALLEST = 0.05  # slope that is left when a join is recalibrated


class Join(nn.Module):
    """Shapes: target pre-logits (B, D_T), branch pre-logits (B, D_B), logits (B, C)."""

    kind: ClassVar[Literal["mixture", "gaussian-gate", "one-sided-gate"]]

    def gate(self, target_pre: Tensor, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        """Log-odds of new against old, (B,)."""
        raise NotImplementedError

    def rank(self, target_pre: Tensor, branch_pre: Tensor, z_b: Tensor) -> Tensor:
        """Log-probabilities of the clone classes among themselves, (B, K)."""
        return z_b.log_softmax(1)

    def forward(self, target_pre: Tensor, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        g = self.gate(target_pre, branch_pre, z_t, z_b)
        return (g + z_t.logsumexp(1))[:, None] + self.rank(target_pre, branch_pre, z_b)

    def recalibrate(self, slope: Tensor, offset: Tensor) -> None:
        """Makes g to slope g + offset, in place."""
        raise NotImplementedError


class Mixture(Join):
    """g and r from all there is to go by.

    s = W f + b of f = [target, branch] pre-logits are scores of one Gaussian a class, old classes
    first; e = logsumexp(z_B - m_B) - logsumexp(z_T - m_T) is how much surer the source is than
    the target.  A softmax does not fix the level of logits, so each network's are taken relative
    to their mean over all its classes.  Of the source's classes the branch has only some; the
    mean of all is m_B = mean_weight . f_B + mean_bias of the branch's pre-logits f_B.  Then

        g = gating . [logsumexp(s of new classes) - logsumexp(s of old classes), e, 1]
        r = log_softmax(ranking . [log_softmax(z_B), log_softmax(s of new classes)]).

    Without images of originals there are no old classes, and g is told by e alone.  Without a
    copied part (f_B and z_B are empty) it is told by s alone.
    """

    kind = "mixture"
    weight: Tensor  # (old + new, D_T + D_B)
    bias: Tensor
    gating: Tensor  # (3,)
    ranking: Tensor  # (2,)
    mean_weight: Tensor  # (D_B,)
    mean_bias: Tensor

    def __init__(self, target: int, branch: int, old: int, new: int) -> None:
        """``target`` and ``branch`` are widths of pre-logits, ``old`` and ``new`` numbers of classes."""
        super().__init__()
        self.old, self.new, self.has_branch = old, new, branch > 0
        self.register_buffer("weight", torch.zeros(old + new, target + branch))
        self.register_buffer("bias", torch.zeros(old + new))
        self.register_buffer("gating", torch.tensor([1.0, 1.0, 0.0]))
        self.register_buffer("ranking", torch.tensor([1.0, 0.0]))
        self.register_buffer("mean_weight", torch.zeros(branch))
        self.register_buffer("mean_bias", torch.zeros(()))

    def scores(self, target_pre: Tensor, branch_pre: Tensor) -> Tensor:
        """s, (B, old + new)."""
        return F.linear(torch.cat([target_pre, branch_pre], dim=1), self.weight, self.bias)

    def evidence(self, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        """e, (B,)."""
        m_b = branch_pre @ self.mean_weight + self.mean_bias
        return z_b.logsumexp(1) - m_b - z_t.logsumexp(1) + z_t.mean(1)

    def gate(self, target_pre, branch_pre, z_t, z_b):
        return self._gate(self.scores(target_pre, branch_pre), branch_pre, z_t, z_b)

    def rank(self, target_pre, branch_pre, z_b):
        return self._rank(self.scores(target_pre, branch_pre), z_b)

    def forward(self, target_pre: Tensor, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        s = self.scores(target_pre, branch_pre)
        g = self._gate(s, branch_pre, z_t, z_b)
        return (g + z_t.logsumexp(1))[:, None] + self._rank(s, z_b)

    def recalibrate(self, slope, offset):
        self.gating.mul_(slope.clamp(min=SMALLEST))
        self.gating[2] += offset

    def _gate(self, s: Tensor, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        g = self.gating[2].expand(s.shape[0])  # len(s) would be a constant for exporters
        if self.old:
            g = g + self.gating[0] * log_odds(s, self.old)
        if self.has_branch:
            g = g + self.gating[1] * self.evidence(branch_pre, z_t, z_b)
        return g

    def _rank(self, s: Tensor, z_b: Tensor) -> Tensor:
        r = self.ranking[1] * s[:, self.old :].log_softmax(1).clamp(min=UNLIKELY)
        if self.has_branch:
            r = r + self.ranking[0] * z_b.log_softmax(1).clamp(min=UNLIKELY)
        return r.log_softmax(1)


class GaussianGate(Join):
    """Of clones made before ``Mixture``: g from s alone, r from z_B alone.

    g = slope (logsumexp of the new classes' s - logsumexp of the old classes' s) + offset.
    """

    kind = "gaussian-gate"
    weight: Tensor  # (old + new, D)
    bias: Tensor
    calibration: Tensor  # slope, offset

    def __init__(self, features: int, old: int, new: int) -> None:
        super().__init__()
        self.old = old
        self.register_buffer("weight", torch.zeros(old + new, features))
        self.register_buffer("bias", torch.zeros(old + new))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))

    def gate(self, target_pre, branch_pre, z_t, z_b):
        s = F.linear(torch.cat([target_pre, branch_pre], dim=1), self.weight, self.bias)
        return self.calibration[0] * log_odds(s, self.old) + self.calibration[1]

    def recalibrate(self, slope, offset):
        self.calibration.mul_(slope.clamp(min=SMALLEST))
        self.calibration[1] += offset


class OneSidedGate(Join):
    """Of clones made before ``Mixture``, without images of originals: g = slope e + offset."""

    kind = "one-sided-gate"
    mean_weight: Tensor  # (D_B,)
    mean_bias: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean_weight", torch.zeros(features))
        self.register_buffer("mean_bias", torch.zeros(()))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def gate(self, target_pre, branch_pre, z_t, z_b):
        m_b = branch_pre @ self.mean_weight + self.mean_bias
        evidence = z_b.logsumexp(1) - m_b - z_t.logsumexp(1) + z_t.mean(1)
        return self.slope * evidence + self.offset

    def recalibrate(self, slope, offset):
        slope = slope.clamp(min=SMALLEST)
        self.slope.mul_(slope)
        self.offset.mul_(slope).add_(offset)


def from_tensors(kind: str, tensors: dict[str, Tensor], new: int) -> Join:
    """The join of a clone with ``new`` classes from its tensors.

    Raises ``KeyError`` or ``RuntimeError`` where they do not fit.
    """
    if kind == OneSidedGate.kind:
        join: Join = OneSidedGate(len(tensors["mean_weight"]))
    else:
        rows, features = tensors["weight"].shape
        if kind == Mixture.kind:
            branch = len(tensors["mean_weight"])
            join = Mixture(features - branch, branch, rows - new, new)
        else:
            join = GaussianGate(features, rows - new, new)
    join.load_state_dict(tensors)
    return join
