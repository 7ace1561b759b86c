"""The join: from the branch's features to logits that compete fairly with the target's.

With z_T the target's logits, z_B the branch's logits over the clone classes, and g the log-odds
of "one of the clone classes" against "one of the original classes", the new logits are

    g + logsumexp(z_T) + log_softmax(z_B).

A softmax over [z_T, new logits] is then exactly the mixture of both sides, the original classes
keep their order among themselves, several clones combine by themselves, and a branch with g far
below zero is silent.  What differs is how g is told, and how it is fitted:

* with images of both kinds, one Gaussian a class with one shrunk covariance on the pre-logits of
  target and branch (linear discriminant analysis, in closed form), calibrated on images the fit has
  not seen;
* with clone images only, the difference of the two networks' evidence, logsumexp(z_B) -
  logsumexp(z_T) over centred logits: two numbers, from the clone images and their mirror image.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Join(nn.Module):
    """Shapes: target pre-logits (B, D_T), branch pre-logits (B, D_B), logits (B, C)."""

    kind: ClassVar[Literal["gaussian-gate", "one-sided-gate"]]

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
        g = s[:, self.old :].logsumexp(1) - s[:, : self.old].logsumexp(1)
        return self.calibration[0] * g + self.calibration[1]


class OneSidedGate(Join):
    """g = slope (logsumexp(z_B - m_B) - logsumexp(z_T - m_T)) + offset.

    A softmax does not fix the level of logits, so each network's are taken relative to their mean
    over all its classes.  Of the source's classes the branch has only some; the mean of all is
    m_B = mean_weight . f_B + mean_bias of the branch's pre-logits f_B (zeros: it is not known).
    """

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


SHRINKAGE = 0.5  # of the covariance towards a multiple of the identity
CAUTION = 1.1  # worth of an original prediction kept, beside a clone image recognised
REJECTED = 0.22  # share of clone images given up where evidence cannot be compared
MOST_REJECTED = 0.35  # and where it can, however unclear it is
PRIOR = 0.02  # pulls slopes towards 1: few images can be told apart perfectly, which says little
SLOPES = (0.05, 5.0)
FOLDS = 5


def fit_gaussian(features: Tensor, classes: Tensor, old: int, new: int) -> GaussianGate:
    """Fits and calibrates a gate.

    ``features`` are (N, D) [target, branch] pre-logits; ``classes`` (N,) numbers old classes
    0..old-1 and new ones old..old+new-1.  The calibration is a logistic regression on g of images
    left out of the fit (``FOLDS``-fold), every class weighing the same.
    """
    device, features, classes = features.device, features.cpu(), classes.cpu()  # float64 follows
    gate = GaussianGate(features.shape[1], old, new)
    sizes = torch.bincount(classes, minlength=old + new)
    if sizes.min() > 1:  # an only image of its class cannot be left out
        fold, g = _folds(classes), torch.zeros(len(classes), dtype=torch.float64)
        for k in range(FOLDS):
            weight, bias = discriminant(features[fold != k], classes[fold != k], old + new)
            g[fold == k] = _log_odds(features[fold == k], weight, bias, old)
        gate.calibration.copy_(_logistic(g, classes >= old, (1.0 / sizes)[classes]))
    weight, bias = discriminant(features, classes, old + new)
    gate.weight.copy_(weight)
    gate.bias.copy_(bias)
    return gate.to(device)


def gate_elsewhere(
    features: Tensor, classes: Tensor, fit: Tensor, judged: Tensor, old: int, new: int
) -> Tensor:
    """g (M,) of the images ``judged`` by Gaussians of the images ``fit``, masks (N,) both.

    Slope and offset are those that suit the judged images best: two numbers, the same for every
    candidate of a search, make sure that candidates are not told apart by their calibration.
    """
    device, features, classes = features.device, features.cpu(), classes.cpu()  # float64 follows
    fit, judged = fit.cpu(), judged.cpu()
    weight, bias = discriminant(features[fit], classes[fit], old + new)
    g = _log_odds(features[judged], weight, bias, old)
    sizes = torch.bincount(classes[judged], minlength=old + new).clamp(min=1)
    slope, offset = _logistic(g, classes[judged] >= old, (1.0 / sizes)[classes[judged]])
    return (slope * g + offset).float().to(device)


def _log_odds(features: Tensor, weight: Tensor, bias: Tensor, old: int) -> Tensor:
    """g (N,) before calibration."""
    s = features.double() @ weight.T + bias
    return s[:, old:].logsumexp(1) - s[:, :old].logsumexp(1)


def fit_one_sided(
    branch_pre: Tensor,
    z_t: Tensor,
    z_b: Tensor,
    mean_logit: tuple[Tensor, Tensor] | None,
    classes: tuple[int, int],
) -> OneSidedGate:
    """A gate from clone images (N, ...) alone.

    The difference of evidence e of original images is not known, but the two networks play each
    other's part there: it is taken to be -e of the clone images.  A logistic regression of new
    on e and old on -e then tells how clear the evidence is, its slope; an original prediction
    that is kept counts ``CAUTION`` times a clone image that is recognised.

    ``mean_logit`` are weight (D,) and bias () of the mean of the source's logits, where they are
    linear in its pre-logits; ``classes`` how many target and source have: to be as sure, a network
    of C classes needs a logit that is higher by log(C - 1).  Where they are not linear, the two
    networks' levels cannot be compared, and the gate lets all but ``REJECTED`` of the clone images
    pass.
    """
    device = branch_pre.device
    branch_pre, z_t, z_b = branch_pre.cpu(), z_t.cpu(), z_b.cpu()  # float64 follows
    gate = OneSidedGate(branch_pre.shape[1])
    if mean_logit is not None:
        gate.mean_weight.copy_(mean_logit[0])
        of_target, of_source = (math.log(max(c - 1, 1)) for c in classes)
        gate.mean_bias.copy_(mean_logit[1] + of_source - of_target)
    e = gate.gate(branch_pre, branch_pre, z_t, z_b).double()  # the target's pre-logits are not read
    if mean_logit is None:
        gate.offset.fill_(-torch.quantile(e, REJECTED).item())
    else:
        slope = mirrored_slope(e)
        threshold = min(math.log(CAUTION) / slope, torch.quantile(e, MOST_REJECTED))
        gate.slope.copy_(slope)
        gate.offset.copy_(-slope * threshold)
    return gate.to(device)


def mirrored_slope(e: Tensor) -> Tensor:
    """Slope of the logistic regression through 0 of new on ``e`` (N,) and old on ``-e``."""
    slope = torch.ones((), dtype=torch.float64)
    for _ in range(100):
        p = torch.sigmoid(slope * e)
        gradient = ((p - 1) * e).mean() + PRIOR * (slope - 1)
        step = gradient / ((p * (1 - p) * e.square()).mean() + PRIOR)
        slope = (slope - step.clamp(-1, 1)).clamp(*SLOPES)
        if step.abs() < 1e-9:
            break
    return slope


def discriminant(features: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Linear discriminant scores: weight (count, D) and bias (count,), in float64.

    Gaussians with one covariance, shrunk by ``SHRINKAGE`` towards a multiple of the identity
    after every feature is scaled to unit variance; all classes equally likely beforehand.
    A class without images gets a score that never wins.
    """
    x = features.double()
    centre, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - centre) / scale
    sizes = torch.bincount(classes, minlength=count)
    mean = torch.zeros(count, x.shape[1], dtype=torch.float64).index_add_(0, classes, x)
    mean /= sizes.clamp(min=1)[:, None]
    rest = x - mean[classes]
    freedom = max(len(x) - int((sizes > 0).sum()), 1)
    level = (rest.square().sum() / freedom / x.shape[1]).clamp(min=1e-9)
    weight = _shrunk_solve(rest, freedom, level, mean)
    bias = -0.5 * (weight * mean).sum(1)
    weight = weight / scale
    bias = bias - weight @ centre
    bias[sizes == 0] = -1e4
    return weight, bias


