"""Localised samples: an image, and neighbours of it.

What Local(.) judges channels on, and what a student is taught with: an image flipped, shifted by an
eighth of its size at most, and in half of the cases with random patches masked (the perturbations of
LIME, Ribeiro et al., KDD 2016).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import batches, normalize
from ..network.features import BATCH, device_of
from ..network.load import Network
from ..network.position import Position
from ..network.record import recording

MASKED = 0.15  # chance of a cell of a 4 x 4 grid to be masked, in every other image
SHIFT = 0.125  # of the image's width and height, at most


def neighbourhood(count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random neighbour of each of ``count`` images, as a function of images of any size.

    Applied to the views of two networks it moves and masks the same things in both.
    """
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = 1.0
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * SHIFT
    masked = torch.rand(count, 1, 4, 4, generator=generator) < MASKED
    masked &= torch.rand(count, 1, 1, 1, generator=generator) < 0.5

    def apply(x: Tensor) -> Tensor:
        size = torch.tensor([x.shape[3], x.shape[2]])
        moved = theta.clone()
        moved[:, :, 2] = (shift * size).round() / size * 2  # whole pixels: nothing is blurred
        grid = F.affine_grid(moved.to(x), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        cover = F.interpolate(masked.to(x), size=x.shape[2:], mode="nearest")
        return x.masked_fill(cover > 0, 0.0)

    return apply


@torch.no_grad()
def localised_features(source: Network, images: Tensor, cut: Position, seed: int) -> Tensor:
    """Cut features (2 N, ...) of uint8 ``images`` (N, C, H, W) and of a neighbour of each."""
    generator = torch.Generator().manual_seed(seed)
    device = device_of(source)
    features, neighbours = [], []
    with recording(source.model, [cut.name]) as seen:
        for part in batches(len(images), BATCH):
            x = normalize(images[part].to(device), source.ref.preprocessing)
            source.model(x)
            features.append(seen[cut.name])
            source.model(neighbourhood(len(x), generator)(x))
            neighbours.append(seen[cut.name])
    return torch.cat([*features, *neighbours])
