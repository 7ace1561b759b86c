"""One row of the results: a method, made with one seed and measured on the test images."""

from __future__ import annotations

import ast
import ctypes
import gc
import hashlib
import os
import resource
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import pnc_cli
from pnc_cli.evaluation import from_logits

from .clock import Clock
from .methods.base import Method, Settings
from .problem import Problem

VERSION = 2  # of the harness: raise it when figures change, and rows are made anew
# 1: tuning for ten epochs; 2: for as many steps as README.md says, linear probes cross-validated
COMPARABLE = {"tuning": 2}  # rows of this kind are shown from this version on
SOURCE = Path(pnc_cli.__file__).parent
NUMERIC = [
    *(f"{room}/*.py" for room in ("network", "channels", "branch", "placement")),
    *("data.py", "limits.py"),
]


@dataclass(frozen=True)
class Row:
    """Shares are 0 to 1, None where they have no meaning; costs are beside the target's own."""

    scenario: str
    images_per_class: int
    method: str
    kind: str  # reference, both, tuning, pnc or bound
    seed: int
    key: str  # of everything the figures depend on
    settings: Settings
    original_accuracy: float | None
    clone_accuracy: float
    average_accuracy: float | None  # mean of the two
    joint_accuracy: float | None
    target_accuracy: float  # the target alone, original classes
    locality: float | None  # original-class images whose predicted class is the target's
    right_to_wrong: float | None  # of original-class images
    calibration_error: float | None
    forgetting: float | None  # lost on original classes when the new logits alone are dropped
    forgetting_undone: float | None  # lost when the change is undone
    added_parameters: int
    added_macs: int
    target_parameters: int
    target_macs: int
    latency: float | None  # per image, times the target's
    bytes_shipped: int
    bytes_to_undo: int  # to be kept besides the target's file and what was shipped
    seconds: float  # to make it, settings known
    cpu_seconds: float  # the same in processor time, which other work here does not change
    tuning_seconds: float  # to choose the settings (0: chosen with another seed)
    peak_megabytes: float  # above the images and networks that were loaded before
    threads: int
    version: int = 1  # of the harness that made it

    @property
    def comparable(self) -> bool:
        """Whether it may stand beside rows that are made now."""
        return self.version >= COMPARABLE.get(self.kind, 1)


def key_of(problem: Problem, method: Method) -> str:
    """Rows with equal keys have equal figures."""
    parts = [problem.digest(sources=method.uses_sources), method.name, str(VERSION)]
    parts += [_code()] if method.uses_pnc else []
    if method.kind == "pnc":
        parts += [str(asdict(v)) for v in problem.scenario.pnc if v.label == method.name]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """A digest of pnc's numeric code, comments and layout aside."""
    h = hashlib.sha256()
    for path in sorted(path for name in NUMERIC for path in SOURCE.glob(name)):
        h.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return h.hexdigest()


def measure(problem: Problem, method: Method, known: Settings | None) -> Row:
    """Makes ``method`` and measures it.  Raises ``Skipped`` where it does not apply."""
    problem.warm()  # not on the row's clock
    with Peak() as peak:
        start = Clock()
        made = method.make(problem, known)
        took = start.passed() - made.tuning
    z = made.predict(problem.test)
    speed = latency(problem.target.model, made.run, problem.target.input_size) if made.run else None
    undone = made.undo() if made.undo else None  # last: it may take the model apart
    network = problem.target
    return Row(
        scenario=problem.scenario.name,
        images_per_class=problem.scenario.images_per_class,
        method=method.name,
        kind=method.kind,
        seed=problem.seed,
        key=key_of(problem, method),
        settings=made.settings,
        **figures(problem, z, undone),
        added_parameters=made.added_parameters,
        added_macs=made.added_macs,
        target_parameters=network.parameters,
        target_macs=problem.world.target_macs,
        latency=speed,
        bytes_shipped=made.bytes_shipped,
        bytes_to_undo=made.bytes_to_undo,
        seconds=round((took + made.shared).wall, 3),
        cpu_seconds=round((took + made.shared).cpu, 3),
        tuning_seconds=round(made.tuning.wall, 3),
        peak_megabytes=round(peak.megabytes, 1),
        threads=torch.get_num_threads(),
        version=VERSION,
    )


def figures(problem: Problem, z: Tensor, undone: Tensor | None) -> dict[str, float | None]:
    """What the logits ``z`` (N, old + new) of the test images are worth, beside the target's."""
    label, old, before = problem.test.label, problem.old, problem.test_logits
    is_old = label < old
    alone = before.argmax(1)
    target_accuracy = share((alone == label)[is_old])
    answered = z.isfinite().any(1)
    if not bool(answered[is_old].any()):  # a source: it is not asked about original classes
        clone = share((answered & (z.argmax(1) == label))[~is_old])
        return dict.fromkeys(
            (
                "original_accuracy",
                "average_accuracy",
                "joint_accuracy",
                "locality",
                "right_to_wrong",
                "calibration_error",
                "forgetting",
                "forgetting_undone",
            )
        ) | {"clone_accuracy": clone, "target_accuracy": target_accuracy}
    e = from_logits(z, label, old, problem.names)
    predicted = z.argmax(1)

    def lost(now):
        return round(target_accuracy - share((now.argmax(1) == label)[is_old]), 6)

    return {
        "original_accuracy": e.original_accuracy,
        "clone_accuracy": e.clone_accuracy,
        "average_accuracy": e.average_accuracy,
        "joint_accuracy": e.joint_accuracy,
        "target_accuracy": target_accuracy,
        "locality": share((predicted == alone)[is_old]),
        "right_to_wrong": share(((alone == label) & (predicted != label))[is_old]),
        "calibration_error": e.calibration_error,
        "forgetting": lost(z[:, :old]),
        "forgetting_undone": None if undone is None else lost(undone),
    }


@torch.no_grad()
def latency(
    target: nn.Module, model: nn.Module, input_size, batch: int = 32, rounds: int = 9
) -> float:
    """Time of ``model`` over that of ``target``, medians of forward passes in turn."""
    x = torch.zeros(batch, *input_size)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for runs, network in zip(times, (target, model)):
            start = time.perf_counter()
            network(x)
            runs.append(time.perf_counter() - start)
    medians = [sorted(runs[1:])[rounds // 2] for runs in times]
    return round(medians[1] / medians[0], 3)


def share(hits: Tensor) -> float:
    return round(hits.double().mean().item(), 6)


class Peak:
    """The most memory in use inside the block, above what was in use before it.

    Linux lets a process reset its own high-water mark; elsewhere the mark since the start is used.
    """

    def __enter__(self) -> Peak:
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)  # so that what is free is not counted as in use
        except (OSError, AttributeError):
            pass
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
        self.before = self._mark()
        return self

    def __exit__(self, *exc) -> None:
        self.megabytes = max(0.0, self._mark() - self.before)

    @staticmethod
    def _mark() -> float:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        except (OSError, StopIteration):
            unit = 1 if os.uname().sysname == "Darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
