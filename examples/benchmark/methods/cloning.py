"""pnc itself, file by file as the commands do it: search, clone, inject, and eject for the undo."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pnc_cli import load
from pnc_cli.branch.classes import default_name
from pnc_cli.branch.make import Recipe, make_clone
from pnc_cli.branch.task import Task, gather, views_of
from pnc_cli.data import choose, load_images
from pnc_cli.errors import Incompatible
from pnc_cli.files.clone_file import write_clone
from pnc_cli.files.patch import eject, inject
from pnc_cli.manifest import Manifest
from pnc_cli.placement.grid import Grid, make_grid
from pnc_cli.placement.search import Budget, search
from pnc_cli.placement.study import Study
from pnc_cli.plan import HEAD_ONLY_CANDIDATE, Candidate

from ..clock import Clock, Spent
from ..problem import Problem
from ..scenario import Skipped, Variant
from ..training import logits
from .base import Made, Method, Settings, predictor

APART = 1000  # seeds that unlabelled images are drawn with are so much higher


def methods(variants: list[Variant]) -> list[Method]:
    return [Method(v.label, partial(_make, v), "pnc", uses_pnc=True) for v in variants]


def _make(variant: Variant, problem: Problem, known: Settings | None) -> Made:
    """A clone from each source, all injected into the target.

    Variants whose budgets choose the same positions share one clone.
    """
    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name)
    clones, manifests, chosen, shared = [], [], [], Spent()
    for k in range(len(problem.world.sources)):
        given = _shared(
            problem, task_of, k, variant.originals, tuple(variant.taps), tuple(variant.cuts)
        )
        task, grid = given.made
        if variant.head_only:
            found = Shared(HEAD_ONLY_CANDIDATE, Spent())
        else:
            study = _shared(problem, _study, task, grid)
            found = _shared(
                problem, _search, task, grid, study.made, budget_of(variant, task, grid)
            )
            shared += study.saved
        if variant.unlabelled:
            task = _shared(problem, _with_pool, task, variant.unlabelled).made
        clone = _shared(problem, _clone, task, grid, found.made, variant.epochs)
        shared += given.saved + found.saved + clone.saved
        manifest, tensors = clone.made
        clones.append(place / f"clone{k}.safetensors")
        write_clone(clones[-1], manifest, tensors)
        manifests.append(manifest)
        chosen.append(_position(found.made))
    patched = place / "patched.safetensors"
    inject(problem.target.path, clones, patched)

    def undo() -> Tensor:
        with folder:
            back = place / "back.safetensors"
            eject(patched, back)
            if back.read_bytes() != problem.target.path.read_bytes():
                raise AssertionError("eject did not give the target file back")
            ejected = copy.deepcopy(problem.target.model)
            ejected.load_state_dict(load_file(back))
            return logits(ejected, problem.test.target, problem.target.ref.preprocessing)

    model = load(patched)
    return Made(
        predictor(problem, model),
        run=model,
        undo=undo,
        added_parameters=sum(m.cost.parameters for m in manifests),
        added_macs=sum(m.cost.macs for m in manifests),
        bytes_shipped=sum(c.stat().st_size for c in clones),
        settings={"positions": chosen},
        shared=shared,
    )


def _position(c: Candidate) -> str:
    return f"{c.tap} -> {c.cut}, {c.kept}"


def task_of(
    problem: Problem, k: int, originals: bool, taps: tuple, cuts: tuple
) -> tuple[Task, Grid]:
    """What is to be cloned from source ``k``."""
    network = problem.world.sources[k]
    task = gather(
        network,
        problem.target,
        problem.world.classes[k],
        problem.world.train,
        limit=problem.scenario.images_per_class,
        originals=originals,
        seed=problem.seed,
    )
    return task, make_grid(network, problem.target, taps, cuts)


def _with_pool(problem: Problem, task: Task, count: int) -> Task:
    """``task`` with so many images of all classes that it may not see the labels of."""
    each = -(-count // len(problem.names))
    drawn = choose(problem.world.train, problem.names, each, problem.seed + APART)
    views = views_of(task.source, task.target)
    return replace(task, pool=load_images(problem.world.train, drawn, views))


def _study(problem: Problem, task: Task, grid: Grid) -> Study:
    study = Study.of(task, grid, problem.seed)
    study.score_pairs()
    return study


def budget_of(variant: Variant, task: Task, grid: Grid) -> Budget:
    """The most that may be added."""
    if variant.of_pair is None:
        return Budget(variant.max_macs, variant.max_params)
    macs = sum(grid.source.macs.values()) / sum(grid.target.macs.values())
    parameters = task.source.parameters / task.target.parameters
    return Budget(variant.of_pair * macs, variant.of_pair * parameters)


def _search(problem: Problem, task: Task, grid: Grid, study: Study, budget: Budget) -> Candidate:
    try:
        return search(task, grid, seed=problem.seed, budget=budget, study=study).best
    except Incompatible as e:  # nothing is as cheap as that
        raise Skipped(str(e)) from None


def _clone(
    problem: Problem, task: Task, grid: Grid, chosen: Candidate, epochs: int | None
) -> tuple[Manifest, dict]:
    return make_clone(task, grid, chosen, Recipe(default_name(task.classes), epochs, problem.seed))


@dataclass(frozen=True)
class Shared:
    made: Any
    saved: Spent  # by having it already


def _shared(problem: Problem, make: Callable, *args: Any) -> Shared:
    """``make(problem, *args)``, once a seed."""
    plain = (str, int, float, tuple, type(None), Candidate, Budget)
    key = (make, *(a if isinstance(a, plain) else id(a) for a in args))  # what has an id stays
    if key in problem.cache:
        return Shared(*problem.cache[key])
    clock = Clock()
    made = make(problem, *args)
    problem.cache[key] = made, clock.passed()
    return Shared(made, Spent())
