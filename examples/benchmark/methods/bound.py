"""The upper bound: the target trained on with all training images of all classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..problem import Problem
from ..training import batch_of, fit, grown
from .base import Made, Method, Settings, first_rows
from .tuning import changed_in_place

EPOCHS = 8


def joint_training(problem: Problem, known: Settings | None) -> Made:
    every = problem.world.images(problem.world.train, None, problem.seed)
    model = grown(problem.target, *first_rows(problem, torch.arange(len(problem.few.label))))
    fit(
        model.requires_grad_(True),
        every.target,
        every.label,
        torch.arange(len(every.label)),
        problem.target.ref.preprocessing,
        lambda x, z, y: F.cross_entropy(z, y),
        learning_rate=1e-3,
        steps=EPOCHS * -(-len(every.label) // batch_of(*every.target.shape[2:])),
        seed=problem.seed,
        flip=problem.scenario.flip,
        train_norms=True,
    )
    return changed_in_place(problem, model.requires_grad_(False))


METHODS = [Method("joint training, all images", joint_training, "bound")]
