"""Small convex fits by Newton's method: a logistic regression, and weights for log-probabilities.

Both are pulled a little towards where they start: few images can be told apart perfectly, which
says little.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PRIOR = 0.02  # pull of slopes and weights towards their start
PRIOR_OFFSET = 0.002
SLOPES = (0.05, 5.0)
UNLIKELY = -30.0  # log-probabilities below this are not told apart


def logistic(evidence: Sequence[Tensor], new: Tensor, weight: Tensor) -> Tensor:
    """Slope of each of ``evidence`` (N,), and offset last, of the logistic regression of ``new`` (N,)
    on them, in float64; slopes start at 1.  ``weight`` (N,) sums to one."""
    x = _with_one(evidence)
    theta = torch.tensor([1.0] * len(evidence) + [0.0], dtype=torch.float64)
    prior = torch.tensor([PRIOR] * len(evidence) + [PRIOR_OFFSET], dtype=torch.float64)
    start, y = theta.clone(), new.double()
    for _ in range(50):
        p = torch.sigmoid(x @ theta)
        gradient = x.T @ (weight * (p - y)) + prior * (theta - start)
        hessian = (x.T * (weight * p * (1 - p))) @ x + torch.diag(prior)
        step = torch.linalg.solve(hessian, gradient)
        theta = theta - step.clamp(-1, 1)
        if step.abs().max() < 1e-9:
            break
    theta[:-1] = theta[:-1].clamp(*SLOPES)
    return theta


def log_loss(theta: Tensor, evidence: Sequence[Tensor], new: Tensor, weight: Tensor) -> float:
    """Mean negative log-likelihood of what :func:`logistic` found."""
    z = _with_one(evidence) @ theta
    return (weight * torch.nn.functional.softplus(torch.where(new, -z, z))).sum().item()


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


def mixing_weights(opinions: Tensor, wanted: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """(M,) weights, none negative, with which M opinions, logits (M, N, K), add up to the best
    softmax for the classes ``wanted`` (N,); ``weight`` (N,) sums to one."""
    theta = start.double().clone()
    given = opinions.double().log_softmax(2).clamp(min=UNLIKELY)
    right = given[:, torch.arange(len(wanted)), wanted]

    def loss(t: Tensor) -> float:
        z = torch.einsum("m,mnk->nk", t, given)
        fits = (weight * (z.logsumexp(1) - t @ right)).sum()
        return (fits + PRIOR / 2 * (t - start).square().sum()).item()

    now = loss(theta)
    for _ in range(60):
        p = torch.einsum("m,mnk->nk", theta, given).softmax(1)
        expected = torch.einsum("nk,mnk->mn", p, given)
        gradient = ((expected - right) * weight).sum(1) + PRIOR * (theta - start)
        rest = given - expected[:, :, None]
        hessian = torch.einsum("n,nk,mnk,lnk->ml", weight, p, rest, rest)
        step = torch.linalg.solve(hessian + PRIOR * torch.eye(len(theta)).double(), gradient)
        size = 1.0
        while loss(theta - size * step) > now + 1e-12 and size > 1e-4:
            size /= 2
        theta = theta - size * step
        now = loss(theta)
        if step.abs().max() < 1e-8:
            break
    return theta.clamp(min=0.0)


def _with_one(evidence: Sequence[Tensor]) -> Tensor:
    columns = [e.double() for e in evidence]
    return torch.stack([*columns, torch.ones_like(columns[0])], dim=1)
