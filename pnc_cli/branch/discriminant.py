"""Linear discriminant scores: one Gaussian a class, with one shrunk covariance.

The few images of a class say little of a covariance of thousands of features, so it is shrunk
towards a multiple of the identity.  How far is chosen by cross-validation: few images and many
features want more of it (examples/benchmark/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..data import spread
from .logistic import log_loss, logistic

SHRINKAGE = 0.8  # where nothing can be left out to choose it by
SHRINKAGES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
FOLDS = 5
ROWS = 1500  # images that the shrinkage is chosen on, at most: it takes their number cubed


def discriminant(
    features: Tensor,
    classes: Tensor,
    count: int,
    shrinkage: float,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores of ``count`` classes: weight (count, D) and bias (count,), in float64.

    ``features`` are (N, D), ``classes`` (N,).  The covariance is shrunk by ``shrinkage`` towards a
    multiple of the identity after every feature is scaled to unit variance; all classes are
    equally likely beforehand.  A class without images gets a score that never wins.  ``weight`` (N,)
    is how much each image counts (default: 1).
    """
    fit = _Moments(features, classes, count, weight)
    rest, ridge = fit.rest, shrinkage * fit.level
    part = (1 - shrinkage) / fit.freedom
    n, d = rest.shape
    if n >= d:
        covariance = part * (rest.T @ rest) + ridge * torch.eye(d, dtype=rest.dtype)
        scores = torch.linalg.solve(covariance, fit.mean.T).T
    else:  # in as many dimensions as there are rows (Woodbury's identity)
        inner = rest @ rest.T + ridge / part * torch.eye(n, dtype=rest.dtype)
        scores = (fit.mean - torch.linalg.solve(inner, rest @ fit.mean.T).T @ rest) / ridge
    return fit.scores(scores)


def left_out(
    features: Tensor, classes: Tensor, count: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Scores (N, count) of images by discriminants that have not seen them (``FOLDS``-fold), in
    float64, and which images have them, (N,) bool: an only image of its class has to be seen."""
    x, scores = features.double(), torch.zeros(len(features), count, dtype=torch.float64)
    fold = folds(classes)
    for k in range(FOLDS):
        if bool((fold == k).any()):
            weight, bias = discriminant(x[fold != k], classes[fold != k], count, shrinkage)
            scores[fold == k] = x[fold == k] @ weight.T + bias
    return scores, fold >= 0


def best_shrinkage(features: Tensor, classes: Tensor, old: int, new: int) -> float:
    """The one of ``SHRINKAGES`` whose scores tell new classes from old ones best on images left out:
    by the log-loss of a logistic regression on the log-odds, every class weighing the same.

    ``classes`` (N,) numbers old classes 0..old-1 and new ones old..old+new-1.
    """
    some = _some_of_each(classes)
    x, classes = features[some].double(), classes[some]
    fold = folds(classes)
    if not old or not bool((fold >= 0).any()):
        return SHRINKAGE
    g = torch.zeros(len(SHRINKAGES), len(x), dtype=torch.float64)
    for k in range(FOLDS):
        out = fold == k
        if bool(out.any()):
            every = _for_each_shrinkage(x[~out], classes[~out], old + new)
            for row, (weight, bias) in zip(g, every):
                row[out] = log_odds(x[out] @ weight.T + bias, old)
    known = fold >= 0
    weight, is_new = balanced(classes[known]), classes[known] >= old
    losses = []
    for row in g[:, known]:
        losses.append(log_loss(logistic([row], is_new, weight), [row], is_new, weight))
    return SHRINKAGES[losses.index(min(losses))]


def log_odds(scores: Tensor, old: int) -> Tensor:
    """(N,) of the new classes against the ``old`` ones, from scores (N, old + new)."""
    return scores[:, old:].logsumexp(1) - scores[:, :old].logsumexp(1)


def balanced(classes: Tensor) -> Tensor:
    """(N,) weights with which every class weighs the same, and all of them 1."""
    weight = (1.0 / torch.bincount(classes).clamp(min=1).double())[classes]
    return weight / weight.sum()


def folds(classes: Tensor) -> Tensor:
    """Fold of each image, (N,), every class spread evenly over them; -1 for an only image of its
    class, which cannot be left out."""
    fold = torch.full_like(classes, -1)
    for c in classes.unique():
        index = (classes == c).nonzero()[:, 0]
        if len(index) > 1:
            fold[index] = torch.arange(len(index)) % FOLDS
    return fold


class _Moments:
    """Means and deviations of classes, of features scaled to unit variance."""

    def __init__(
        self, features: Tensor, classes: Tensor, count: int, weight: Tensor | None = None
    ) -> None:
        x = features.double()
        w = torch.ones(len(x), dtype=torch.float64) if weight is None else weight.double()
        self.centre = (w @ x) / w.sum()
        self.scale = ((w @ (x - self.centre).square()) / (w.sum() - 1).clamp(min=1)).sqrt()
        self.scale = self.scale.clamp(min=1e-6)
        x = (x - self.centre) / self.scale
        self.sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, classes, w)
        mean = torch.zeros(count, x.shape[1], dtype=torch.float64)
        mean.index_add_(0, classes, w[:, None] * x)
        self.mean = mean / self.sizes.clamp(min=1e-9)[:, None]
        self.rest = (x - self.mean[classes]) * w.sqrt()[:, None]  # (N, D), weighed
        self.freedom = max(w.sum().item() - int((self.sizes > 0).sum()), 1)
        spread_of_one = self.rest.square().sum() / self.freedom / x.shape[1]
        self.level = spread_of_one if spread_of_one > 1e-9 else torch.ones_like(spread_of_one)

    def scores(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias for features as they were given, from ``weight`` (count, D) for scaled ones."""
        bias = -0.5 * (weight * self.mean).sum(1)
        weight = weight / self.scale
        bias = bias - weight @ self.centre
        bias[self.sizes == 0] = -1e4
        return weight, bias


def _for_each_shrinkage(
    features: Tensor, classes: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What :func:`discriminant` gives for each of ``SHRINKAGES``, by one decomposition."""
    fit = _Moments(features, classes, count)
    n, d = fit.rest.shape
    if n < d:
        values, vectors = torch.linalg.eigh(fit.rest @ fit.rest.T / fit.freedom)
        there = values > 1e-9 * values.max().clamp(min=1e-30)
        values = values[there]
        axes = fit.rest.T @ vectors[:, there] / (values * fit.freedom).sqrt()
    else:
        values, axes = torch.linalg.eigh(fit.rest.T @ fit.rest / fit.freedom)
        values = values.clamp(min=0)
    along = fit.mean @ axes
    for shrinkage in SHRINKAGES:
        ridge, spread_along = shrinkage * fit.level, (1 - shrinkage) * values
        taken = spread_along / (spread_along + ridge)
        yield fit.scores((fit.mean - (along * taken) @ axes.T) / ridge)


def _some_of_each(classes: Tensor) -> Tensor:
    """Indices of at most about ``ROWS`` images, as many of each class, evenly drawn."""
    if len(classes) <= ROWS:
        return torch.arange(len(classes))
    kinds = classes.unique()
    each = max(2, ROWS // len(kinds))
    parts = [(classes == c).nonzero()[:, 0] for c in kinds]
    return torch.cat([p[spread(len(p), each)] for p in parts]).sort().values
