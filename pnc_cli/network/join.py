"""The join: from the branch's features to logits that compete fairly with the target's.

With z_T the target's logits, z_B the branch's logits over the clone classes, and g the log-odds
of "one of the clone classes" against "one of the original classes", the new logits are

    g + logsumexp(z_T) + log_softmax(z_B).

A softmax over [z_T, new logits] is then exactly the mixture of both sides, the original classes
keep their order among themselves, several clones combine by themselves, and a branch with g far
below zero is silent.  What differs is how g is told:

* with images of both kinds, one Gaussian a class with one shrunk covariance on the pre-logits of
  target and branch (linear discriminant analysis), calibrated on images the fit has not seen;
* with clone images only, the difference of the two networks' evidence, logsumexp(z_B) -
  logsumexp(z_T) over centred logits, calibrated on the clone images and their mirror image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Join(nn.Module):
    """Shapes: target pre-logits (B, D_T), branch pre-logits (B, D_B), logits (B, C)."""

    def gate(self, target_pre: Tensor, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        """Log-odds of new against old, (B,)."""
        raise NotImplementedError

    def forward(self, target_pre: Tensor, branch_pre: Tensor, z_t: Tensor, z_b: Tensor) -> Tensor:
        g = self.gate(target_pre, branch_pre, z_t, z_b)
        return (g + z_t.logsumexp(1))[:, None] + z_b.log_softmax(1)


class GaussianGate(Join):
    """g from linear scores s = W f + b of f = [target, branch] pre-logits, one row a class.

    g = slope (logsumexp of the new classes' s - logsumexp of the old classes' s) + offset.
    """

    kind = "gaussian-gate"

    def __init__(self, features: int, old: int, new: int) -> None:
        super().__init__()
        self.old = old
        self.register_buffer("weight", torch.zeros(old + new, features))
        self.register_buffer("bias", torch.zeros(old + new))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # slope, offset

    def gate(self, target_pre, branch_pre, z_t, z_b):
        s = F.linear(torch.cat([target_pre, branch_pre], dim=1), self.weight, self.bias)
        g = s[:, self.old :].logsumexp(1) - s[:, : self.old].logsumexp(1)
        return self.calibration[0] * g + self.calibration[1]


class OneSidedGate(Join):
    """g = slope (logsumexp(z_B - m_B) - logsumexp(z_T - m_T)) + offset.

    A softmax does not fix the level of logits, so each network's are taken relative to their mean
    over all its classes.  Of the source's classes the branch has only some; the mean of all is
    m_B = mean_weight . f_B + mean_bias of the branch's pre-logits f_B (zeros: it is not known).
    """

    kind = "one-sided-gate"

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


def from_tensors(kind: str, tensors: dict[str, Tensor], new: int) -> Join:
    """The join of a clone with ``new`` classes from its tensors.

    Raises ``KeyError`` or ``RuntimeError`` where they do not fit.
    """
    if kind == OneSidedGate.kind:
        join: Join = OneSidedGate(len(tensors["mean_weight"]))
    else:
        rows, features = tensors["weight"].shape
        join = GaussianGate(features, rows - new, new)
    join.load_state_dict(tensors)
    return join
