"""Generated probe images, for a search without data.

Colour noise with the 1/f spectrum of natural images, with a few soft-edged shapes on top: enough
structure to compare how two networks see (Baradad et al., "Learning to See by Looking at Noise",
NeurIPS 2021), and nobody's data.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = 4


def probe_images(count: int, size: tuple[int, int, int], seed: int) -> Tensor:
    """uint8 images (count, C, H, W); the same ``seed`` shows the same scenes at any size."""
    channels, height, width = size
    side = 64  # scenes are drawn once, then resized
    generator = torch.Generator().manual_seed(seed)
    fy, fx = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :]
    frequency = (fy.square() + fx.square()).sqrt().clamp(min=1 / side)
    slope = 0.7 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.fft.rfft2(torch.randn(count, 3, side, side, generator=generator))
    scene = torch.fft.irfft2(noise / frequency.pow(slope), s=(side, side))
    mix = torch.eye(3) + 0.5 * torch.rand(count, 3, 3, generator=generator)  # colours go together
    scene = torch.einsum("nij,njhw->nihw", mix, scene)
    scene = scene / scene.flatten(1).std(1).clamp(min=1e-6)[:, None, None, None]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    for _ in range(SHAPES):
        at = torch.rand(count, 2, 1, 1, generator=generator) * 1.6 - 0.8
        radius = 0.15 + 0.5 * torch.rand(count, 2, 1, 1, generator=generator)
        power = 2.0 + 6.0 * torch.rand(count, 1, 1, generator=generator)  # ellipse to rectangle
        inside = ((x - at[:, 0]).abs() / radius[:, 0]) ** power + (
            (y - at[:, 1]).abs() / radius[:, 1]
        ) ** power
        alpha = torch.sigmoid((1 - inside) * 8)[:, None]
        colour = torch.randn(count, 3, 1, 1, generator=generator) * 1.2
        scene = scene * (1 - 0.7 * alpha) + 0.7 * alpha * colour
    image = torch.sigmoid(scene) * 255
    if channels == 1:
        image = image.mean(1, keepdim=True)
    image = F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
    return image.round().clamp(0, 255).to(torch.uint8)
