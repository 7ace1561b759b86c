"""Whether the search's order is the order after refinement, and what each costs.

    python -m examples.benchmark.order cifar10

writes ORDER.md beside this file.  Of all pairs of positions, evenly drawn by their predicted score,
each is made into a clone as ``pnc clone`` does and measured on test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from scipy.stats import spearmanr

from pnc_cli.branch.fit_join import Evidence
from pnc_cli.branch.make import evidence_of, join_of
from pnc_cli.branch.material import Fits, Material
from pnc_cli.branch.recipe import Branch, make_branch
from pnc_cli.branch.refine import PASSES
from pnc_cli.branch.score import score
from pnc_cli.branch.task import Task
from pnc_cli.data import batches, spread
from pnc_cli.limits import LIMITS
from pnc_cli.network.features import prepared, watching
from pnc_cli.placement.grid import Grid
from pnc_cli.placement.ranking import worth
from pnc_cli.placement.search import search
from pnc_cli.placement.study import Study
from pnc_cli.plan import Candidate

from .__main__ import DATA, HERE
from .clock import Clock
from .methods.cloning import task_of
from .problem import Problem, World
from .scenario import load


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("-o", type=Path, default=HERE / "ORDER.md")
    args = parser.parse_args()
    problem, task, grid = given(args)
    clock = Clock()
    study = Study.of(task, grid, args.seed)
    chosen = search(task, grid, seed=args.seed, study=study).best
    searching = clock.passed().cpu
    pairs = sorted(study.score_pairs(), key=lambda c: -c.score)
    drawn = [pairs[i] for i in spread(len(pairs), args.pairs)]
    rows, refining = [], []
    for candidate in [chosen, *drawn]:
        clock = Clock()
        average, branch = refined(problem, task, grid, candidate)
        refining.append(clock.passed().cpu)
        rows.append((candidate, average, branch))
        print(candidate.tap, candidate.cut, candidate.share, worth(candidate), average, flush=True)
    args.o.write_text(
        report(args.scenario, args.seed, rows, len(pairs), searching, refining[1:]),
        encoding="utf-8",
    )


def parser_of(description: str) -> argparse.ArgumentParser:
    """With the arguments of every script that searches in one scenario."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("scenario", nargs="?", default="cifar10")
    parser.add_argument("--data", type=Path, default=Path(DATA))
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def given(args: argparse.Namespace) -> tuple[Problem, Task, Grid]:
    """The scenario that :func:`parser_of`'s arguments name, on one thread, its networks warm."""
    torch.set_num_threads(1)
    scenario = load(args.scenario, args.data, args.cache)
    problem = Problem(scenario, args.seed, World(scenario, args.cache))
    task, grid = task_of(problem, 0, True, (), ())
    problem.warm()
    return problem, task, grid


def refined(problem: Problem, task: Task, grid: Grid, c: Candidate) -> tuple[float, float]:
    """Average and branch accuracy on the test images of the clone of ``c``."""
    fits = Fits(grid, task, [c.place], LIMITS.clone_rows)
    material = Material.of(task, grid, fits, [c.tap], [c.cut])
    branch = make_branch(
        material,
        c.place,
        fits.solve()[c.place],
        material.sample([c.tap], [c.cut]),
        passes=None,
        seed=problem.seed,
    )
    evidence = evidence_of(material, c.place, branch)
    join, _ = join_of(task, grid, evidence, torch.ones_like(task.held_out))
    test = evidence_on(problem, task, c, branch)
    s = score(test.z_t, join(*test.tensors), problem.test.label)
    return s.average, s.branch


@torch.no_grad()
def evidence_on(problem: Problem, task: Task, c: Candidate, branch: Branch) -> Evidence:
    """The evidence of the test images."""
    images, found = problem.test.target, []
    with watching(task.target, [c.tap]) as look:
        for part in batches(len(images), LIMITS.batch):
            seen = look(prepared(task.target, images[part]))
            pre, z_b = branch.module(branch.adapter(seen.features[c.tap]))
            found.append((seen.answers.pre, pre, seen.answers.logits, z_b))
    return Evidence(*(torch.cat(tensors) for tensors in zip(*found)))


def report(
    name: str,
    seed: int,
    rows: list[tuple[Candidate, float, float]],
    pairs: int,
    searching: float,
    refining: list[float],
) -> str:
    (chosen, ours, _), drawn = rows[0], rows[1:]
    by_score = spearmanr([worth(c) for c, *_ in drawn], [a for _, a, _ in drawn]).statistic
    best = max(a for _, a, _ in rows)
    each = sum(refining) / len(refining)
    lines = [
        "# The search's order, and the order after refinement",
        "",
        f"`python -m examples.benchmark.order {name} --seed {seed} --pairs {len(drawn)}`: of {pairs} pairs with all "
        "their channels, evenly drawn by their score; *predicted* on the few images by the search, *measured* on "
        f"test images after {PASSES} passes of refinement.",
        "",
        f"- Spearman's rank correlation of predicted and measured average: **{by_score:.2f}** over {len(drawn)} pairs.",
        f"- The search's choice, `{chosen.tap}` -> `{chosen.cut}`, share {chosen.share:g}: {ours:.3f}; the best of all measured: {best:.3f}.",
        f"- Searching all {pairs} pairs and the short list's shares took {searching:.0f} s of processor time; refining one pair takes "
        f"{each:.0f} s, all of them would take {each * pairs:.0f} s: {each * pairs / searching:.0f} times as long.",
        "",
        "| tap | cut | predicted average | measured average | branch | MACs |",
        "|---|---|---|---|---|---|",
    ]
    for c, average, branch in drawn:
        lines.append(
            f"| {c.tap} | {c.cut} | {worth(c):.3f} | {average:.3f} | {branch:.3f} | {c.macs:,} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
