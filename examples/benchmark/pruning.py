"""Local(.) beside magnitude and chance, at equal size: what is left of the branch's accuracy.

    python -m examples.benchmark.pruning cifar10 cifar10-convnext digits

writes PRUNING.md beside this file.  The branch is the whole source from the image on, so nothing
but the choice of channels differs; nothing is trained after.  Choices are made on 100 training
images a clone class, figures are of test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnc_cli.channels.groups import Chosen, Group, weight_cells
from pnc_cli.channels.localised import localised_features
from pnc_cli.channels.prune import masked, rank_channels, select
from pnc_cli.data import batches, choose, load_images, normalize, open_images
from pnc_cli.network.graph import trace
from pnc_cli.network.head import classifier_names, find_head
from pnc_cli.network.load import load_network
from pnc_cli.network.part import Module, module_after

from .__main__ import DATA, HERE
from .pool import Pool
from .prepare import prepare
from .scenario import Scenario, load

REMOVED = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
TESTED = 250  # test images of a class
TOO_LARGE = 0.02  # share by which a choice may miss its size; beyond it there is no figure

Measure = Callable[[Chosen], float]  # the share that is left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=["cifar10", "cifar10-convnext", "digits"])
    parser.add_argument("--data", type=Path, default=Path(DATA))
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", type=Path, default=HERE / "PRUNING.md")
    args = parser.parse_args()
    sections = [INTRODUCTION]
    for name in args.scenarios:
        scenario = load(name, args.data, args.cache)
        prepare(scenario, args.cache)
        runs = [dict(rows_of(scenario, seed)) for seed in range(args.seeds)]
        sections.append(table(scenario.title, runs))
        args.o.write_text("\n".join(sections), encoding="utf-8")


def rows_of(scenario: Scenario, seed: int) -> Iterator[tuple[tuple[str, str], list[float]]]:
    """((what is counted, row), branch accuracy at each size)."""
    module, features, images, label = setting(scenario, seed)
    ranked = rank_channels(module, features)
    groups = [r.group for r in ranked]
    rng = np.random.default_rng(seed)
    chance = [rng.random(g.size) for g in groups]
    weight = [magnitude(module, g) for g in groups]
    inside = [len(writers(module, g)) == 1 for g in groups]  # not what residual blocks add up
    whole = accuracy(module, [], images, label)

    def inner(scores: list[np.ndarray]) -> tuple[list[Group], list[np.ndarray]]:
        return list(compress(groups, inside)), list(compress(scores, inside))

    for counted, cells in (
        ("parameters", {}),
        ("parameters and MACs, both", weight_cells(module.part, features[:1])),
    ):
        left = size_of(module, cells)
        ours = [select(module, ranked, 1 - r, cells) for r in REMOVED]
        rows = {
            "local criterion": ours,
            "magnitude, of all layers": [over_all(groups, weight, 1 - r, left) for r in REMOVED],
            "magnitude, inside blocks": [of_each(*inner(weight), 1 - r, left) for r in REMOVED],
            "random, inside blocks": [of_each(*inner(chance), 1 - r, left) for r in REMOVED],
            "magnitude, as many of each layer as ours": [as_many(weight, o) for o in ours],
            "random, as many of each layer as ours": [as_many(chance, o) for o in ours],
        }
        yield (counted, "all channels"), [whole] * len(REMOVED)
        for row, choices in rows.items():
            yield (
                (counted, row),
                [
                    accuracy(module, c, images, label) if left(c) <= 1 - r + TOO_LARGE else np.nan
                    for r, c in zip(REMOVED, choices)
                ],
            )


def setting(scenario: Scenario, seed: int) -> tuple[Module, Tensor, Tensor, Tensor]:
    """The whole source as a module, its localised images, test images and their labels."""
    source = scenario.sources[0]
    network = load_network(Path(source.checkpoint))
    how, classes = network.ref.preprocessing, [c.partition("=")[0] for c in source.classes]
    tr = trace(network.model, how.input_size)
    head = find_head(tr, classifier_names(network.model))
    columns = [network.labels.index(c) for c in classes]
    module, _ = module_after(tr, head, tr.positions[0], columns)
    train, test = (
        Pool([open_images(p) for p in s]).source for s in (scenario.train, scenario.test)
    )
    few = load_images(train, choose(train, classes, scenario.images_per_class, seed), [how])
    many = load_images(test, choose(test, classes, TESTED, 0), [how])
    label = torch.tensor([classes.index(n) for n in many.labels])
    features = localised_features(network, few.views[0], tr.positions[0], seed)
    return module, features, normalize(many.views[0], how), label


def size_of(module: Module, cells: dict[str, int]) -> Measure:
    """How much of the module a choice leaves, as ``select`` counts it: the larger of its shares of
    the parameters and of the MACs (of the parameters alone without ``cells``)."""
    shapes = {n: list(t.shape) for n, t in module.part.state_dict().items()}

    def amounts(sizes: dict[str, list[int]]) -> np.ndarray:
        numbers = {n: float(np.prod(s)) for n, s in sizes.items()}
        macs = sum(v * cells.get(n, 0) for n, v in numbers.items())
        return np.array([sum(numbers.values()), macs])

    whole = np.maximum(amounts(shapes), 1.0)

    def left(chosen: Chosen) -> float:
        sizes = {n: list(s) for n, s in shapes.items()}
        for group, stay in chosen:
            for (tensor, axis), indices in group.sites.items():
                sizes[tensor][axis] -= int((~stay).sum()) * indices.shape[1]
        return (amounts(sizes) / whole).max()

    return left


def magnitude(module: Module, group: Group) -> np.ndarray:
    """L2 norm of the weights that write each channel (n,), the mean of a layer being 1."""
    squares = np.zeros(group.size)
    for name, weight in writers(module, group).items():
        rows = weight.double().flatten(1).square().sum(1).numpy()
        squares += rows[group.sites[name, 0]].sum(1)
    norms = np.sqrt(squares)
    return norms / max(norms.mean(), 1e-12)


def writers(module: Module, group: Group) -> dict[str, Tensor]:
    """The weights of layers that write the channels of ``group``."""
    state = module.part.state_dict()
    return {t: state[t] for t, axis in group.sites if axis == 0 and state[t].ndim > 1}


def of_each(groups: list[Group], scores: list[np.ndarray], share: float, left: Measure) -> Chosen:
    """The same share of every group's channels, those of the best scores."""

    def choice(kept: float) -> Chosen:
        return [
            (g, s.argsort().argsort() >= min(round((1 - kept) * g.size), g.size - 1))
            for g, s in zip(groups, scores)
        ]

    return _bisect(choice, share, left)


