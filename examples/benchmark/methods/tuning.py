"""Parameter tuning of the target with new rows in its classifier.

All start from the rows of the linear probe, and train with the same optimiser, schedule and
augmentation; each has its small grid of settings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnc_cli.data import normalize, spread

from ..problem import Problem
from ..training import fit, grown, head_of, logits
from .base import SHARES, Made, Method, Settings, first_rows, predictor, size, tuned

RATES = [{"learning_rate": r} for r in (3e-4, 1e-3, 3e-3)]
FEWER = (1 / 16, 1 / 4)  # of the budget of steps: without originals more only forgets more
TEMPERATURE = 2.0  # of distillation, as in Li and Hoiem (ECCV 2016)


def fine_tune(*, originals: bool):
    """All parameters, by cross-entropy over all classes."""

    def make(problem: Problem, index: Tensor, settings: Settings) -> Made:
        index = index if originals else clone_images(problem, index)
        model = grown(problem.target, *first_rows(problem, index, originals=originals))
        train_all(problem, model, index, lambda x, z, y: F.cross_entropy(z, y), settings)
        return changed_in_place(problem, model)

    grid = RATES if originals else [{"learning_rate": r} for r in (3e-5, 3e-4)]
    shares = SHARES if originals else FEWER
    return lambda problem, known: tuned(problem, known, grid, make, shares)


def without_forgetting(*, originals: bool):
    """Learning without forgetting: the old target's answers are distilled while the new are learned.

    Without originals the new rows learn among themselves, as in the paper's separate heads:
    over all classes everything would become new.
    """

    def make(problem: Problem, index: Tensor, settings: Settings) -> Made:
        index = index if originals else clone_images(problem, index)
        model = grown(problem.target, *first_rows(problem, index, originals=originals))
        old, teacher = problem.old, problem.target.model

        def loss(x: Tensor, z: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                before = (teacher(x) / TEMPERATURE).log_softmax(1)
            now = (z[:, :old] / TEMPERATURE).log_softmax(1)
            kept = F.kl_div(now, before, log_target=True, reduction="batchmean") * TEMPERATURE**2
            learned = F.cross_entropy(z, y) if originals else F.cross_entropy(z[:, old:], y - old)
            return learned + kept

        train_all(problem, model, index, loss, settings)
        return changed_in_place(problem, model)

    grid, shares = (RATES, SHARES) if originals else (RATES[:2], FEWER)
    return lambda problem, known: tuned(problem, known, grid, make, shares)


def elastic(problem: Problem, known: Settings | None) -> Made:
    """Elastic weight consolidation: what mattered to the original classes is held by springs."""

    def make(problem: Problem, index: Tensor, settings: Settings) -> Made:
        model = grown(problem.target, *first_rows(problem, index))
        fisher = diagonal_fisher(problem, index)
        start = {n: p.detach().clone() for n, p in problem.target.model.named_parameters()}
        now = {_plain(n): p for n, p in model.named_parameters()}
        springs = [(now[n], start[n], f) for n, f in fisher.items()]

        def penalty() -> Tensor:
            return settings["strength"] * sum((f * (p - p0).square()).sum() for p, p0, f in springs)

        train_all(
            problem,
            model,
            index,
            lambda x, z, y: F.cross_entropy(z, y),
            {k: v for k, v in settings.items() if k != "strength"},
            penalty,
        )
        return changed_in_place(problem, model)

    grid = [{"learning_rate": 1e-3, "strength": s} for s in (1e2, 1e4)]
    return tuned(problem, known, [*grid, {"learning_rate": 3e-4, "strength": 1e2}], make)


def diagonal_fisher(problem: Problem, index: Tensor, images: int = 120) -> dict[str, Tensor]:
    """Mean squared gradients of the target's log-likelihood on original images, one at a time, the
    answers drawn from the target itself (Kirkpatrick et al., PNAS 2017)."""
    index = index[problem.few.label[index] < problem.old]
    index = index[spread(len(index), images)]
    model = copy.deepcopy(problem.target.model).requires_grad_(True)
    fisher = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for i in index.tolist():
        z = model(normalize(problem.few.target[i : i + 1], problem.target.ref.preprocessing))
        answer = torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]
        model.zero_grad()
        F.cross_entropy(z, answer).backward()
        for n, p in model.named_parameters():
            if p.grad is not None:
                fisher[n] += p.grad.square() / len(index)
    return fisher


def clone_images(problem: Problem, index: Tensor) -> Tensor:
    return index[problem.few.label[index] >= problem.old]


def train_all(
    problem: Problem, model: nn.Module, index: Tensor, loss, settings, penalty=None
) -> None:
    """Trains every parameter.  Batch statistics move only where original images are seen too."""
    model.requires_grad_(True)
    few = problem.few
    fit(
        model,
        few.target,
        few.label,
        index,
        problem.target.ref.preprocessing,
        loss,
        seed=problem.seed,
        flip=problem.scenario.flip,
        train_norms=bool((few.label[index] < problem.old).any()),
        penalty=penalty,
        **settings,
    )
    model.requires_grad_(False)


def changed_in_place(problem: Problem, model: nn.Module) -> Made:
    """A target whose own weights were changed: all are shipped, and the old ones kept for the undo."""
    saved = problem.target.model.state_dict()
    head = head_of(model)

    def undo() -> Tensor:
        restored = copy.deepcopy(model)
        owner, _, leaf = problem.target.classifier[0].rpartition(".")
        setattr(restored.get_submodule(owner), leaf, head_of(restored).old)
        restored.load_state_dict(saved)
        return logits(restored, problem.test.target, problem.target.ref.preprocessing)

    return Made(
        predictor(problem, model),
        run=model,
        undo=undo,
        added_parameters=sum(p.numel() for p in head.new.parameters()),
        added_macs=head.new.weight.numel(),
        bytes_shipped=size(model.state_dict().values()),
        bytes_to_undo=size(saved.values()),
    )


def shipped_apart(
    problem: Problem,
    model: nn.Module,
    extra: list[Tensor],
    taken_off: Callable[[], nn.Module],
    macs: int = 0,
) -> Made:
    """A target whose weights stay in their file: new rows and the tensors ``extra`` come beside it
    and are merged when it is loaded (``macs``: what cannot be).  ``taken_off`` gives the model
    without ``extra`` again."""
    rows = list(head_of(model).new.parameters())
    how = problem.target.ref.preprocessing
    return Made(
        predictor(problem, model),
        run=model,
        undo=lambda: logits(taken_off(), problem.test.target, how)[:, : problem.old],
        added_parameters=sum(p.numel() for p in rows),
        added_macs=rows[0].numel() + macs,
        bytes_shipped=size(rows) + size(extra),
    )


def _plain(name: str) -> str:
    """A parameter's name before the classifier grew."""
    return name.replace(".old.", ".")


METHODS = [
    Method("fine-tuning, clone images only", fine_tune(originals=False), "tuning"),
    Method("fine-tuning with replay", fine_tune(originals=True), "tuning"),
    Method("LwF", without_forgetting(originals=True), "tuning"),
    Method("LwF, clone images only", without_forgetting(originals=False), "tuning"),
    Method("EWC", elastic, "tuning"),
]
