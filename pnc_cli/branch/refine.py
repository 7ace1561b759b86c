"""Refining an adapter: the frozen source teaches the frozen module through the adapter alone.

The teacher (the source) and the student (the module, pruned or not, behind the adapter) look at
the same neighbours of each image.  The loss compares their answers and their pre-logits; only the
adapter learns: its convolution from the ridge solution on, its compensation from the closed form on.

What the teacher says of each neighbour is kept; what the target shows the student of it is kept
too where memory allows, and computed again each time where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ..channels.localised import Neighbours
from ..data import Progress, no_progress, spread
from ..network.features import glancing, prepared, watching
from ..network.part import Module
from ..network.position import INPUT
from ..plan import Place
from .adapter import Adapter
from .compensation import Compensation
from .material import Material

BATCH = 25  # small: many steps, and what a student keeps stays near the processor
PASSES = 15  # over the images that are learned from
NEIGHBOURS = 4  # of each image; every pass looks at one of them
FEWEST = 25  # images that are learned from, whatever that takes
RATES = {"adapter": 2e-3, "modulation": 1e-2, "mixing": 3e-3}  # learning rates at their highest


@dataclass(frozen=True)
class Lessons:
    """What the student is given and what the teacher says, for K neighbours of each of n images.

    Shapes: ``features`` (K n, ...) at the tap, or a function that gives those of an index (b,);
    ``pre`` (K n, D) and ``answers`` (K n, C), the log-softmax over the clone classes, of the teacher.
    """

    features: Tensor | Callable[[Tensor], Tensor]
    pre: Tensor
    answers: Tensor
    images: int  # n

    def epoch(self, generator: torch.Generator) -> list[Tensor]:
        """Indices of one neighbour of each image, in batches."""
        copies = len(self.pre) // self.images
        drawn = torch.randint(copies, (self.images,), generator=generator) * self.images
        order = torch.randperm(self.images, generator=generator)
        return list((drawn[order] + order).split(BATCH))

    def given(self, index: Tensor) -> Tensor:
        """What the student is given for the neighbours ``index`` (b,)."""
        return self.features[index] if isinstance(self.features, Tensor) else self.features(index)


def learned_from(material: Material, place: Place, macs: int, passes: int) -> Tensor:
    """(n,) the images that a student of ``macs`` MACs learns from in ``passes``: fitted ones, as many
    as the work allows, half of them of the clone classes where there are so many."""
    pair, task = material.pair, material.task
    before = pair.tap(place).spent  # what the target spends up to its tap
    teaching = min(NEIGHBOURS, (passes + 1) // 2) * (pair.source_macs + before)
    each = teaching + passes * (3 * macs + before)  # there and back
    most = max(FEWEST, int(material.limits.refining * material.plain_macs / max(each, 1)))
    old, new = ((material.fit & kind).nonzero()[:, 0] for kind in (~task.is_new, task.is_new))
    few = min(len(new), max(most // 2, most - len(old)))
    chosen = torch.cat([new[spread(len(new), few)], old[spread(len(old), most - few)]])
    return chosen.sort().values


@torch.no_grad()
def lessons_of(
    material: Material,
    place: Place,
    images: Tensor,
    *,
    copies: int,
    seed: int,
    progress: Progress = no_progress,
) -> Lessons:
    """Runs the source on ``copies`` neighbours of each of the task's ``images`` (n,), and the target
    up to its tap where there is memory for what it shows."""
    task, pair, limits = material.task, material.pair, material.limits
    count = copies * len(images)
    neighbours = Neighbours.drawn(count, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def show(index: Tensor) -> Tensor:
        with glancing(task.target, [place.tap]) as glance:
            x = prepared(task.target, task.pixels.at(images[index % len(images)]))
            return glance(neighbours.of(index)(x))[place.tap]

    keep = place.tap != INPUT and 4 * count * pair.tap(place).layout.elements <= limits.lessons
    pre, answers, shown = [], [], []
    with watching(task.source, (), pair.pre_logits) as teach:
        for index in torch.arange(count).split(pair.at_once([place.tap], [], limits)):
            progress("lessons for the adapter", int(index[0]), count)
            x = prepared(task.source, task.pixels.at(images[index % len(images)], 1))
            said = teach(neighbours.of(index)(x)).answers
            pre.append(said.pre)
            answers.append(said.logits[:, task.columns].log_softmax(1))
            if keep:
                shown.append(show(index))
    progress("lessons for the adapter", count, count)
    features = torch.cat(shown) if keep else show
    return Lessons(features, torch.cat(pre), torch.cat(answers), len(images))


def refine(
    adapter: Adapter,
    compensation: Compensation,
    student: Module,
    lessons: Lessons,
    *,
    exact: bool,
    epochs: int,
    seed: int,
    together: int = BATCH,
    progress: Progress = no_progress,
) -> None:
    """Trains ``compensation``, and ``adapter`` unless it is exact already, in place.

    The student runs on ``together`` images at a time; gradients of a batch add up.
    """
    steps = epochs * math.ceil(lessons.images / BATCH)
    learning: dict[str, list[Tensor]] = {
        "adapter": [] if exact else list(adapter.parameters()),
        "modulation": list(compensation.modulation.values()),
        "mixing": list(compensation.mixing.values()),
    }
    if not steps or not any(learning.values()):
        return
    generator = torch.Generator().manual_seed(seed)
    groups = [{"params": p, "lr": RATES[k]} for k, p in learning.items() if p]
    _allow_gradients(learning, True)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    variance = lessons.pre.var().clamp(min=1e-6)
    done = 0
    for index in (i for _ in range(epochs) for i in lessons.epoch(generator)):
        progress("refining the adapter", done, steps)
        optimizer.zero_grad()
        for part in index.split(together):
            changed = {f"part.{n}": t for n, t in compensation.changed(student.part).items()}
            pre, logits = functional_call(student, changed, (adapter(lessons.given(part)),))
            said = lessons.answers[part]
            loss = F.kl_div(logits.log_softmax(1), said, log_target=True, reduction="batchmean")
            loss = loss + (pre - lessons.pre[part]).square().mean() / variance
            (loss * (len(part) / len(index))).backward()
        optimizer.step()
        schedule.step()
        done += 1
    progress("refining the adapter", steps, steps)
    _allow_gradients(learning, False)


def with_gradients(material: Material, place: Place) -> int:
    """Images that a student can be run on in one go, there and back."""
    cut = material.pair.source.position(place.cut)
    after = [p for p in material.pair.source.positions if p.spent >= cut.spent]
    kept = INSIDE * sum(p.layout.elements for p in after) * place.resolution**2
    return max(1, min(BATCH, int(material.limits.gradients / (4 * max(kept, 1)))))


INSIDE = 4  # tensors that gradients need, of each position's size, about


def _allow_gradients(learning: Mapping[str, Sequence[Tensor]], allowed: bool) -> None:
    for parameter in (p for parameters in learning.values() for p in parameters):
        parameter.requires_grad_(allowed)


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Learning rate factor: a tenth of the steps up, then a cosine down."""
    warm = max(steps // 10, 1)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    return factor
