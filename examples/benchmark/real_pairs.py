"""The pairs of networks that real_sizes.py measures: one with real weights, the others random."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONED, ORIGINAL = 5, 10  # classes that there are images of, in a random pair
REAL_CLASSES = ("n03255030", "n03404251", "n03584254", "n03662601", "n03770439")
SEEN = 10  # images a class that are drawn at least: statistics of random networks come from some

Answer = Callable[..., dict[str, Any]]  # runs a job of plainly.py


@dataclass(frozen=True)
class Net:
    """A network: of a checkpoint in the data folder, or of an architecture with random weights."""

    name: str
    classes: int = 0


@dataclass(frozen=True)
class Pair:
    name: str
    source: Net
    target: Net
    size: int = 224
    real: bool = False
    tiny: bool = False  # for tests: measured only where it is asked for

    @staticmethod
    def random(
        name: str, source: str, target: str, known: int, old: int, size: int = 224, **more: bool
    ) -> Pair:
        return Pair(name, Net(source, known), Net(target, old), size, **more)


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            "imagenet",
            Net("imagenet24_source_efficientnet_lite0"),
            Net("imagenet20_target_mobilenetv2"),
            real=True,
        ),
        Pair.random("resnet50-resnet50", "resnet50", "resnet50", 100, 1000),
        Pair.random("vit_s-resnet50", "vit_small_patch16_224", "resnet50", 100, 1000),
        Pair.random("convnext_t-vit_s", "convnext_tiny", "vit_small_patch16_224", 100, 1000),
        Pair.random(
            "swin_t-efficientnet_b0", "swin_tiny_patch4_window7_224", "efficientnet_b0", 100, 1000
        ),
        Pair.random("tiny", "test_resnet", "test_efficientnet", 8, 12, 64, tiny=True),
    )
}


@dataclass(frozen=True)
class Ready:
    """A pair as files."""

    name: str
    source: Path
    target: Path
    train: Path
    test: Path | None
    classes: tuple[str, ...]  # to be cloned
    target_labels: list[str]
    size: int

    def arguments(self, each: int) -> tuple[object, ...]:
        """What search and clone are told, for ``each`` images of a class."""
        images = ("--data", self.train, "--limit-per-class", each)
        return (self.source, self.target, "-c", ",".join(self.classes), *images)

    def drawn(self, answer: Answer, folder: Path, count: int) -> int:
        """Draws images of the clone classes and some of the target's, ``count`` in all; of how many
        classes they are."""
        labels = [*self.classes, *self.target_labels[:ORIGINAL]]
        each = max(1, count // len(labels))
        answer("images", folder=folder, labels=labels, each=each, size=self.size)
        return len(labels)


def prepare(pair: Pair, data: Path, work: Path, answer: Answer, each: int) -> Ready:
    """Finds a pair's files, or makes them in ``work``: with ``each`` images a class, at least."""
    if pair.real:
        source, target = (
            data / "checkpoints" / f"{net.name}.safetensors" for net in (pair.source, pair.target)
        )
        train, test = (data / "tiny_imagenet_40" / f"{part}.tar" for part in ("train", "test"))
        labels = json.loads(target.with_suffix(".json").read_text())["label_names"]
        return Ready(pair.name, source, target, train, test, REAL_CLASSES, labels, pair.size)
    known = [f"new{k:03d}" for k in range(pair.source.classes)]
    old = [f"old{k:03d}" for k in range(pair.target.classes)]
    folder = work / f"{pair.name}-train"
    source, target = (work / f"{pair.name}-{part}.safetensors" for part in ("source", "target"))
    files = (source, target)
    ready = Ready(pair.name, *files, folder, None, tuple(known[:CLONED]), old, pair.size)
    drawn: dict[str, Any] = {
        "folder": folder,
        "labels": [*known[:CLONED], *old[:ORIGINAL]],
        "each": max(each, SEEN),
        "size": pair.size,
    }
    networks = [
        {
            "path": path,
            "architecture": net.name,
            "labels": labels,
            "args": {},
            "size": pair.size,
            "folder": folder,
            "seed": seed,
        }
        for seed, (path, net, labels) in enumerate(
            zip(files, (pair.source, pair.target), (known, old))
        )
        if not path.with_suffix(".json").exists()  # it is written last
    ]
    last = [folder / label / f"{drawn['each'] - 1:05d}.jpg" for label in drawn["labels"]]
    if networks or not all(path.exists() for path in last):
        answer("pair", drawn=drawn, networks=networks)
    return ready
