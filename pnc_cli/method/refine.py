"""Refining an adapter: the frozen source teaches the frozen module through the adapter alone.

The teacher (the source) and the student (the module, pruned or not, behind the adapter) look at
the same neighbours of each image.  The loss compares their answers and their pre-logits; only the
adapter learns, from its ridge solution on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Progress, no_progress, normalize
from ..network.adapter import Adapter
from ..network.branch import Module
from ..network.build import Network
from ..network.record import recording
from .features import device_of
from .neighbourhood import neighbourhood

BATCH = 100


def refine(
    adapter: Adapter,
    student: Module,
    teacher: Module,
    target: Network,
    source: Network,
    views: tuple[Tensor, Tensor],
    tap: str,
    cut: str,
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 2e-3,
    progress: Progress = no_progress,
) -> None:
    """Trains ``adapter`` in place; ``teacher`` is the whole part of the source after ``cut``.

    ``views`` are the same images as uint8 tensors for target and source, (N, C, H, W) each.
    """
    for_target, for_source = views
    device, count = device_of(target), len(for_target)
    batch = min(BATCH, count)
    steps = epochs * math.ceil(count / batch)
    if not steps:
        return
    generator = torch.Generator().manual_seed(seed)
    adapter.requires_grad_(True)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(steps))
    with recording(target.model, [tap]) as taps, recording(source.model, [cut]) as cuts:
        for epoch in range(epochs):
            progress("refining the adapter", epoch, epochs)
            for index in torch.randperm(count, generator=generator).split(batch):
                neighbour = neighbourhood(len(index), generator)
                with torch.no_grad():
                    x_t = normalize(for_target[index].to(device), target.ref.preprocessing)
                    x_s = normalize(for_source[index].to(device), source.ref.preprocessing)
                    target.model(neighbour(x_t))
                    source.model(neighbour(x_s))
                    pre, logits = teacher(cuts[cut])
                student_pre, student_logits = student(adapter(taps[tap]))
                loss = F.kl_div(
                    student_logits.log_softmax(1), logits.log_softmax(1),
                    log_target=True, reduction="batchmean",
                )  # fmt: skip
                loss = loss + (student_pre - pre).square().mean() / pre.var().clamp(min=1e-6)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    progress("refining the adapter", epochs, epochs)
    adapter.requires_grad_(False)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """Learning rate factor: a tenth of the steps up, then a cosine down."""
    warm = max(steps // 10, 1)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    return factor
