"""The adapter: from the target's features at the tap to the source's features at the cut.

An affine map over channels (a k x k convolution) after resampling to the cut's grid, fitted by
ridge regression.  The closed form needs one forward pass of each network for a whole grid of
(tap, cut) pairs: a k x k convolution is a regression from k x k patches, and with k = 3 it is
nearly as good as what distillation reaches from there (examples/benchmark/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import batches
from ..manifest import Layout, Preprocessing
from ..network.layout import from_map, to_map
from ..network.position import INPUT, Position
from .task import Task


def resample(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Map (B, C, H, W) -> (B, C, *grid): averages when shrinking, interpolates when growing."""
    h, w = x.shape[-2:]
    if (h, w) == tuple(grid):
        return x
    if h >= grid[0] and w >= grid[1]:
        return F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False, antialias=True)


def resampled(x: Tensor, at: Layout, wanted: Layout) -> Tensor:
    """Features ``x`` (B, *at.shape) on the grid of ``wanted``, the same map at another resolution."""
    if at.grid == wanted.grid:
        return x
    return from_map(resample(to_map(x, at)[0], wanted.grid), None, wanted)


class Adapter(nn.Module):
    """Tap features (B, *tap.shape) -> cut features (B, *cut.shape).

    ``weight`` is (C_cut, C_tap, k, k), ``bias`` (C_cut).  Where the cut has prefix tokens
    (class, registers), each is an affine map of the tap's prefix tokens and its mean token:
    ``prefix_weight`` is (P_cut, C_cut, (P_tap + 1) C_tap), ``prefix_bias`` (P_cut, C_cut).
    """

    def __init__(self, tap: Layout, cut: Layout, kernel: int) -> None:
        super().__init__()
        self.tap, self.cut, self.kernel = tap, cut, kernel
        self.weight = nn.Parameter(torch.zeros(cut.channels, tap.channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cut.channels))
        if cut.prefix:
            width = (tap.prefix + 1) * tap.channels
            self.prefix_weight = nn.Parameter(torch.zeros(cut.prefix, cut.channels, width))
            self.prefix_bias = nn.Parameter(torch.zeros(cut.prefix, cut.channels))

    def forward(self, x: Tensor) -> Tensor:
        grid, prefix = to_map(x, self.tap)
        out = F.conv2d(
            resample(grid, self.cut.grid), self.weight, self.bias, padding=self.kernel // 2
        )
        if not self.cut.prefix:
            return from_map(out, None, self.cut)
        tokens = torch.einsum("pcd,bd->bpc", self.prefix_weight, summary(grid, prefix))
        return from_map(out, tokens + self.prefix_bias, self.cut)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        cells = self.cut.grid[0] * self.cut.grid[1]
        macs = cells * self.weight.numel()
        return macs + (self.prefix_weight.numel() if self.cut.prefix else 0)


def summary(grid: Tensor, prefix: Tensor | None) -> Tensor:
    """Tap features as one vector an image: prefix tokens and the mean token, (B, (P+1) C)."""
    mean = grid.mean((2, 3))
    return mean if prefix is None else torch.cat([prefix.flatten(1), mean], dim=1)


