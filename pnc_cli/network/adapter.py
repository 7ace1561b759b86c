"""The adapter: from the target's features at the tap to the source's features at the cut.

An affine map over channels (a k x k convolution) after resampling to the cut's grid.
:mod:`pnc_cli.method.adapter` fits it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import Layout


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
    return wanted.from_map(resample(at.to_map(x)[0], wanted.grid))


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
        grid, prefix = self.tap.to_map(x)
        out = F.conv2d(
            resample(grid, self.cut.grid), self.weight, self.bias, padding=self.kernel // 2
        )
        if not self.cut.prefix:
            return self.cut.from_map(out)
        tokens = torch.einsum("pcd,bd->bpc", self.prefix_weight, summary(grid, prefix))
        return self.cut.from_map(out, tokens + self.prefix_bias)

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
