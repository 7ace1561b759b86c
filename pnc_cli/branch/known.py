"""Clone classes that the target may know already, under another name."""

from __future__ import annotations

from torch import Tensor

from ..schema import KnownAs
from .task import Task

NEARLY_ALL = 0.9  # of a clone class's images
SURE = 0.5  # mean probability that the target gives its answer on them
FEWEST = 3  # images that tell


def known_already(task: Task, z_t: Tensor) -> list[KnownAs]:
    """Clone classes nearly all of whose images the target gives one class of its own, and is sure.

    ``z_t`` (N, C) are the target's logits on the task's images.
    """
    found, probabilities = [], z_t.softmax(1)
    for k, c in enumerate(task.classes):
        p = probabilities[task.ids == task.old + k]
        if len(p) < FEWEST:
            continue
        told = p.argmax(1)
        index = int(told.mode().values)
        share = float((told == index).double().mean())
        if share >= NEARLY_ALL and float(p[:, index].mean()) >= SURE:
            label = task.target.labels[index]
            found.append(KnownAs(name=c.name, label=label, share=round(share, 6), images=len(p)))
    return found