def _shrunk_solve(rest: Tensor, freedom: int, level: Tensor, mean: Tensor) -> Tensor:
    """(count, D): C^-1 mean' for C = (1 - s) rest' rest / freedom + s level I, s the ``SHRINKAGE``.

    In as many dimensions as there are rows or columns of ``rest`` (N, D), whichever are fewer (by
    Woodbury's identity).
    """
    ridge, part = SHRINKAGE * level, (1 - SHRINKAGE) / freedom
    n, d = rest.shape
    if n >= d:
        covariance = part * (rest.T @ rest) + ridge * torch.eye(d, dtype=rest.dtype)
        return torch.linalg.solve(covariance, mean.T).T
    inner = rest @ rest.T + ridge / part * torch.eye(n, dtype=rest.dtype)
    return (mean - torch.linalg.solve(inner, rest @ mean.T).T @ rest) / ridge


def _folds(classes: Tensor) -> Tensor:
    """Fold of each image, every class spread evenly over the folds."""
    fold = torch.zeros_like(classes)
    for c in classes.unique():
        index = (classes == c).nonzero()[:, 0]
        fold[index] = torch.arange(len(index)) % FOLDS
    return fold


def _logistic(g: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """Slope and offset of a weighted logistic regression of ``new`` on ``g``, by Newton steps."""
    y, w = new.double(), weight.double() / weight.sum()
    x = torch.stack([g, torch.ones_like(g)], dim=1)
    theta = torch.tensor([1.0, 0.0], dtype=torch.float64)
    prior = torch.tensor([PRIOR, 0.002], dtype=torch.float64)  # pulls towards slope 1, offset 0
    start = theta.clone()
    for _ in range(50):
        p = torch.sigmoid(x @ theta)
        gradient = x.T @ (w * (p - y)) + prior * (theta - start)
        hessian = (x.T * (w * p * (1 - p))) @ x + torch.diag(prior)
        step = torch.linalg.solve(hessian, gradient)
        theta = theta - step.clamp(-1, 1)
        if step.abs().max() < 1e-9:
            break
    theta[0] = theta[0].clamp(*SLOPES)
    return theta.float()
