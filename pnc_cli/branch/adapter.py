"""The adapter: from the target's features at the tap to the source's features at the cut.

An affine map over channels (a k x k convolution) after resampling to the cut's grid, fitted by
ridge regression.  The closed form needs one forward pass of each network for a whole grid of
(tap, cut) pairs: a k x k convolution is a regression from k x k patches, and with k = 3 it is
nearly as good as what distillation reaches from there (examples/benchmark/NOTES.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import batches
from ..manifest import Layout, Preprocessing
from ..network.layout import from_map, to_map


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


TOGETHER = 1024  # rows that are multiplied at a time: float32 sums of more lose digits


class Regression:
    """Sums for a least-squares affine map from rows x (d) to rows y (c): they add up over batches.

    Both are taken relative to the means of the first batch, so that float32 is enough for the
    sums, however far the features are from zero; they are solved in float64.
    """

    def __init__(self, d: int, c: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self.xx = torch.zeros(d + 1, d + 1, device=device)  # of x with a 1 behind
        self.xy = torch.zeros(d + 1, c, device=device)
        self.yy = torch.zeros(c, device=device)
        self._origin: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def bytes_of(d: int, c: int) -> int:
        """Memory of the sums."""
        return 4 * (d + 1) * (d + 1 + c)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows x (n, d) and y (n, c)."""
        if self._origin is None:
            self._origin = x.mean(0), y.mean(0)
        x, y = x - self._origin[0], y - self._origin[1]
        x = F.pad(x, (0, 1), value=1.0)
        for part in batches(len(x), TOGETHER):
            self.xx.addmm_(x[part].T, x[part])
            self.xy.addmm_(x[part].T, y[part])
        self.yy += y.square().sum(0)
        self.rows += len(x)

    def merge(self, other: Regression) -> None:
        """Adds the rows of ``other``, as if they had come here: sums of the parts of some images,
        wherever they were made, are those of all of them."""
        if other._origin is None:
            return
        if self._origin is None:
            self._origin = other._origin
        d, rows, device = len(self.xx) - 1, other.rows, self.xx.device
        moved = torch.eye(d + 1, dtype=torch.float64)
        pairs = zip(self._origin, other._origin)
        x_by, y_by = (b.cpu().double() - a.cpu().double() for a, b in pairs)
        moved[d, :d] = x_by  # (x, 1) @ moved is x relative to the origin here
        # some devices have no float64
        xx, xy, yy = (t.cpu().double() for t in (other.xx, other.xy, other.yy))
        self.yy += (yy + 2 * y_by * xy[d] + rows * y_by.square()).float().to(device)
        self.xy += (moved.T @ (xy + xx[:, d:] * y_by)).float().to(device)
        self.xx += (moved.T @ xx @ moved).float().to(device)
        self.rows += rows

    def solve(self, strength: float) -> tuple[Tensor, Tensor, Tensor]:
        """Ridge solution: weight (c, d) and bias (c,), which is not shrunk; and what they leave of
        the variance of each y, with that variance: (2, c).

        ``strength`` is relative to the mean variance of x, so it means the same at any scale.
        """
        if self._origin is None:
            raise ValueError("a regression without rows")
        xx, yy = self.xx.cpu().double(), self.yy.cpu().double()
        x_origin, y_origin = (t.cpu().double() for t in self._origin)
        d = len(xx) - 1
        mean = xx[:d, d] / self.rows
        variance = (xx.diagonal()[:d] / self.rows - mean.square()).clamp(min=0).mean()
        penalty = torch.full((d + 1,), float(strength * self.rows * variance) + 1e-9).double()
        penalty[d] = 0.0
        solve = _solver(xx + torch.diag(penalty))
        weight, bias, left = [], [], []
        for part in batches(len(yy), COLUMNS):  # in float64, all of them would be much memory
            xy = self.xy[:, part].cpu().double()
            solution = solve(xy)
            rest = yy[part] - (solution * (2 * xy - xx @ solution)).sum(0)
            spread = yy[part] - xy[d].square() / self.rows
            weight.append(solution[:d].T.float())
            bias.append((solution[d] + y_origin[part] - solution[:d].T @ x_origin).float())
            left.append(torch.stack([rest.clamp(min=0), spread.clamp(min=0)]).float() / self.rows)
        return torch.cat(weight), torch.cat(bias), torch.cat(left, 1)


COLUMNS = 512  # of a regression's solution that are solved for together


def _solver(a: Tensor) -> Callable[[Tensor], Tensor]:
    """b -> a^-1 b for a positive definite ``a``; by LU where rounding has left it not quite so."""
    factor, failed = torch.linalg.cholesky_ex(a)
    if not bool(failed):
        return lambda b: torch.cholesky_solve(b, factor)
    lu = torch.linalg.lu_factor(a)
    return lambda b: torch.linalg.lu_solve(*lu, b)