@dataclass
class Regression:
    """Sums for a least-squares affine map from rows x (d) to rows y (c).

    Products are taken in float32, a batch at a time, and added up in float64.
    """

    xx: Tensor  # (d + 1, d + 1)
    xy: Tensor  # (d + 1, c)
    rows: int

    @classmethod
    def empty(cls, d: int, c: int) -> Regression:
        xx, xy = (torch.zeros(d + 1, n, dtype=torch.float64) for n in (d + 1, c))
        return cls(xx, xy, 0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows x (n, d) and y (n, c)."""
        x = F.pad(x, (0, 1), value=1.0)
        self.xx += (x.T @ x).double().cpu()
        self.xy += (x.T @ y).double().cpu()
        self.rows += len(x)

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        """Ridge solution: weight (c, d) and bias (c,); the bias is not shrunk.

        ``strength`` is relative to the mean variance of x, so it means the same at any scale.
        """
        d = len(self.xx) - 1
        mean = self.xx[:d, d] / self.rows
        variance = (self.xx.diagonal()[:d] / self.rows - mean.square()).clamp(min=0).mean()
        penalty = torch.full((d + 1,), float(strength * self.rows * variance) + 1e-9)
        penalty[d] = 0.0
        solution = torch.linalg.solve(self.xx + torch.diag(penalty.double()), self.xy)
        return solution[:d].T.float().contiguous(), solution[d].float().contiguous()


KERNEL = 3
WIDE = 1200  # most inputs of a k x k regression; wider taps are read by a 1 x 1 convolution
COSTLY = 0.1  # of what the module costs, for an adapter


def kernel_for(tap: Layout, cut: Layout, macs: int) -> int:
    """The kernel size that a pair of positions deserves: ``KERNEL`` where neighbours exist, the
    regression stays small, and the adapter costs little beside the module's ``macs``; else 1."""
    taps = KERNEL**2 * tap.channels
    cells = cut.grid[0] * cut.grid[1]
    small = taps <= WIDE and taps * cut.channels * cells <= COSTLY * macs
    return KERNEL if small and min(cut.grid) > 1 else 1


def ridge(
    adapters: Sequence[Adapter],
    tap: Tensor,
    cuts: Sequence[Tensor],
    *,
    strength: float = 1e-3,
    rows: int = 400_000,
    batch: int = 128,
) -> None:
    """Sets ``adapters`` to the ridge solutions from tap features (N, ...) to their cut's features.

    The adapters must have the tap, the kernel and the cut's grid in common; the regression's
    left-hand side is then shared.  A row is a cell of the grid; of more than ``rows``, an evenly
    drawn part is used.  Cut features of a finer grid than the adapters' are averaged to it.
    """
    first = adapters[0]
    k, grid_size = first.kernel, first.cut.grid
    channels = [a.cut.channels for a in adapters]
    cells = Regression.empty(first.tap.channels * k * k, sum(channels))
    tokens = [
        Regression.empty(a.prefix_weight.shape[2], a.cut.prefix * a.cut.channels)
        if a.cut.prefix
        else None
        for a in adapters
    ]
    length = grid_size[0] * grid_size[1]
    per_image = min(length, max(1, rows // len(tap)))
    generator = torch.Generator().manual_seed(0)
    for part in batches(len(tap), batch):
        grid, prefix = to_map(tap[part], first.tap)
        patches = F.unfold(resample(grid, grid_size), k, padding=k // 2)  # (B, C k k, L)
        maps = [to_map(c[part], a.cut) for a, c in zip(adapters, cuts)]
        wanted = torch.cat([resample(m, grid_size).flatten(2) for m, _ in maps], dim=1)
        if per_image < length:
            drawn = torch.randperm(length, generator=generator)[:per_image].to(patches.device)
            patches, wanted = patches[:, :, drawn], wanted[:, :, drawn]
        cells.add(patches.transpose(1, 2).flatten(0, 1), wanted.transpose(1, 2).flatten(0, 1))
        for sums, (_, y) in zip(tokens, maps):
            if sums is not None and y is not None:
                sums.add(summary(grid, prefix), y.flatten(1))
    weight, bias = cells.solve(strength)
    with torch.no_grad():
        for a, w, b, sums in zip(adapters, weight.split(channels), bias.split(channels), tokens):
            a.weight.copy_(w.view_as(a.weight))
            a.bias.copy_(b)
            if sums is not None:
                w, b = sums.solve(strength)
                a.prefix_weight.copy_(w.view_as(a.prefix_weight))
                a.prefix_bias.copy_(b.view_as(a.prefix_bias))


def exact_input(
    tap: Layout, cut: Layout, given: Preprocessing, wanted: Preprocessing
) -> Adapter | None:
    """From an image preprocessed as ``given`` to one as ``wanted``, resampled to the cut's grid;
    None where they differ in their channels."""
    if tap.channels != cut.channels:
        return None
    adapter = Adapter(tap, cut, 1)
    std = torch.tensor(wanted.std, dtype=torch.float64)
    scale = torch.tensor(given.std, dtype=torch.float64) / std
    shift = (torch.tensor(given.mean, dtype=torch.float64) - torch.tensor(wanted.mean)) / std
    with torch.no_grad():
        adapter.weight.copy_(torch.diag(scale)[:, :, None, None])
        adapter.bias.copy_(shift)
    return adapter


def fit_adapters(
    task: Task,
    tap: Position,
    cuts: Sequence[Position],
    tap_features: Tensor,
    cut_features: Sequence[Tensor],
    kernel: int,
    rows: int,
) -> list[Adapter]:
    """Closed-form adapters from one tap to cuts of one grid size, from the images not held out."""
    if tap.name == INPUT and cuts[0].name == INPUT:
        views = task.target.ref.preprocessing, task.source.ref.preprocessing
        adapter = exact_input(tap.layout, cuts[0].layout, *views)
        if adapter is not None:
            return [adapter.to(tap_features.device)]
    adapters = [Adapter(tap.layout, c.layout, kernel).to(tap_features.device) for c in cuts]
    fit = (~task.held_out).to(tap_features.device)
    ridge(adapters, tap_features[fit], [c[fit] for c in cut_features], rows=rows)
    return [a.requires_grad_(False) for a in adapters]
