"""Refining an adapter: the frozen source teaches the frozen module through the adapter alone.

The teacher (the source) and the student (the module, pruned or not, behind the adapter) look at
the same neighbours of each image.  The loss compares their answers and their pre-logits; only the
adapter learns: its convolution from the ridge solution on, its modulation from the closed form on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ..channels.localised import neighbourhood
from ..data import Progress, no_progress, normalize, spread
from ..network.features import BATCH as LOOKED_AT
from ..network.features import device_of
from ..network.load import Network
from ..network.part import Module
from ..network.record import recording
from .adapter import Adapter
from .modulation import modulated

BATCH = 25  # small: many steps, and what a student keeps stays near the processor
EPOCHS = 15  # passes over the images, unless the module is so large that it would take long:
WORK = 5e11  # MACs of the student, there and back, in all passes
NEIGHBOURS = 4  # of each image; every epoch looks at one of them
MEMORY = 2 << 30  # bytes of recorded lessons, at most
RATES = {"adapter": 2e-3, "modulation": 1e-2}  # learning rates at their highest


@dataclass(frozen=True)
class Lessons:
    """What the student is given and what the teacher says, for neighbours of N images.

    Shapes: ``features`` (K N, ...) at the tap; ``pre`` (K N, D) and ``answers`` (K N, C), the
    log-softmax over the clone classes, of the teacher.
    """

    features: Tensor
    pre: Tensor
    answers: Tensor
    images: int

    def epoch(self, generator: torch.Generator) -> list[Tensor]:
        """Indices of one neighbour of each image, in batches."""
        copies = len(self.features) // self.images
        drawn = torch.randint(copies, (self.images,), generator=generator) * self.images
        order = torch.randperm(self.images, generator=generator)
        return list((drawn[order] + order).split(BATCH))


def affordable_epochs(macs: int, images: int) -> int:
    """Passes over ``images`` that a student of ``macs`` MACs per image deserves."""
    return max(1, min(EPOCHS, int(WORK / max(3 * macs * images, 1))))


def refine(
    adapter: Adapter,
    modulation: dict[str, Tensor],
    student: Module,
    lessons: Lessons,
    *,
    exact: bool,
    epochs: int,
    seed: int,
    progress: Progress = no_progress,
) -> None:
    """Trains ``modulation``, and ``adapter`` unless it is exact already, in place."""
    steps = epochs * math.ceil(lessons.images / BATCH)
    learning: dict[str, list[Tensor]] = {
        "adapter": [] if exact else list(adapter.parameters()),
        "modulation": list(modulation.values()),
    }
    if not steps or not any(learning.values()):
        return
    generator = torch.Generator().manual_seed(seed)
    groups = [{"params": p, "lr": RATES[k]} for k, p in learning.items() if p]
    _allow_gradients(learning, True)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    variance = lessons.pre.var().clamp(min=1e-6)
    for epoch in range(epochs):
        progress("refining the adapter", epoch, epochs)
        for index in lessons.epoch(generator):
            changed = {f"part.{n}": t for n, t in modulated(student.part, modulation).items()}
            pre, logits = functional_call(student, changed, (adapter(lessons.features[index]),))
            loss = F.kl_div(
                logits.log_softmax(1),
                lessons.answers[index],
                log_target=True,
                reduction="batchmean",
            )
            loss = loss + (pre - lessons.pre[index]).square().mean() / variance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    progress("refining the adapter", epochs, epochs)
    _allow_gradients(learning, False)


def _allow_gradients(learning: Mapping[str, Sequence[Tensor]], allowed: bool) -> None:
    for parameter in (p for parameters in learning.values() for p in parameters):
        parameter.requires_grad_(allowed)


@torch.no_grad()
def lessons_of(
    teacher: Module,
    target: Network,
    source: Network,
    views: tuple[Tensor, Tensor],
    tap: str,
    cut: str,
    *,
    copies: int = NEIGHBOURS,
    seed: int,
    progress: Progress = no_progress,
) -> Lessons:
    """Runs both networks on ``copies`` neighbours of each of the images, given as uint8 tensors for target and source,
    (N, C, H, W) each.  Where memory does not hold all, a part of them is used, evenly drawn.

    ``teacher`` is the whole part of the source after ``cut``.
    """
    generator = torch.Generator().manual_seed(seed)
    device = device_of(target)
    features, pre, answers = [], [], []
    with recording(target.model, [tap]) as taps, recording(source.model, [cut]) as cuts:

        def look(index: Tensor) -> None:
            neighbour = neighbourhood(len(index), generator)
            x_t = normalize(views[0][index].to(device), target.ref.preprocessing)
            x_s = normalize(views[1][index].to(device), source.ref.preprocessing)
            target.model(neighbour(x_t))
            source.model(neighbour(x_s))
            p, z = teacher(cuts[cut])
            features.append(taps[tap])
            pre.append(p)
            answers.append(z.log_softmax(1))

        look(torch.zeros(1, dtype=torch.long))
        affordable = MEMORY // max(4 * features.pop().numel(), 1)
        del pre[:], answers[:]
        images = max(1, min(len(views[0]), affordable))
        copies = max(1, min(copies, affordable // images))
        chosen = spread(len(views[0]), images)
        for copy in range(copies):
            progress("lessons for the adapter", copy, copies)
            for index in chosen.split(LOOKED_AT):
                look(index)
    progress("lessons for the adapter", copies, copies)
    return Lessons(torch.cat(features), torch.cat(pre), torch.cat(answers), images)


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Learning rate factor: a tenth of the steps up, then a cosine down."""
    warm = max(steps // 10, 1)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    return factor
