"""What a method is, and what it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..clock import Clock, Spent
from ..problem import Problem, Split
from ..training import fit_rows, logits

Settings = dict[str, Any]
DECAY = 1e-2  # of new rows that something else goes on to train
SHARES = (1 / 3, 1.0)  # of the budget of steps, that a rival chooses from


@dataclass
class Made:
    """A classifier of old and new classes, and what it costs.

    ``predict`` gives logits (N, old + new); columns of classes it cannot tell are -inf.
    ``run`` takes one batch as the target does, for the clock.  ``undo`` takes the change back and
    gives the target's logits of the test images as they are then.
    """

    predict: Callable[[Split], Tensor]
    run: nn.Module | None = None
    undo: Callable[[], Tensor] | None = None
    added_parameters: int = 0
    added_macs: int = 0
    bytes_shipped: int = 0
    bytes_to_undo: int = 0
    settings: Settings = field(default_factory=dict)  # chosen on held-out images
    shared: Spent = Spent()  # on what another row has done already and this one used
    tuning: Spent = Spent()  # on choosing the settings


@dataclass(frozen=True)
class Method:
    """A row of the tables.  ``make`` is given the settings that another seed chose, if one did."""

    name: str
    make: Callable[[Problem, Settings | None], Made]
    kind: str  # "reference", "both", "tuning" or "pnc"
    uses_pnc: bool = False  # whether its figures depend on pnc's code

    @property
    def uses_sources(self) -> bool:
        return self.kind in ("both", "pnc")


Make = Callable[[Problem, Tensor, Settings], Made]  # from the few images of these indices


def tuned(
    problem: Problem,
    known: Settings | None,
    grid: list[Settings],
    make: Make,
    shares: tuple[float, ...] = SHARES,
) -> Made:
    """``make`` on all images with the settings of ``grid``, and the number of steps, that did best
    on the held-out images after learning from the others.

    Steps are ``shares`` of the budget.  All of the grid is tried with the fewest, what did best
    then with the others, each time with a schedule of that many steps.
    """
    clock = Clock()
    if known is None:
        rest = (~problem.held_out).nonzero()[:, 0]
        few, *more = [max(1, round(share * problem.world.steps)) for share in shares]

        def score(settings: Settings) -> float:
            return held_out_score(problem, make(problem, rest, settings))

        tried = [(score(s), s) for s in ({**s, "steps": few} for s in grid)]
        _, best = max(tried, key=lambda t: t[0])
        tried += [(score(s), s) for s in ({**best, "steps": n} for n in more)]
        _, known = max(tried, key=lambda t: t[0])
    tuning = clock.passed()
    made = make(problem, torch.arange(len(problem.held_out)), known)
    made.settings, made.tuning = known, tuning
    return made


def held_out_score(problem: Problem, made: Made) -> float:
    held, few = problem.held_out, problem.few
    split = Split(few.target[held], [s[held] for s in few.sources], few.label[held])
    return score_of(problem, made.predict(split), split.label)


def score_of(problem: Problem, z: Tensor, label: Tensor) -> float:
    """Mean of the accuracies on original and on clone classes, averaged with the same of the
    probability of the right class, as pnc's search does: few images alone are a coarse measure."""
    right = (z.argmax(1) == label).double()
    worth = (right + z.softmax(1).gather(1, label[:, None])[:, 0]) / 2
    new = label >= problem.old
    return (worth[new].mean() + worth[~new].mean()).item() / 2


def first_rows(problem: Problem, index: Tensor, *, originals: bool = True) -> tuple[Tensor, Tensor]:
    """New rows for the target's classifier to start from: those of the linear probe.

    (Kumar et al., ICLR 2022: tuning from probed rows distorts features less.)  Without originals
    the new classes are told from each other only.
    """
    seen = problem.few_features
    pre, z = seen.pre[index], seen.logits[index]
    label = problem.few.label[index]
    if not originals:
        new = label >= problem.old
        pre, z, label = pre[new], z[new][:, :0], label[new] - problem.old
    return fit_rows(pre, z, label, problem.new, decay=DECAY)


def predictor(problem: Problem, model: nn.Module) -> Callable[[Split], Tensor]:
    how = problem.target.ref.preprocessing
    return lambda split: logits(model, split.target, how)


def size(tensors) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)
