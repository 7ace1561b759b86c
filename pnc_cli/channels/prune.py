"""Local(.): the share of the source's channels that the clone classes need.

Channels are judged on localised samples: clone images, and neighbours of them with random patches
masked.  What is missing without a set of channels is counted in two ways: the energy that the
layers which read it are no longer given, and how far the answers for the clone classes move
(``contributions.py``); of either only what the channels that stay cannot tell, as a pruned module's
layers read mixtures of those (``restored.py``).  Channels are removed step by step, each time those
that leave the least missing.  How much a group of channels may lose is settled by its sensitivity:
how far the answers really move when half of the group is only told from the other half.  Weights
are copied, never trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import batches, spread
from ..manifest import Kept, ModuleTensor
from ..network.part import Module, resize, sharing
from .contributions import (
    ANSWERS,
    energy_of,
    log_answers,
    moments_of,
    movements,
    read_and_used,
)
from .flow import Site
from .groups import Chosen, Group, kept_indices, prunable_groups, shrink_graph
from .layers import Watcher, layer_of, watching
from .restored import elimination_order, restored

STEPS = 32  # a group loses its channels in so many steps
FLOOR = 1 / 16  # share of a group's channels that always stays
FEWEST = 24  # samples that say anything at all
SAMPLES = 256  # localised samples that answers are looked at on
MASKED = 96  # of them, those that each group is masked on, half of it
CURVED = 3.0  # weight of the answers' movement beside the energy's
TOLERANCE = 1e-3  # between the masked dense module and the pruned one, relative


Shapes = dict[str, list[int]]  # of the module's tensors, as channels go


@dataclass(frozen=True)
class Ranked:
    """A group with the order in which its channels go, and what is missing after each step."""

    group: Group
    order: np.ndarray  # (n,) first to go first
    missing: np.ndarray  # (n + 1,) what is missing after 0..n removals
    sensitivity: float  # damage to the answers per unit missing


def rank_channels(module: Module, features: Tensor) -> list[Ranked]:
    """Ranks the prunable channels of ``module`` on localised ``features`` (N, ...) at its cut."""
    return rank_groups(module, features, prunable_groups(module.part, features[:2]))


@dataclass(frozen=True)
class Work:
    """What ranking may take: the module run on so many samples, so many together."""

    runs: float = math.inf
    together: int = 64
    with_gradients: int = 32  # of them there and back

    def looked_at(self) -> int:
        """Samples that the energies are taken on."""
        return int(min(max(FEWEST, self.runs / 4), 1 << 20))

    def samples(self) -> int:
        """That answers are looked at on, each there once and back for up to ``ANSWERS`` classes."""
        return max(FEWEST, int(min(SAMPLES, self.runs / 2 / (1 + 2 * ANSWERS))))

    def masked(self, groups: int) -> int:
        """Of them, with half of a group masked, for each group."""
        return max(FEWEST // 2, int(min(MASKED, self.runs / 2 / max(groups, 1))))


def rank_groups(
    module: Module, features: Tensor, groups: list[Group], work: Work = Work()
) -> list[Ranked]:
    """Ranks the channels of some of the ``groups`` of ``module``, on ``features`` (N, ...) at its cut."""
    if not groups:
        return []
    some = features[spread(len(features), work.samples())]
    few = some[spread(len(some), work.masked(len(groups)))]
    answers = _answers(module, few, work.together)
    looked_at = features[spread(len(features), work.looked_at())]
    moments = moments_of(module, looked_at, groups, work.together)
    moved = movements(module, some, groups, work.with_gradients)
    ranked = []
    for g, movement in zip(groups, map(_unit_trace, moved)):
        if all(g.sites[r, 1].shape[1] == 1 for r in g.readers):
            read, used = read_and_used(module.part, moments, g)
            order, missing = elimination_order(read, used, movement)
        else:
            energy = _unit_trace(energy_of(module.part, moments, g))
            order, missing = greedy_order(energy + CURVED * movement)
        half = np.ones(g.size, dtype=bool)
        half[order[: g.size // 2]] = False
        with restored(module.part, g, half, moments):
            damage = _divergence(answers, _answers(module, few, work.together))
        ranked.append(Ranked(g, order, missing, damage / max(missing[g.size // 2], 1e-9)))
    return ranked


def greedy_order(energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of removal for a Gram matrix (n, n), and the energy missing after each removal."""
    n = len(energy)
    cross = np.zeros(n)  # sum of energy[j, removed]
    left = np.ones(n, dtype=bool)
    order, missing, total = np.zeros(n, dtype=int), np.zeros(n + 1), 0.0
    diagonal = energy.diagonal()
    for k in range(n):
        gain = np.where(left, diagonal + 2 * cross, np.inf)
        j = int(gain.argmin())
        total += gain[j]
        order[k], left[j] = j, False
        missing[k + 1] = max(total, missing[k])  # what cancels now may not cancel later
        cross += energy[:, j]
    return order, missing


