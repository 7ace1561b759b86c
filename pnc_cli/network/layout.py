"""How the features at a position are laid out, and one canonical form for all of them.

Vision networks keep their features as channel-first maps (NCHW), channel-last maps (NHWC),
token sequences (NLC, with or without class and register tokens in front) or plain vectors (NC).
The method works on one form only: a channel-first map and a list of prefix tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..manifest import Kind, Layout


def to_map(x: Tensor, at: Layout) -> tuple[Tensor, Tensor | None]:
    """Features (B, *at.shape) -> map (B, C, H, W) and prefix tokens (B, P, C) or None."""
    h, w = at.grid
    if at.kind == "NCHW":
        return x, None
    if at.kind == "NHWC":
        return x.permute(0, 3, 1, 2), None
    if at.kind == "NC":
        return x[:, :, None, None], None
    tokens = x[:, at.prefix :]
    grid = tokens.transpose(1, 2).reshape(x.shape[0], at.channels, h, w)
    return grid, x[:, : at.prefix] if at.prefix else None


def from_map(grid: Tensor, prefix: Tensor | None, at: Layout) -> Tensor:
    """The inverse of :func:`to_map`."""
    if at.kind == "NCHW":
        return grid
    if at.kind == "NHWC":
        return grid.permute(0, 2, 3, 1).contiguous()
    if at.kind == "NC":
        return grid.flatten(1)
    tokens = grid.flatten(2).transpose(1, 2)
    if prefix is None:
        return tokens.contiguous()
    return torch.cat([prefix, tokens], dim=1)


def token_grid(length: int, prefix_hint: int, aspect: float) -> tuple[int, tuple[int, int]] | None:
    """Splits ``length`` tokens into prefix tokens and a grid of the image's aspect ratio (w / h).

    The network's own prefix count is tried after "none" and before small guesses.
    Returns (prefix, (height, width)), or None when no split fits.
    """
    for prefix in dict.fromkeys([0, prefix_hint, 1, 2, 5, 4, 3]):
        cells = length - prefix
        if cells < 1:
            continue
        h = round(math.sqrt(cells / aspect))
        if h and cells % h == 0 and abs(cells // h - h * aspect) < 1:
            return prefix, (h, cells // h)
    return None


def map_kind(shape: tuple[int, int, int], consumer_hint: str | None) -> Kind:
    """Channel-first or channel-last, for a 4-D feature of per-image ``shape``.

    The layer that reads the feature knows best (``consumer_hint``); without one, the two equal
    axes of a square map are the spatial ones.
    """
    if consumer_hint == "first":
        return "NCHW"
    if consumer_hint == "last":
        return "NHWC"
    a, b, c = shape
    return "NHWC" if a == b != c else "NCHW"


def layout_of_shape(
    shape: tuple[int, ...],
    input_size: tuple[int, int, int],
    prefix_hint: int,
    channels: str | None,
) -> Layout | None:
    """The layout of features of per-image ``shape``; None where they are of no known form.

    ``channels`` is "first" or "last" where a layer that reads the features tells.
    """
    if len(shape) == 1:
        return Layout("NC", shape, (1, 1))
    if len(shape) == 2:
        split = token_grid(shape[0], prefix_hint, input_size[2] / input_size[1])
        return split and Layout("NLC", shape, split[1], split[0])
    if len(shape) == 3:
        kind = map_kind(shape, channels)
        return Layout(kind, shape, shape[1:] if kind == "NCHW" else shape[:2])
    return None
