"""What channels contribute to what comes after them, and how much of it they share.

For a set S of channels with indicator r, on localised samples:

- the energy that S gives to the layers that read it: per reader with weights W and inputs a it is
  E |sum_{j in S} W_j a_j|^2 = r' G r  with  G = (W'W) * E[a a'];
- how far the answers for the clone classes move without S, to first order: with the contributions
  t_j(y) = <a_j, d log p(y) / d a_j> their divergence is r' F r / 2 with F = E[sum_y p(y) t(y) t(y)'],
  the Fisher information.  Theis et al. (arXiv 1801.05787) remove channels by its diagonal; the rest
  of it says which channels cancel or repeat each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data import batches
from ..network.part import Module
from .groups import Group

ROWS = 60_000  # of a reader's input that its second moments are taken from
ANSWERS = 4  # of each sample that are looked at: all classes, or so many drawn


def energies(module: Module, features: Tensor, groups: list[Group]) -> list[np.ndarray]:
    """G of each group's channels, (n, n): the sum over its readers, each as a share of its all."""
    grams = _grams(module, features, {r for g in groups for r in g.readers})
    totals = {r: max(g.sum().item(), 1e-12) for r, g in grams.items()}
    return [sum(_within(grams[r], g.sites[r, 1]) / totals[r] for r in g.readers) for g in groups]


def movements(module: Module, features: Tensor, groups: list[Group]) -> list[np.ndarray]:
    """F = E[sum_y p(y) t(y) t(y)'] of each group's channels, (n, n)."""
    inputs: dict[str, list[Tensor]] = {}

    def watch(name: str):
        def hook(m, args):
            inputs.setdefault(name, []).append(args[0] + 0)  # a copy: it may be changed in place
            return (inputs[name][-1], *args[1:])

        return hook

    readers = sorted({r for g in groups for r in g.readers})
    modules = {r: module.part.get_submodule(r.removesuffix(".weight")) for r in readers}
    handles = [m.register_forward_pre_hook(watch(r)) for r, m in modules.items()]
    moved = [torch.zeros(g.size, g.size, dtype=torch.float64) for g in groups]
    generator = torch.Generator().manual_seed(0)
    try:
        for part in batches(len(features), 32):
            inputs.clear()
            with torch.enable_grad():
                answers = log_answers(module(features[part].clone().requires_grad_() + 0)[1])
            seen = [(r, a) for r in readers for a in inputs[r]]
            for y, weight in _classes(answers.detach(), generator):
                chosen = answers.gather(1, y[:, None]).sum()
                slopes = torch.autograd.grad(
                    chosen, [a for _, a in seen], retain_graph=True, allow_unused=True
                )
                given: dict[str, Tensor | float] = dict.fromkeys(readers, 0.0)
                for (r, a), slope in zip(seen, slopes):
                    if slope is not None:
                        t = (a.detach() * slope.nan_to_num(0, 0, 0)).movedim(
                            1 if modules[r].weight.ndim > 2 else -1, -1
                        )
                        given[r] = given[r] + t.reshape(len(y), -1, t.shape[-1]).sum(1)
                for total, g in zip(moved, groups):
                    t = sum(_of_group(given[r], g.sites[r, 1]) for r in g.readers) * weight
                    total += (t.T @ t).double().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return [(total / len(features)).numpy() for total in moved]


def log_answers(logits: Tensor) -> Tensor:
    """Log-probabilities (N, K) of the clone classes from their ``logits`` (N, K).

    One class has no rival among the clone classes, and would always be certain: its logit is set
    against its mean over the images, (N, 2).
    """
    if logits.shape[1] == 1:
        logits = torch.cat([logits, logits.detach().mean().expand_as(logits)], dim=1)
    return logits.log_softmax(1)


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


def _of_group(given: Tensor, indices: np.ndarray) -> Tensor:
    """(B, C) of a reader's channels -> (B, n) of a group's, each standing at m of them."""
    n, m = indices.shape
    return given[:, torch.from_numpy(indices.ravel())].reshape(-1, n, m).sum(2)


@torch.no_grad()
def _grams(module: Module, features: Tensor, readers: set[str]) -> dict[str, Tensor]:
    """G = (W'W) * E[a a'] of each reader, (C, C) in float64."""
    moments: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    per_batch = max(1, ROWS // max(1, -(-len(features) // 64)))

    def watch(name: str, channel_axis: int):
        def hook(m, args) -> None:
            a = args[0].movedim(channel_axis, -1).flatten(0, -2)
            a = a[:: max(1, len(a) // per_batch)]
            moments[name] = moments.get(name, 0) + (a.T @ a).double()
            rows[name] = rows.get(name, 0) + len(a)

        return hook

    handles = []
    for name in sorted(readers):
        m = module.part.get_submodule(name.removesuffix(".weight"))
        axis = 1 if m.weight.ndim > 2 else -1
        handles.append(m.register_forward_pre_hook(watch(name, axis)))
    try:
        for part in batches(len(features), 64):
            module(features[part].clone())
    finally:
        for handle in handles:
            handle.remove()
    state = module.part.state_dict()
    grams = {}
    for name in readers:
        w = state[name].double().transpose(0, 1).flatten(1)  # (C, O k k)
        grams[name] = ((w @ w.T) * moments[name] / rows[name]).cpu()
    return grams


def _within(gram: Tensor, indices: np.ndarray) -> np.ndarray:
    """The Gram matrix of a group's channels, each standing at m indices of the reader."""
    n, m = indices.shape
    flat = torch.from_numpy(indices.ravel())
    return gram[flat][:, flat].reshape(n, m, n, m).sum((1, 3)).numpy()
