"""What can be told of channels from others: those that can be restored go first.

A pruned module's layers read mixtures of what they have left (``branch/mixing.py``), so what is lost
with channels is what no mixture of the others gives.  With G = E[a a'], P = G^-1 and H = W'W of the
layers that read them, losing channel j costs H_jj / P_jj once the others are mixed for it (Gaussian
elimination; OBS, Hassibi and Stork 1993, for channels); what it moves the answers by is weighed by
1 / (P_jj G_jj), the share of j's energy that cannot be restored.

Sizes: n channels of a group, C that a layer reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .groups import Group
from .layers import Watcher, channel_axis, layer_of, watching

RIDGE = 0.01  # of the mean energy: pulls what is told of a channel towards nothing
LITTLE = 1e-3  # likewise, where channels are ordered
ROUNDS = 128  # a group's channels go in, at most


def estimate(given: Tensor, both: Tensor) -> Tensor:
    """B (C, k), which tells x (C,) from x~ (k,), from ``given`` = E[x~ x~'] and ``both`` = E[x x~']."""
    return torch.linalg.solve(ridged(given, RIDGE), both.T).T


def ridged(square: Tensor, part: float) -> Tensor:
    """A square (k, k) with ``part`` of its mean diagonal more on its diagonal."""
    mean = square.diagonal().mean().clamp(min=1e-12)
    return square + part * mean * torch.eye(len(square)).to(square)


def elimination_order(
    moments: np.ndarray, squares: np.ndarray, moved: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Order of removal (n,), and what is missing after 0..n removals (n + 1,).

    All are (n, n): ``moments`` G, ``squares`` H as a share of the readers' energy, and ``moved``,
    the answers' movement, of unit trace.
    """
    n = len(moments)
    inverse = torch.linalg.inv(ridged(torch.from_numpy(moments), LITTLE))
    left, energy = torch.from_numpy(squares).clone(), moments.diagonal()
    at_once = -(-n // ROUNDS)
    stays, cross = np.ones(n, dtype=bool), np.zeros(n)
    order: list[int] = []
    missing = [0.0]
    while len(order) < n:
        lone = np.maximum(inverse.diagonal().numpy(), 1e-30)
        gain = left.diagonal().numpy() / lone
        gain = gain + (moved.diagonal() + 2 * cross) / np.maximum(lone * energy, 1.0)
        gain = np.where(stays, gain, np.inf)
        going = np.argsort(gain, kind="stable")[: min(at_once, n - len(order))]
        for j in going:
            missing.append(max(missing[-1] + gain[j], missing[-1]))
        order += going.tolist()
        stays[going] = False
        cross += moved[:, going].sum(1)
        _eliminate(inverse, left, torch.from_numpy(going))
    return np.array(order, dtype=int), np.array(missing)


def _eliminate(inverse: Tensor, left: Tensor, going: Tensor) -> None:
    """P and H (n, n) without the channels ``going``, which the rest are mixed for; in place."""
    own = inverse[going][:, going]
    for_them = torch.linalg.solve(own, inverse[going]).T  # (n, gone)
    read = left[:, going] @ for_them.T
    left += for_them @ left[going][:, going] @ for_them.T - read - read.T
    inverse -= for_them @ inverse[going]
    for square in (inverse, left):
        square[going] = 0.0
        square[:, going] = 0.0


@contextmanager
def restored(
    part: nn.Module, group: Group, stay: np.ndarray, moments: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within it, the readers of ``group`` see for its channels that do not ``stay`` what the others
    tell of them.  ``moments`` are E[a a'] (C, C) of what each reads."""
    told = [(r, _teller(part, group, stay, r, moments[r])) for r in group.readers]
    with watching(part, told):
        yield


def _teller(
    part: nn.Module, group: Group, stay: np.ndarray, reader: str, moments: Tensor
) -> Watcher:
    layer = layer_of(part, reader)
    keep = torch.ones(len(moments), dtype=torch.bool)
    keep[torch.from_numpy(group.sites[reader, 1][~stay].ravel())] = False
    told = torch.zeros_like(moments)
    told[:, keep] = estimate(moments[keep][:, keep], moments[:, keep])
    told, axis = told.to(layer.weight), channel_axis(layer)
    return lambda x: (x.movedim(axis, -1) @ told.T).movedim(-1, axis)