def over_all(groups: list[Group], scores: list[np.ndarray], share: float, left: Measure) -> Chosen:
    """The channels of the best scores, of whatever group; of each group one."""
    every = np.sort(np.concatenate(scores))

    def choice(kept: float) -> Chosen:
        bar = every[min(int((1 - kept) * len(every)), len(every) - 1)]
        return [(g, (s >= bar) | (s == s.max())) for g, s in zip(groups, scores)]

    return _bisect(choice, share, left)


def as_many(scores: list[np.ndarray], chosen: Chosen) -> Chosen:
    """As many of each group as in ``chosen``, those of the best scores."""
    return [(g, s.argsort().argsort() >= (~stay).sum()) for s, (g, stay) in zip(scores, chosen)]


def _bisect(choice: Callable[[float], Chosen], share: float, left: Measure) -> Chosen:
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if left(choice(middle)) > share else (middle, high)
    return choice(low)


@torch.no_grad()
def accuracy(module: Module, chosen: Chosen, images: Tensor, label: Tensor) -> float:
    with masked(module.part, chosen):
        z = torch.cat([module(images[p].clone())[1] for p in batches(len(images), 250)])
    return (z.argmax(1) == label).double().mean().item()


INTRODUCTION = f"""# Local(.) beside magnitude and chance

Accuracy of the branch among the clone classes, on test images ({TESTED} a class), when a share of
the source is removed and nothing is trained after: mean and spread over three draws of the 100 images
a class that channels are chosen on. Made by `python -m examples.benchmark.pruning`.

The *local criterion* is pnc's, layers' shares included. Magnitude is the L2 norm of the weights
that write a channel: *of all layers*, relative to the layer's mean, the least first (Torch-Pruning's
default). *Inside blocks* means the same share of each layer, but of what residual blocks add up
nothing, which is kinder than to remove of it too (a dash where so much cannot go). The last two rows take over the layers' shares that the
local criterion found, so they lack only its choice within a layer.
"""


def table(title: str, runs: list[dict[tuple[str, str], list[float]]]) -> str:
    lines = [f"\n## {title}"]
    last = None
    for counted, row in runs[0]:
        if counted != last:
            lines += [
                "",
                f"| removed of {counted} | " + " | ".join(map(str, REMOVED)) + " |",
                "|---" * (len(REMOVED) + 1) + "|",
            ]
            last = counted
        figures = np.array([run[counted, row] for run in runs])
        cells = [
            f"{m:.3f} ± {s:.3f}" if m == m else "-" for m, s in zip(figures.mean(0), figures.std(0))
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