def select(
    module: Module,
    ranked: list[Ranked],
    share: float,
    cells: dict[str, int],
    of_parameters: float | None = None,
) -> list[tuple[Group, np.ndarray]]:
    """Channels to keep, as (group, (n,) bool), so that at most ``share`` of the module stays: of
    its parameters and of its MACs (``cells``: see ``weight_cells``; of its parameters alone if
    there are none).  ``of_parameters`` is the share of the parameters, where that is another.

    Step by step the group loses channels whose removal costs least for what it saves of that of
    the two which is over.  Some of every group always stays, so more than ``share`` may be left.
    """
    shapes = {n: list(t.shape) for n, t in module.part.state_dict().items()}
    removed = [0] * len(ranked)
    shares = (share if of_parameters is None else of_parameters, share)
    while costs := _costs(module, shapes, cells, shares):
        best = _cheapest(ranked, removed, shapes, costs)
        if best is None:
            break
        group = ranked[best].group
        removed[best] += _step(group)
        for (tensor, axis), indices in group.sites.items():
            shapes[tensor][axis] -= _step(group) * indices.shape[1]
    kept = []
    for r, count in zip(ranked, removed):
        stay = np.ones(r.group.size, dtype=bool)
        stay[r.order[:count]] = False
        kept.append((r.group, stay))
    return kept


