"""Figures of a patched classifier from its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Shares, 0 to 1; None where there were no images to tell."""

    branch: float | None  # clone images, among the clone classes alone
    original: float | None  # original images, among all classes
    clone: float | None  # clone images, among all classes
    joint: float | None  # all images, among all classes
    locality: float | None  # original images whose predicted class the patch leaves alone
    soft: float | None  # mean probability of the right class, original and clone images alike
    right: Tensor  # (N,) bool
    error: float | None  # standard error of the average accuracy

    @property
    def average(self) -> float | None:
        if self.original is None or self.clone is None:
            return None
        return (self.original + self.clone) / 2


UNKNOWN = Scores(None, None, None, None, None, None, torch.zeros(0).bool(), None)


def score(z_t: Tensor, z_new: Tensor, label: Tensor) -> Scores:
    """``z_t`` (N, C) are the target's logits, ``z_new`` (N, K) the clone classes'; ``label`` (N,)
    indexes [target's classes, clone classes]."""
    classes = z_t.shape[1]
    z = torch.cat([z_t, z_new], dim=1).cpu()
    predicted, sure = z.argmax(1), z.softmax(1)[torch.arange(len(z)), label]
    alone = z_t.argmax(1).cpu()
    new = label >= classes
    right = predicted == label
    soft_new, soft_old = share(sure[new]), share(sure[~new])
    soft = None if soft_new is None or soft_old is None else (soft_new + soft_old) / 2
    return Scores(
        branch=share((z_new.argmax(1).cpu() + classes == label)[new]),
        original=share(right[~new]),
        clone=share(right[new]),
        joint=share(right) if bool((~new).any()) else None,
        locality=share((predicted == alone)[~new]),
        soft=soft,
        right=right,
        error=standard_error(right, new),
    )


def standard_error(each: Tensor, new: Tensor) -> float | None:
    """Of the mean of two means: of what ``each`` (N,) says of images that are ``new`` (N,), and of the
    others.  Of the differences of two classifiers, image by image, it is that of their difference.
    None where there are too few images to tell."""
    sides = [each[new].double(), each[~new].double()]
    if min(map(len, sides)) < 2:
        return None
    return math.sqrt(sum(s.var().item() / len(s) for s in sides)) / 2


def share(hits: Tensor) -> float | None:
    return hits.double().mean().item() if len(hits) else None


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
