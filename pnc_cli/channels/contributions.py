"""What channels contribute to what comes after them, and how much of it they share.

For a set S of channels with indicator r, on localised samples:

- the energy that S gives to the layers that read it: per reader with weights W and inputs a it is
  E |sum_{j in S} W_j a_j|^2 = r' G r  with  G = (W'W) * E[a a'];
- how far the answers for the clone classes move without S, to first order: with the contributions
  t_j(y) = <a_j, d log p(y) / d a_j> their divergence is r' F r / 2 with F = E[sum_y p(y) t(y) t(y)'],
  the Fisher information.  Theis et al. (arXiv 1801.05787) remove channels by its diagonal; the rest
  of it says which channels cancel or repeat each other.

Sizes: B images in a batch, K clone classes, C channels that a layer reads, n channels of a group,
each standing at m of the C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..data import batches
from ..network.part import Module
from .groups import Group
from .layers import channel_axis, layer_of, watching

ROWS = 60_000  # of a reader's input that its second moments are taken from
ANSWERS = 4  # of each sample that are looked at: all classes, or so many drawn


def energy_of(part: nn.Module, moments: Mapping[str, Tensor], group: Group) -> np.ndarray:
    """G of a group's channels, (n, n): the sum over its readers, each as a share of its all;
    ``moments`` as :func:`moments_of` finds them."""
    energy = np.zeros((group.size, group.size))
    for r in group.readers:
        gram = squares_of(part, r) * moments[r].double()
        energy += _within(gram, group.sites[r, 1]) / max(gram.sum().item(), 1e-12)
    return energy


def read_and_used(
    part: nn.Module, moments: Mapping[str, Tensor], group: Group
) -> tuple[np.ndarray, np.ndarray]:
    """E[a a'] of a group's channels, a mean over its readers, each of unit trace, and W'W, a sum over
    them, each as a share of its energy; (n, n)."""
    read, used = np.zeros((group.size, group.size)), np.zeros((group.size, group.size))
    for r in group.readers:
        moment, squares = moments[r].double(), squares_of(part, r)
        size = max(moment.trace().item(), 1e-12)
        energy = max((squares * moment).sum().item(), 1e-12)
        read += _within(moment, group.sites[r, 1]) / size / len(group.readers)
        used += _within(squares, group.sites[r, 1]) * size / energy
    return read, used


def movements(
    module: Module, features: Tensor, groups: list[Group], together: int = 32
) -> Iterator[np.ndarray]:
    """F = E[sum_y p(y) t(y) t(y)'] of each group's channels, (n, n), one at a time."""
    readers = _readers(groups)
    moved: list[list[Tensor]] = [[] for _ in groups]  # t of each batch and class, (B, n)
    generator = torch.Generator().manual_seed(0)
    for part in batches(len(features), together):
        answers, inputs = _watched(module, readers, features[part])  # log p (B, K)
        for y, weight in _classes(answers.detach(), generator):  # (B,), (B, 1)
            given = _contributions(module.part, answers, y, inputs)
            for rows, g in zip(moved, groups):
                rows.append(_of_group(given, g) * weight)
    for k, g in enumerate(groups):
        rows, moved[k] = moved[k], []
        total = torch.zeros(g.size, g.size, dtype=torch.float64)
        for t in rows:
            total += (t.T @ t).cpu().double()  # some devices have no float64
        yield (total / len(features)).numpy()


def log_answers(logits: Tensor) -> Tensor:
    """Log-probabilities (N, K) of the clone classes from their ``logits`` (N, K).

    One class has no rival among the clone classes, and would always be certain: its logit is set
    against its mean over the images, (N, 2).
    """
    if logits.shape[1] == 1:
        logits = torch.cat([logits, logits.detach().mean().expand_as(logits)], dim=1)
    return logits.log_softmax(1)


def _readers(groups: list[Group]) -> list[str]:
    return sorted({r for g in groups for r in g.readers})


def _watched(
    module: Module, readers: list[str], features: Tensor
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Log-probabilities of a batch, and what the readers read for them, each time it was used.

    Gradients flow from the answers to the inputs.
    """
    inputs: dict[str, list[Tensor]] = {r: [] for r in readers}

    def keep(reader: str, a: Tensor) -> Tensor:
        inputs[reader].append(a + 0)  # a copy: it may be changed in place
        return inputs[reader][-1]

    with watching(module.part, [(r, partial(keep, r)) for r in readers]), torch.enable_grad():
        return log_answers(module(features.clone().requires_grad_() + 0)[1]), inputs


def _contributions(
    part: nn.Module, answers: Tensor, y: Tensor, inputs: dict[str, list[Tensor]]
) -> dict[str, Tensor]:
    """t(y) = <a, d log p(y) / d a> of all channels (B, C) that each reader reads, for classes (B,)."""
    seen = [(r, a) for r, uses in inputs.items() for a in uses]
    slopes = torch.autograd.grad(
        answers.gather(1, y[:, None]).sum(),
        [a for _, a in seen],
        retain_graph=True,
        allow_unused=True,
    )
    given: dict[str, Tensor] = {}
    for (r, a), slope in zip(seen, slopes):
        t = torch.zeros_like(a) if slope is None else a.detach() * slope.nan_to_num(0, 0, 0)
        t = t.movedim(channel_axis(layer_of(part, r)), -1)  # (B or B windows, ..., C)
        given[r] = given.get(r, 0.0) + t.reshape(len(y), -1, t.shape[-1]).sum(1)
    return given


def _classes(answers: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Classes (B,) with weights (B, 1) whose squares sum to one for each of B ``answers``."""
    p = answers.exp()
    if p.shape[1] <= ANSWERS:
        for k in range(p.shape[1]):
            yield torch.full((len(p),), k, device=p.device), p[:, k : k + 1].sqrt()
    else:
        drawn = torch.multinomial(p.cpu(), ANSWERS, replacement=True, generator=generator)
        for y in drawn.to(p.device).unbind(1):
            yield y, p.new_full((len(p), 1), ANSWERS**-0.5)


def _of_group(given: dict[str, Tensor], group: Group) -> Tensor:
    """What a group's channels contribute, (B, n), from what each reader's (B, C) do."""
    t = torch.zeros(())
    for reader in group.readers:
        n, m = group.sites[reader, 1].shape
        indices = torch.from_numpy(group.sites[reader, 1].ravel())
        t = t + given[reader][:, indices].reshape(-1, n, m).sum(2)
    return t


@torch.no_grad()
def moments_of(
    module: Module, features: Tensor, groups: list[Group], together: int = 64
) -> dict[str, Tensor]:
    """E[a a'] of what each reader of ``groups`` reads, (C, C)."""
    moments: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    readers = _readers(groups)
    axes = {r: channel_axis(layer_of(module.part, r)) for r in readers}
    per_batch = max(1, ROWS // max(1, -(-len(features) // together)))

    def add(reader: str, a: Tensor) -> None:
        a = a.movedim(axes[reader], -1).flatten(0, -2)  # (pixels or tokens, C)
        a = a[:: max(1, len(a) // per_batch)]
        moments[reader] = moments.get(reader, 0) + (a.T @ a).cpu()
        rows[reader] = rows.get(reader, 0) + len(a)

    with watching(module.part, [(r, partial(add, r)) for r in readers]):
        for part in batches(len(features), together):
            module(features[part].clone())
    return {r: moments[r] / rows[r] for r in readers}


def squares_of(part: nn.Module, reader: str) -> Tensor:
    """W'W of a reader, (C, C) in float64: a sum over outputs and taps."""
    w = layer_of(part, reader).weight.detach().cpu().double().transpose(0, 1).flatten(1)
    return w @ w.T  # w is (C, O k k)


def _within(gram: Tensor, indices: np.ndarray) -> np.ndarray:
    """The Gram matrix (n, n) of a group's channels, standing at ``indices`` (n, m) of (C, C)."""
    n, m = indices.shape
    flat = torch.from_numpy(indices.ravel())
    return gram[flat][:, flat].reshape(n, m, n, m).sum((1, 3)).numpy()