class AdapterFit:
    """Closed-form adapters from one tap to cuts of one grid, from features a batch at a time.

    The cuts have the kernel and the grid in common: the regression's left-hand side is then shared.
    A row is a cell of the grid; ``cells`` are drawn from each image.  Cut features of a finer grid
    than the adapters' are averaged to it.
    """

    def __init__(
        self,
        tap: Layout,
        cuts: Sequence[Layout],
        kernel: int,
        cells: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tap, self.cuts, self.kernel = tap, list(cuts), kernel
        self.cells = min(cells, math.prod(self.cuts[0].grid))
        d, c = tap.channels * kernel * kernel, sum(cut.channels for cut in cuts)
        self.sums = Regression(d, c, device)
        width = (tap.prefix + 1) * tap.channels
        self.tokens = [
            Regression(width, cut.prefix * cut.channels, device) if cut.prefix else None
            for cut in cuts
        ]

    def add(self, tap: Tensor, cuts: Sequence[Tensor], generator: torch.Generator) -> None:
        """Adds tap features (B, ...) and those at each cut, of the same images."""
        grid, prefix = to_map(tap, self.tap)
        maps = [to_map(c, layout) for c, layout in zip(cuts, self.cuts_seen(cuts))]
        drawn = torch.randperm(math.prod(self.cuts[0].grid), generator=generator)[: self.cells]
        drawn = drawn.to(tap.device)
        x = _patches(resample(grid, self.cuts[0].grid), self.kernel, drawn)
        y = torch.cat([resample(m, self.cuts[0].grid).flatten(2)[:, :, drawn] for m, _ in maps], 1)
        self.sums.add(x, y.transpose(1, 2).flatten(0, 1))
        for sums, (_, tokens) in zip(self.tokens, maps):
            if sums is not None and tokens is not None:
                sums.add(summary(grid, prefix), tokens.flatten(1))

    def cuts_seen(self, cuts: Sequence[Tensor]) -> list[Layout]:
        """The layouts of the features as they come, maps of whatever resolution."""
        return [_as_it_is(layout, c) for layout, c in zip(self.cuts, cuts)]

    @torch.no_grad()
    def solve(self, strength: float = 1e-3) -> list[tuple[Adapter, float]]:
        """The adapters, with the share of the variance at the cut that each explains."""
        channels = [c.channels for c in self.cuts]
        weight, bias, left = self.sums.solve(strength)
        found = []
        for cut, w, b, (rest, spread), sums in zip(
            self.cuts,
            weight.split(channels),
            bias.split(channels),
            left.split(channels, 1),
            self.tokens,
        ):
            adapter = Adapter(self.tap, cut, self.kernel)
            adapter.weight.copy_(w.view_as(adapter.weight))
            adapter.bias.copy_(b)
            if sums is not None:
                w, b, _ = sums.solve(strength)
                adapter.prefix_weight.copy_(w.view_as(adapter.prefix_weight))
                adapter.prefix_bias.copy_(b.view_as(adapter.prefix_bias))
            explained = 1.0 - (rest.sum() / spread.sum().clamp(min=1e-12)).item()
            found.append((adapter.requires_grad_(False), explained))
        return found


def _patches(grid: Tensor, kernel: int, drawn: Tensor) -> Tensor:
    """The k x k patches around the cells ``drawn`` (n,) of a map (B, C, H, W): (B n, C k k), as
    ``F.unfold`` orders them."""
    if kernel == 1:
        return grid.flatten(2)[:, :, drawn].transpose(1, 2).flatten(0, 1)
    width, pad = grid.shape[3], kernel // 2
    padded = F.pad(grid, (pad, pad, pad, pad))
    y, x = drawn // width, drawn % width
    around = torch.arange(kernel, device=drawn.device)
    rows, columns = y[:, None, None] + around[:, None], x[:, None, None] + around[None, :]
    index = (rows * padded.shape[3] + columns).flatten(1)  # (n, k k)
    found = padded.flatten(2)[:, :, index]  # (B, C, n, k k)
    return found.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


def _as_it_is(layout: Layout, features: Tensor) -> Layout:
    """``layout`` with the grid that ``features`` (B, ...) have."""
    shape = tuple(features.shape[1:])
    if shape == layout.shape or layout.kind not in ("NCHW", "NHWC"):
        return layout
    h, w = shape[1:] if layout.kind == "NCHW" else shape[:2]
    return Layout(layout.kind, shape, (h, w))


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
