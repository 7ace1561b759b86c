"""Runs scenarios: ``python -m examples.benchmark [SCENARIO...]`` from the repository's root.

A line is printed after each row; each row is appended to results.jsonl, so a run that was stopped
goes on where it was.  RESULTS.md and the plots are then made from all rows there are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
DEFAULT = ["cifar10", "cifar10-one-class", "mnist", "digits"]  # longest first
DATA = os.environ.get("PNC_BENCHMARK_DATA", str(HERE.parents[2] / "shared" / "data"))


def main() -> int:
    p = argparse.ArgumentParser(
        prog="python -m examples.benchmark", description=__doc__.split("\n\n")[0]
    )
    p.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help="a name, or a .json file (default: " + ", ".join(DEFAULT) + ")",
    )
    p.add_argument(
        "--data",
        type=Path,
        default=Path(DATA),
        help="folder of checkpoints and images, {data} in scenarios (default: ../shared/data beside the repository, or $PNC_BENCHMARK_DATA)",
    )
    p.add_argument(
        "--cache", type=Path, default=HERE / "cache", help="folder for what the harness makes"
    )
    p.add_argument(
        "--out", type=Path, default=HERE, help="folder of results.jsonl, RESULTS.md and plots"
    )
    p.add_argument("--seeds", help="comma-separated, in place of the scenario's")
    p.add_argument(
        "--methods", help="rows to run, by the beginning of their names: 'linear,pnc, half'"
    )
    p.add_argument("--upper-bound", action="store_true", help="train on all images too (minutes)")
    p.add_argument(
        "--jobs",
        type=int,
        help="scenarios and seeds run at once, each in a process of its own (default: one a processor)",
    )
    p.add_argument(
        "--threads", type=int, help="threads of each (default: the processors shared out)"
    )
    p.add_argument("--report", action="store_true", help="make the tables and plots only")
    p.add_argument("--all", action="store_true", help="every scenario (hours)")
    p.add_argument("--list", action="store_true", help="list the scenarios")
    args = p.parse_args()
    every = [path.stem for path in sorted((HERE / "scenarios").glob("*.json"))]
    names = args.scenarios or (every if args.all else DEFAULT)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.list:
        for name in every:
            text = (HERE / "scenarios" / f"{name}.json").read_text(encoding="utf-8")
            print(f"{name:20} {json.loads(text)['title']}")
        return 0
    failed = 0
    if not args.report:
        processors = os.cpu_count() or 1
        jobs = args.jobs or processors
        threads = args.threads or max(1, processors // jobs)
        failed = (
            _spread(names, args, jobs, threads)
            if jobs > 1
            else sum(_run(n, args, threads) for n in names)
        )
    if os.environ.get("PNC_BENCHMARK_WORKER") is None:
        from .report import write

        write(args.out)
    return 1 if failed else 0


def _spread(names: list[str], args: argparse.Namespace, jobs: int, threads: int) -> int:
    """Each scenario and seed in a process of its own, ``jobs`` at once; returns how many failed.

    The first seed of a scenario, which makes its networks and chooses the settings, goes before the
    others.  On small networks two processes of one thread are faster than one of two.
    """
    options = [a for a in sys.argv[1:] if a not in names] + ["--jobs=1", f"--threads={threads}"]
    env = {**os.environ, "PNC_BENCHMARK_WORKER": "1"}
    others_options = [a for a in options if a != "--upper-bound"]  # that is for the first seed
    waiting = [(name, _seeds(name, args), options) for name in names]
    running: dict[subprocess.Popen, tuple[str, list[int]]] = {}
    failed = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, seeds, given = waiting.pop(0)
                command = [sys.executable, "-m", "examples.benchmark", name, *given]
                command += [f"--seeds={seeds[0]}"] if seeds else []
                running[subprocess.Popen(command, env=env)] = name, seeds[1:]
            time.sleep(0.5)
            for done in [r for r in running if r.poll() is not None]:
                failed += bool(done.returncode)
                name, others = running.pop(done)
                waiting += [(name, [seed], others_options) for seed in others]
    finally:
        for r in running:
            r.terminate()
    return failed


def _seeds(name: str, args: argparse.Namespace) -> list[int]:
    """The seeds to run a scenario with; none where it is skipped."""
    from .scenario import Skipped, load

    try:
        given = load(name, args.data, args.cache).seeds
    except Skipped:
        return []
    return _wanted(args) or given


def _wanted(args: argparse.Namespace) -> list[int]:
    """The seeds of ``--seeds``; none where it is not given."""
    return [int(s) for s in args.seeds.split(",")] if args.seeds else []


def _run(name: str, args: argparse.Namespace, threads: int) -> int:
    """Runs what is missing of a scenario; returns how many rows failed."""
    from .scenario import Skipped, load

    try:
        scenario = load(name, args.data, args.cache)
    except Skipped as e:
        print(f"skipped {e}")
        return 0
    import torch

    from pnc_cli.allocator import keep_freed_memory

    keep_freed_memory()  # as pnc's commands do
    torch.set_num_threads(threads)
    if seeds := _wanted(args):
        object.__setattr__(scenario, "seeds", seeds)
    from .problem import Problem, World

    failed = 0
    for one in scenario.expanded():
        world = World(one, args.cache)
        for seed in one.seeds:
            failed += _rows(Problem(one, seed, world), args)
    return failed


def _rows(problem, args: argparse.Namespace) -> int:
    """All rows of one scenario and seed."""
    from .methods import methods_of
    from .report import line
    from .row import Row, key_of, measure
    from .rows import append, read_rows
    from .scenario import Skipped

    s, failed = problem.scenario, 0
    label = s.name if s.images_per_class == 100 else f"{s.name}@{s.images_per_class}"
    wanted = re.split(",(?! )", args.methods or "")  # names have commas too, before a space
    for method in methods_of(s, upper_bound=args.upper_bound and problem.seed == s.seeds[0]):
        if not method.name.startswith(tuple(wanted)):
            continue
        rows, key = read_rows(args.out / "results.jsonl"), key_of(problem, method)
        same = [r for r in rows if r.key == key]
        if any(r.scenario == s.name for r in same):
            continue
        head = f"{label} seed {problem.seed} {method.name}"
        try:
            if same:  # another scenario with the same target, images and classes
                row = Row(**{**asdict(same[0]), "scenario": s.name})
            else:
                known = _chosen(rows, method, problem)
                row = measure(problem, method, known)
        except Skipped as e:
            print(f"{head}: skipped: {e}", flush=True)
            continue
        except Exception:  # one broken method must not cost the others their rows
            print(f"{head}: FAILED\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            failed += 1
            continue
        append(args.out / "results.jsonl", row)
        print(f"{head}: {line(row)}", flush=True)
    return failed


def _chosen(rows, method, problem) -> dict | None:
    """The settings that an earlier seed chose, if one did; where a step is dear, also those that
    another amount of images chose."""
    s = problem.scenario
    same = [
        r
        for r in rows
        if (r.scenario, r.method, r.kind) == (s.name, method.name, "tuning")
        and r.comparable
        and r.settings
    ]
    here = [r for r in same if r.images_per_class == s.images_per_class]
    found = here or (same if problem.world.dear else [])
    return found[0].settings if found else None


if __name__ == "__main__":
    raise SystemExit(main())
