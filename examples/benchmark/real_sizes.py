"""Time and memory of ``pnc`` on networks and images of the sizes that people have.

    python -m examples.benchmark.real_sizes --label before --root ../old-checkout
    python -m examples.benchmark.real_sizes --label after --pairs resnet50-resnet50 --only search

measures the commands of the checkout ``--root`` (default: this one) on pairs of networks, each
command a process of its own, and writes REAL_SIZES.md from all rows in REAL_SIZES.jsonl beside it,
those of each label side by side (``--report`` only writes it).  Of rows measured twice the last one
counts; ``--missing`` leaves out those that are there, so a run that was stopped goes on.

What takes seconds is given in units of *F*: the processor seconds of one plain forward pass of both
networks over the images that the command reads, by timm, in the same run with as many threads.
Decoding is not in F.  The commands:

search, closed, clone   ``pnc search``, ``pnc clone --epochs 0`` and ``pnc clone`` with its own
                        search; of the real pair the clone is tested as well.  ``--options`` are
                        added to each: ``--options='--max-macs 0.5'``
eval                    ``pnc eval`` of the target with the whole source on top, beside timm's loader
                        and a loop over the same patched model, both with all that starting takes
inject, eject, load     with a target of a billion parameters (``--pairs large``): beside ``cp``,
                        ``sync`` and ``sha256sum``, and the file's size

The real pair is looked for in ``--data``; the other networks have random weights, and images that
are drawn.  ``--limit-mb`` and ``--timeout`` end a command that takes too much, which its row says.
Networks and images are kept in ``--work`` (a few hundred megabytes, ten gigabytes with ``large``).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .real_pairs import PAIRS, Pair, Ready, prepare
from .real_table import Plain, Row, append, line, read_rows, write
from .watched import Limits, Ran, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LARGE = "large"
TIMED, FILES = ("search", "closed", "clone"), ("inject", "eject", "load")
COMMANDS = (*TIMED, "eval", *FILES)
WHOLE = "--tap input --cut input --share 1 --resolution 1 --epochs 0".split()  # both networks
SOURCE = "test_resnet"  # of the clone that is injected into the large target
LARGE_SIZE = 64  # pixels: 17 tokens, so that cloning takes no time


@dataclass(frozen=True)
class Bench:
    """One run of this script: what is measured, how, and where."""

    root: Path
    work: Path
    rows: Path
    label: str
    options: tuple[str, ...]
    threads: int
    limits: Limits
    done: frozenset[tuple]  # keys of rows that are not to be measured again

    def pnc(self, name: str, *arguments: object) -> Ran:
        command = [sys.executable, "-m", "pnc_cli", *arguments]
        return self._run(command, name, self.root, self.limits)

    def job(self, name: str, **arguments: object) -> Ran:
        """A job of plainly.py, watched."""
        module = ["-m", "examples.benchmark.plainly", name, json.dumps(arguments, default=str)]
        return self._run([sys.executable, *module], name, ROOT, Limits())

    def answer(self, name: str, **arguments: object) -> dict[str, Any]:
        """What a job of plainly.py prints."""
        ran = self.job(name, **arguments)
        if not ran.done:
            raise SystemExit(f"{name}, {ran.outcome}: {ran.said}")
        return self.printed(name)

    def shell(self, name: str, script: str, *arguments: object) -> Ran:
        return self._run(["sh", "-ec", script, "sh", *arguments], name, ROOT, Limits())

    def printed(self, name: str) -> dict[str, Any]:
        return json.loads((self.work / f"{name}.out").read_text())

    def _run(self, command: list[object], name: str, path: Path, limits: Limits) -> Ran:
        environment = {
            **os.environ,
            "PYTHONPATH": str(path),
            "OMP_NUM_THREADS": str(self.threads),
        }
        return run(command, folder=self.work, name=name, environment=environment, limits=limits)

    def wants(self, pair: str, command: str, images: int) -> bool:
        return (self.label, pair, command, images, " ".join(self.options)) not in self.done

    def record(self, pair: str, command: str, images: int, ran: Ran, **more: Any) -> None:
        row = Row(
            label=self.label,
            pair=pair,
            command=command,
            images=images,
            options=" ".join(self.options),
            threads=self.threads,
            processors=os.cpu_count() or 0,
            commit=commit_of(self.root),
            ran=ran,
            **more,
        )
        append(self.rows, row)
        write(self.rows)
        print(line(row), flush=True)


def main() -> None:
    asked = arguments()
    if not asked.report:
        asked.work.mkdir(parents=True, exist_ok=True)
        bench = Bench(
            root=asked.root.resolve(),
            work=asked.work.resolve(),
            rows=asked.rows.resolve(),
            label=asked.label,
            options=tuple(shlex.split(asked.options)),
            threads=asked.threads,
            limits=Limits(asked.limit_mb and asked.limit_mb * 10**6, asked.timeout),
            done=frozenset(r.key for r in read_rows(asked.rows)) if asked.missing else frozenset(),
        )
        for name in asked.pairs:
            if name == LARGE:
                measure_large(bench, asked)
            else:
                measure(bench, PAIRS[name], asked)
    write(asked.rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    names = [n for n, p in PAIRS.items() if not p.tiny]
    add("--label", default="after", help="of the rows: before, after")
    add("--root", type=Path, default=ROOT, help="the checkout whose pnc is measured")
    add("--pairs", nargs="+", choices=[*PAIRS, LARGE], default=names, metavar="PAIR")
    add("--only", nargs="+", choices=COMMANDS, default=COMMANDS, metavar="COMMAND")
    add("--images", nargs="+", type=int, default=[10, 100], help="a class, for search and clone")
    add("--eval-images", nargs="+", type=int, default=[1000, 10000], help="in all, for eval")
    add("--options", default="", help="added to search and clone, as one word")
    add("--parameters", type=float, default=1e9, help="of the large target")
    add("--dtype", choices=["F32", "F16", "BF16"], default="F32", help="of the large target")
    add("--threads", type=int, default=os.cpu_count())
    add("--workers", type=int, default=2, help="of timm's loader")
    add("--limit-mb", type=int, help="kill a command of pnc that holds more")
    add("--timeout", type=float, help="seconds that a command of pnc may take")
    add("--missing", action="store_true", help="leave out rows that are there")
    add("--report", action="store_true", help="measure nothing")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data")
    add("--work", type=Path, default=HERE / "cache" / "real_sizes")
    add("--rows", type=Path, default=HERE / "REAL_SIZES.jsonl", help="the table lies beside it")
    return parser.parse_args()


def measure(bench: Bench, pair: Pair, asked: argparse.Namespace) -> None:
    """The commands asked for on one pair, with each number of images."""
    if pair.real and not asked.data.is_dir():
        print(f"{pair.name}: left out, no {asked.data}", file=sys.stderr)
        return
    timed = [c for c in TIMED if c in asked.only]
    counts = [n for n in asked.images if any(bench.wants(pair.name, c, n) for c in timed)]
    evaluated = [n for n in asked.eval_images if bench.wants(pair.name, "eval", n)]
    evaluated = evaluated if "eval" in asked.only else []
    if not counts and not evaluated:
        return
    ready = prepare(pair, asked.data.resolve(), bench.work, bench.answer, max(counts, default=1))
    for each in counts:
        found = bench.answer(
            "passes",
            source=ready.source,
            target=ready.target,
            data=ready.train,
            classes=ready.classes,
            each=each,
        )
        versions, plain = found.pop("versions"), Plain(**found)
        for command in timed:
            if bench.wants(pair.name, command, each):
                ran, figures = run_command(bench, ready, command, each)
                bench.record(
                    pair.name, command, each, ran, plain=plain, found=figures, versions=versions
                )
    if evaluated:
        measure_eval(bench, ready, evaluated, asked.workers)


def run_command(
    bench: Bench, ready: Ready, command: str, each: int
) -> tuple[Ran, dict[str, float]]:
    """Runs search or clone; what it found, where it came to that."""
    out = "plan.json" if command == "search" else "clone.safetensors"
    ran = bench.pnc(
        command,
        "search" if command == "search" else "clone",
        *ready.arguments(each),
        *(["--epochs", "0"] if command == "closed" else []),
        *bench.options,
        "-o",
        out,
        "--force",
        "--json",
    )
    if not ran.done or command == "search":
        return ran, {}
    manifest = bench.printed(command)["manifest"]
    figures = {
        "epochs": manifest["method"]["epochs"],
        "added_macs": manifest["cost"]["macs"] / manifest["cost"]["target_macs"],
    }
    if ready.test is not None:
        arguments = (ready.target, "--clone", out, "--data", ready.test, "--json")
        tested = bench.pnc("test", "eval", *arguments)
        figures["tested"] = float(tested.done)
        if tested.done:
            scores = bench.printed("test")
            figures |= {n: scores[n] for n in ("average_accuracy", "locality", "images")}
    return ran, figures


def measure_eval(bench: Bench, ready: Ready, counts: list[int], workers: int) -> None:
    """``pnc eval`` beside a plain loop, on the target with the whole source on top."""
    data = bench.work / f"{ready.name}-eval"
    known = ready.drawn(bench.answer, data, max(counts))
    patched = bench.work / "whole.safetensors"
    few = ready.arguments(5)
    for command in (
        ("clone", *few, *WHOLE, "-o", "whole-clone.safetensors", "--force"),
        ("inject", ready.target, "whole-clone.safetensors", "-o", patched, "--force"),
    ):
        ran = bench.pnc("whole", *command)
        if not ran.done:
            for count in counts:
                bench.record(ready.name, "eval", count, ran, found={"prepared": 0})
            return
    for count in counts:
        each = max(1, count // known)
        limit = ("--limit-per-class", each)
        job = {"root": bench.root, "patched": patched, "data": data, "each": each}
        loop = bench.job("loop", **job, workers=workers)
        ran = bench.pnc("eval", "eval", patched, "--data", data, *limit, "--json")
        found = {"workers": workers}
        if loop.done:
            plain = bench.printed("loop")
            found |= {"loop_images": plain["images"], "loop_accuracy": plain["joint_accuracy"]}
        if ran.done:
            scores = bench.printed("eval")
            found |= {"images": scores["images"], "accuracy": scores["joint_accuracy"]}
        bench.record(ready.name, "eval", count, ran, beside=loop, found=found)


def measure_large(bench: Bench, asked: argparse.Namespace) -> None:
    """Inject, eject and load with a large target, of which a cheap clone is made first."""
    name = f"{LARGE} {asked.parameters:.2g} {asked.dtype}"
    wanted = [c for c in FILES if c in asked.only and bench.wants(name, c, 0)]
    if not wanted:
        return
    target, patched, back, copy = (
        bench.work / f"large-{n}.safetensors" for n in ("target", "patched", "back", "copy")
    )
    pair = Pair.random("small", SOURCE, SOURCE, 6, 4, LARGE_SIZE)  # its target is not used
    ready = prepare(pair, asked.data.resolve(), bench.work, bench.answer, 5)
    made = bench.answer(
        "large",
        path=target,
        parameters=int(asked.parameters),
        dtype=asked.dtype,
        labels=ready.target_labels,
        size=LARGE_SIZE,
    )
    versions = made.pop("versions")
    classes, few = ("-c", ",".join(ready.classes)), ("--limit-per-class", 5)
    data = ("--data", ready.train)
    clone = "large-clone.safetensors"
    steps = {
        "clone": ("clone", ready.source, target, *classes, *data, *few, *WHOLE, "-o", clone),
        "inject": ("inject", target, clone, "-o", patched),
        "eject": ("eject", patched, "-o", back),
    }
    script = 'cp "$1" "$2"; sync "$2"; sha256sum "$2"'
    beside = {
        "inject": bench.shell("cp", script, target, copy),
        "eject": bench.shell("cp", script, target, copy),
    }
    for step, command in steps.items():
        ran = bench.pnc(step, *command, "--force")
        found: dict[str, float] = dict(made)
        if step == "eject" and ran.done:
            found["same"] = float(bench.shell("cmp", 'cmp "$1" "$2"', target, back).done)
        if step in wanted or not ran.done:
            bench.record(
                name, step, 0, ran, beside=beside.get(step), found=found, versions=versions
            )
        if not ran.done:
            return
    if "load" in wanted:
        ran = bench.job("load", root=bench.root, path=patched)
        found = {**made, **(bench.printed("load") if ran.done else {})}
        bench.record(name, "load", 0, ran, found=found, versions=versions)


def commit_of(root: Path) -> str:
    """The commit of a checkout, marked where it was changed; empty where there is none."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
