"""Localised samples: an image, and neighbours of it.

What Local(.) judges channels on, and what a student is taught with: an image flipped, shifted by an
eighth of its size at most, and in half of the cases with random patches masked (the perturbations of
LIME, Ribeiro et al., KDD 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import batches
from ..network.features import glancing, prepared
from ..network.load import Network
from ..network.position import Position

MASKED = 0.15  # chance of a cell of a 4 x 4 grid to be masked, in every other image
SHIFT = 0.125  # of the image's width and height, at most


@dataclass(frozen=True)
class Neighbours:
    """A random neighbour of each of some images, as a function of images of any size.

    Applied to the views of two networks it moves and masks the same things in both; drawn once, it
    gives the same neighbours as often as it is asked.
    """

    flip: Tensor  # (n,) -1 or 1
    shift: Tensor  # (n, 2) of width and height
    masked: Tensor  # (n, 1, 4, 4) bool

    @classmethod
    def drawn(cls, count: int, generator: torch.Generator) -> Neighbours:
        flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
        shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * SHIFT
        masked = torch.rand(count, 1, 4, 4, generator=generator) < MASKED
        masked &= torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        return cls(flip, shift, masked)

    def of(self, index: Tensor) -> Neighbours:
        return Neighbours(self.flip[index], self.shift[index], self.masked[index])

    def __call__(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> the same."""
        size = torch.tensor([x.shape[3], x.shape[2]])
        theta = torch.zeros(len(self.flip), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = self.flip, 1.0
        theta[:, :, 2] = (self.shift * size).round() / size * 2  # whole pixels: nothing is blurred
        grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        cover = F.interpolate(self.masked.to(x), size=x.shape[2:], mode="nearest")
        return x.masked_fill(cover > 0, 0.0)


@torch.no_grad()
def localised_features(
    source: Network, images: Tensor, cut: Position, seed: int, batch: int = 64
) -> Tensor:
    """Cut features (2 N, ...) of uint8 ``images`` (N, C, H, W) and of a neighbour of each."""
    generator = torch.Generator().manual_seed(seed)
    features, neighbours = [], []
    with glancing(source, [cut.name]) as glance:
        for part in batches(len(images), batch):
            x = prepared(source, images[part])
            features.append(glance(x)[cut.name])
            neighbours.append(glance(Neighbours.drawn(len(x), generator)(x))[cut.name])
    return torch.cat([*features, *neighbours])
