"""How long work will take, said before it begins."""

from __future__ import annotations

import time

import torch

from ..limits import Limits
from ..network.features import prepared, watching
from .task import Task

TIMED = 4  # images that are timed, after as many that are not


def seconds_of_a_pass(task: Task, limits: Limits) -> float:
    """About how long a plain pass takes: of both networks over the task's images, or over as many
    generated ones."""
    count = limits.probes if task.images is None else len(task.ids)
    seconds = 0.0
    for network in (task.target, task.source):
        blank = torch.zeros(TIMED, *network.input_size, dtype=torch.uint8)
        with watching(network) as look:
            look(prepared(network, blank))
            start = time.perf_counter()
            look(prepared(network, blank))
            seconds += time.perf_counter() - start
    return seconds / TIMED * count
