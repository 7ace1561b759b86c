"""Features of a frozen network on many images, at many positions, in one pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..data import Progress, batches, no_progress, normalize
from ..network.build import Network
from ..network.patched import target_pre_logits
from ..network.position import CONTAINERS, INPUT, Outline, Position
from ..network.record import recording
from .neighbourhood import neighbourhood

BATCH = 128
NEARLY_ALL = 0.75  # share of a network's MACs: what has more is not one of its blocks


def device_of(network: Network) -> torch.device:
    return next(network.model.parameters()).device


@torch.no_grad()
def target_features(
    target: Network,
    images: Tensor,
    taps: Iterable[str] = (),
    *,
    progress: Progress = no_progress,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Pre-logits (N, D), logits (N, C) and tap features of uint8 ``images`` (N, C, H, W)."""
    taps, device = list(taps), device_of(target)
    pre, logits = [], []
    features: dict[str, list[Tensor]] = {t: [] for t in taps}
    with recording(target.model, taps, target.classifier) as seen:
        for part in batches(len(images), BATCH):
            progress("target features", part.start, len(images))
            z = target.model(normalize(images[part].to(device), target.ref.preprocessing))
            pre.append(target_pre_logits(seen, target.classifier, z))
            logits.append(z)
            for t in taps:
                features[t].append(seen[t])
    progress("target features", len(images), len(images))
    return torch.cat(pre), torch.cat(logits), {t: torch.cat(f) for t, f in features.items()}


@torch.no_grad()
def source_features(
    source: Network,
    images: Tensor,
    cuts: Iterable[Position] = (),
    *,
    progress: Progress = no_progress,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (N, C) and cut features of uint8 ``images``."""
    names, device = [c.name for c in cuts], device_of(source)
    logits, features = [], {n: [] for n in names}
    with recording(source.model, names) as seen:
        for part in batches(len(images), BATCH):
            progress("source features", part.start, len(images))
            logits.append(
                source.model(normalize(images[part].to(device), source.ref.preprocessing))
            )
            for n in names:
                features[n].append(seen[n])
    progress("source features", len(images), len(images))
    return torch.cat(logits), {n: torch.cat(f) for n, f in features.items()}


@torch.no_grad()
def localised_features(source: Network, images: Tensor, cut: Position, seed: int) -> Tensor:
    """Cut features (2 N, ...) of uint8 ``images`` (N, C, H, W) and of a neighbour of each."""
    generator = torch.Generator().manual_seed(seed)
    device, features, neighbours = device_of(source), [], []
    with recording(source.model, [cut.name]) as seen:
        for part in batches(len(images), BATCH):
            x = normalize(images[part].to(device), source.ref.preprocessing)
            source.model(x)
            features.append(seen[cut.name])
            source.model(neighbourhood(len(x), generator)(x))
            neighbours.append(seen[cut.name])
    return torch.cat([*features, *neighbours])


def block_positions(network: Outline) -> list[Position]:
    """The positions between blocks, without those inside one and those that cost nothing more.

    A position inside a block that is itself a position (``blocks.0.0.bn1``) is left out, unless
    the block is a plain sequence or nearly the whole network; so is all but the last of a run
    without any work in between (``bn1``, ``act1``, ``maxpool``).
    """
    named = {n: p for p in network.positions for n in (p.name, *p.aliases)}
    starts: dict[str, float] = {}  # the depth at which each module begins
    for before, p in zip((0.0, *(p.depth for p in network.positions)), network.positions):
        for parent in _parents(p.name):
            starts.setdefault(parent, before)

    def is_block(name: str) -> bool:
        if name not in named or isinstance(network.root.get_submodule(name), CONTAINERS):
            return False
        return named[name].depth - starts[name] < NEARLY_ALL

    outer = [p for p in network.positions if not any(map(is_block, _parents(p.name)))]
    kept = []
    for p, following in zip(outer, [*outer[1:], None]):
        same = following is not None and following.depth == p.depth
        if p.name == INPUT or not (same and following.layout.elements <= p.layout.elements):
            kept.append(p)
    return kept


def _parents(name: str) -> list[str]:
    """``a.b.c`` -> ``a.b``, ``a``."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]
