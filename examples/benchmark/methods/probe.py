"""Linear probes: rows of a classifier on the frozen target's pre-logits.

Convex, and the strength of their regularisation is chosen by cross-validation over the few images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clock import Clock
from ..problem import EVERY, Problem
from ..training import Rows, fit_rows, grown, head_of
from .base import Made, Method, Settings
from .tuning import shipped_apart

# Strongest first: each starts the next.
DECAYS = [1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5]


def linear_probe(*, refitted: bool):
    """New rows, which compete with the old logits as they are; or all rows ``refitted``."""

    def fit(problem: Problem, index: Tensor, decay: float, start: Rows | None = None) -> Rows:
        seen, label = problem.few_features, problem.few.label
        z_old = seen.logits[index, : 0 if refitted else problem.old]
        rows = problem.new + (problem.old if refitted else 0)
        return fit_rows(seen.pre[index], z_old, label[index], rows, decay=decay, start=start)

    def answers(problem: Problem, rows: Rows, index: Tensor) -> Tensor:
        seen = problem.few_features
        z_old = seen.logits[index, : 0 if refitted else problem.old]
        return torch.cat([z_old, F.linear(seen.pre[index], *rows)], dim=1)

    def best_decay(problem: Problem) -> float:
        label = problem.few.label
        z = torch.empty(len(DECAYS), len(label), problem.old + problem.new)
        for k in range(EVERY):
            rest, judged = (problem.fold != k).nonzero()[:, 0], (problem.fold == k).nonzero()[:, 0]
            rows: Rows | None = None
            for i, decay in enumerate(DECAYS):
                rows = fit(problem, rest, decay, rows)
                z[i, judged] = answers(problem, rows, judged)
        return DECAYS[max(range(len(DECAYS)), key=lambda i: _score(problem, z[i], label))]

    def make(problem: Problem, known: Settings | None) -> Made:
        clock = Clock()
        settings = known or {"decay": best_decay(problem)}
        tuning = clock.passed()
        every = torch.arange(len(problem.few.label))
        rows = fit(problem, every, settings["decay"])
        made = _refitted(problem, rows) if refitted else _beside(problem, rows)
        made.settings, made.tuning = settings, tuning
        return made

    return make


def _score(problem: Problem, z: Tensor, label: Tensor) -> tuple[float, float]:
    """Mean of the accuracies on original and on clone classes; of equals, the likelier labels.

    All of the few images are judged here, so hits and misses are enough; the probability of the
    right class would have the least regularised, whose answers are the surest.
    """
    right, new = (z.argmax(1) == label).double(), label >= problem.old
    return (right[new].mean() + right[~new].mean()).item() / 2, -F.cross_entropy(z, label).item()


def _beside(problem: Problem, rows: Rows) -> Made:
    model = grown(problem.target, *rows)
    return shipped_apart(problem, model, [], lambda: model)


def _refitted(problem: Problem, rows: Rows) -> Made:
    """The old rows stay in the target's file: those in their place are shipped."""
    (weight, bias), old = rows, problem.old
    model = grown(problem.target, weight[old:], bias[old:])
    head = head_of(model).old
    head.weight.copy_(weight[:old])
    if head.bias is None:
        head.bias = torch.nn.Parameter(bias[:old], requires_grad=False)
    else:
        head.bias.copy_(bias[:old])
    untouched = grown(problem.target, weight[old:], bias[old:])
    return shipped_apart(problem, model, [weight[:old], bias[:old]], lambda: untouched)


METHODS = [
    Method("linear probe", linear_probe(refitted=False), "tuning"),
    Method("linear probe, all rows refitted", linear_probe(refitted=True), "tuning"),
]