def _step(group: Group) -> int:
    """How many channels a group loses at a time."""
    return max(1, group.size // STEPS)


def _cheapest(
    ranked: list[Ranked], removed: list[int], shapes: Shapes, costs: dict[str, float]
) -> int | None:
    """Which group's next step does least damage for what it saves; None if none can lose more."""
    best, best_price = None, np.inf
    for i, r in enumerate(ranked):
        gone, step = removed[i], _step(r.group)
        if gone + step > r.group.size * (1 - FLOOR):
            continue
        damage = r.sensitivity * (r.missing[gone + step] - r.missing[gone])
        price = damage / _saved(shapes, costs, r.group, step)
        if price < best_price:
            best, best_price = i, price
    return best


def _saved(shapes: Shapes, costs: dict[str, float], group: Group, step: int) -> float:
    """The share of the module that goes with ``step`` channels of ``group``."""
    saved = 0.0
    for (tensor, axis), indices in group.sites.items():
        shape = shapes[tensor]
        saved += costs[tensor] * math.prod(shape) * step * indices.shape[1] / max(shape[axis], 1)
    return max(saved, 1e-12)


def _costs(
    module: Module, shapes: Shapes, cells: dict[str, int], shares: tuple[float, float]
) -> dict[str, float]:
    """What a number of each tensor costs, as a share of the whole module: of its parameters and
    of its MACs, each weighed by how far the shrunken ``shapes`` are above its one of the ``shares``.

    Empty when they are above neither.
    """
    whole = _numbers({n: t.shape for n, t in module.part.state_dict().items()})
    now = _numbers(shapes)
    parameters, work = sum(whole.values()), max(_macs(whole, cells), 1.0)
    over_parameters = sum(now.values()) / parameters - shares[0]
    over_macs = _macs(now, cells) / work - shares[1]
    over = np.maximum([over_parameters, over_macs], 0.0)
    if not over.any():
        return {}
    of_parameters, of_macs = over / over.sum()
    return {n: of_parameters / parameters + of_macs * cells.get(n, 0) / work for n in shapes}


def _numbers(shapes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """How many numbers each tensor holds."""
    return {n: float(math.prod(shape)) for n, shape in shapes.items()}


def _macs(numbers: dict[str, float], cells: dict[str, int]) -> float:
    """MACs per image of tensors of so many ``numbers``."""
    return sum(count * cells.get(n, 0) for n, count in numbers.items())


def prune(
    module: Module,
    slices: dict[str, ModuleTensor],
    chosen: list[tuple[Group, np.ndarray]],
    example: Tensor,
) -> tuple[Module, dict[str, ModuleTensor]]:
    """A copy of ``module`` without the channels that are not chosen, and how the source's tensors
    are sliced for it (``slices``: how they are sliced already).

    Every removal is checked against the masked dense module on ``example``; a group that does not
    agree is left whole.
    """
    chosen = [(g, stay) for g, stay in chosen if not stay.all()]
    pruned, kept = _remove(module, slices, chosen)
    if _agrees(module, pruned, chosen, example):
        return pruned, kept
    sound = []
    for one in chosen:
        try:
            if _agrees(module, _remove(module, slices, [one])[0], [one], example):
                sound.append(one)
        except RuntimeError:  # shapes do not fit any more
            continue
    return _remove(module, slices, sound)


@contextmanager
def masked(part: nn.Module, chosen: Chosen) -> Iterator[None]:
    """Within it, a module's readers see zeros for the channels that are not kept."""
    masks = [
        (reader, _mask(part, group, stay, reader))
        for group, stay in chosen
        for reader in group.readers
    ]
    with watching(part, masks):
        yield


def _mask(part: nn.Module, group: Group, stay: np.ndarray, reader: str) -> Watcher:
    """Sets what ``reader`` reads to zero for the channels of ``group`` that do not stay."""
    weight = layer_of(part, reader).weight
    mask = torch.ones(weight.shape[1])
    mask[torch.from_numpy(group.sites[reader, 1][~stay].ravel())] = 0.0
    mask = mask.reshape(-1, *[1] * (weight.ndim - 2))  # (C, 1, 1) for convolutions
    mask = mask.to(weight.device)
    return lambda x: x * mask


def _remove(
    module: Module, slices: Mapping[str, ModuleTensor], chosen: Chosen
) -> tuple[Module, dict[str, ModuleTensor]]:
    """:func:`prune`, unchecked."""
    pruned = sharing(module)
    state = pruned.part.state_dict()
    lengths = {(n, axis): size for n, t in state.items() for axis, size in enumerate(t.shape)}
    cuts: dict[Site, np.ndarray] = {}
    for group, stay in chosen:
        for site, indices in kept_indices(group, stay, lengths).items():
            before = cuts.get(site)
            cuts[site] = indices if before is None else np.intersect1d(before, indices)
    kept = dict(slices)
    for (name, axis), indices in cuts.items():
        tensor = state[name]
        state[name] = tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
        done = {k.axis: k.indices for k in kept[name].kept}
        earlier = done.get(axis)
        done[axis] = [earlier[i] for i in indices] if earlier is not None else indices.tolist()
        kept[name] = ModuleTensor(kept=[Kept(axis=a, indices=done[a]) for a in sorted(done)])
    resize(pruned.part, state)
    shrink_graph(pruned.part, chosen)
    return pruned, kept


@torch.no_grad()
def _agrees(module: Module, pruned: Module, chosen: Chosen, example: Tensor) -> bool:
    """Whether the pruned module answers as the dense one does with its channels masked."""
    try:
        found = torch.cat(pruned(example.clone()), dim=1)
    except RuntimeError:
        return False
    with masked(module.part, chosen):
        expected = torch.cat(module(example.clone()), dim=1)
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))


def _unit_trace(gram: np.ndarray) -> np.ndarray:
    """Scaled, so that two kinds of Gram matrices can be added."""
    return gram / max(float(np.trace(gram)), 1e-30)


@torch.no_grad()
def _answers(module: Module, features: Tensor, together: int) -> Tensor:
    """Log-probabilities (N, K) of the clone classes."""
    logits = [module(features[p].clone())[1] for p in batches(len(features), together)]
    return log_answers(torch.cat(logits))


def _divergence(expected: Tensor, found: Tensor) -> float:
    """Kullback-Leibler, in nats, of log-probabilities (N, K)."""
    return F.kl_div(found, expected, log_target=True, reduction="batchmean").item()
