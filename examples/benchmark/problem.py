"""What every method is given: two or more networks, a few images, and the test images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pnc_cli.branch.classes import CloneTarget, parse_classes
from pnc_cli.data import ImageSource, choose, framed_like, load_images, open_images
from pnc_cli.network.features import Answers, answers_of
from pnc_cli.network.graph import trace
from pnc_cli.network.load import Network, load_network

from .pool import Pool
from .prepare import prepare, resized
from .scenario import Scenario
from .training import FEWEST, affordable, budget

EVERY = 5  # of the few images, one in so many of each class is for choosing the settings


@dataclass(frozen=True)
class Split:
    """N images: as uint8 tensors for the target and for each source, and their labels (N,).

    A label is an index among [the target's classes, the clone classes].
    """

    target: Tensor
    sources: list[Tensor]
    label: Tensor


@dataclass
class Problem:
    """A scenario with one seed.  Images are decoded when first asked for."""

    scenario: Scenario
    seed: int
    world: World
    cache: dict = field(default_factory=dict)  # what rows of one seed share, such as a search

    @property
    def target(self) -> Network:
        return self.world.target

    @property
    def old(self) -> int:
        return len(self.target.labels)

    @property
    def names(self) -> list[str]:
        return [*self.target.labels, *(c.name for group in self.world.classes for c in group)]

    @property
    def new(self) -> int:
        return len(self.names) - self.old

    @property
    def test(self) -> Split:
        return self.world.test

    @cached_property
    def few(self) -> Split:
        """The images that methods may learn from, the same for all."""
        return self.world.images(self.world.train, self.scenario.images_per_class, self.seed)

    @cached_property
    def fold(self) -> Tensor:
        """(N,) the fifth, 0 to 4, of its class that each of the few images is in."""
        fold = torch.zeros(len(self.few.label), dtype=torch.long)
        for c in self.few.label.unique():
            of_class = (self.few.label == c).nonzero()[:, 0]
            fold[of_class] = torch.arange(len(of_class)) % EVERY
        return fold

    @property
    def held_out(self) -> Tensor:
        """(N,) marks the few images that settings are chosen on; what is shipped learns from all."""
        return self.fold == EVERY - 1

    @cached_property
    def few_features(self) -> Answers:
        """The target's pre-logits (N, D) and logits (N, old) of the few images."""
        return answers_of(self.target, self.few.target)

    @property
    def test_logits(self) -> Tensor:
        """The target's logits (N, old) of the test images."""
        return self.world.test_logits

    def warm(self) -> None:
        """Reads the images and runs the target on them now."""
        _ = self.few, self.few_features, self.test_logits

    def digest(self, *, sources: bool) -> str:
        """Of all that a row's figures depend on, but for the method; rows that do not look at the
        sources are the same whichever they are."""
        s, w = self.scenario, self.world
        parts = {
            "target": self.target.ref.file_sha256,
            "names": self.names,
            "seed": self.seed,
            "images": s.images_per_class,
            "test_images": s.test_images,
            "flip": s.flip,
            "steps": w.steps,
            "data": [Path(p).parts[-2:] for p in (*s.train, *s.test)],
        }
        if sources:
            parts["sources"] = [
                [n.ref.file_sha256, list(n.input_size), [asdict(c) for c in group]]
                for n, group in zip(w.sources, w.classes)
            ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class World:
    """What all seeds of a scenario share."""

    def __init__(self, scenario: Scenario, cache: Path) -> None:
        prepare(scenario, cache)
        self.scenario = scenario
        self.target = load_network(Path(scenario.target))
        self.sources = [load_network(resized(s, cache)) for s in scenario.sources]
        self.features: dict = {}  # of the test images, for all seeds
        self.classes: list[list[CloneTarget]] = [
            parse_classes(s.classes, network, self.target)
            for s, network in zip(scenario.sources, self.sources)
        ]

    @cached_property
    def target_macs(self) -> int:
        return sum(trace(self.target.model, self.target.input_size).macs.values())

    @property
    def steps(self) -> int:
        """The most that a rival may take (README.md, "The rivals' budget")."""
        return self.scenario.steps or budget(self.target_macs, *self.target.input_size[1:])

    @property
    def dear(self) -> bool:
        """Whether the fewest steps are more work than the budget pays for: then the first amount
        of images chooses the rivals' settings for the others."""
        return affordable(self.target_macs, *self.target.input_size[1:]) < FEWEST

    @cached_property
    def train(self) -> ImageSource:
        return Pool([open_images(p) for p in self.scenario.train]).source

    @cached_property
    def test(self) -> Split:
        classes = len(self.target.labels) + sum(map(len, self.classes))
        source = Pool([open_images(p) for p in self.scenario.test]).source
        return self.images(source, max(1, self.scenario.test_images // classes), seed=0)

    @cached_property
    def test_logits(self) -> Tensor:
        return answers_of(self.target, self.test.target).logits

    def images(self, source: ImageSource, limit: int | None, seed: int) -> Split:
        """At most ``limit`` images of each class, drawn as ``pnc clone --limit`` draws them."""
        folders = {label: i for i, label in enumerate(self.target.labels)}
        for c in (c for group in self.classes for c in group):
            folders[c.name if c.name in source.by_class else c.source_name] = len(folders)
        frame = self.target.ref.preprocessing
        views = [frame, *(framed_like(n.ref.preprocessing, frame) for n in self.sources)]
        images = load_images(source, choose(source, list(folders), limit, seed), views)
        label = torch.tensor([folders[n] for n in images.labels])
        return Split(images.views[0], images.views[1:], label)
