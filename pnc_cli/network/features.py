"""What a frozen network says of many images: its answers, and its features at some positions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..data import Progress, batches, no_progress, normalize
from .head import target_pre_logits
from .load import Network
from .position import Position
from .record import recording

BATCH = 128  # images that a network is given at a time


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
    """Pre-logits (N, D), logits (N, classes) and, by tap, features (N, ...) of ``images``.

    These are uint8 (N, C, H, W) at the target's input size.
    """
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
    """Logits (N, classes) and, by cut, features (N, ...) of uint8 ``images`` (N, C, H, W)."""
    names, device = [c.name for c in cuts], device_of(source)
    logits = []
    features: dict[str, list[Tensor]] = {n: [] for n in names}
    with recording(source.model, names) as seen:
        for part in batches(len(images), BATCH):
            progress("source features", part.start, len(images))
            z = source.model(normalize(images[part].to(device), source.ref.preprocessing))
            logits.append(z)
            for n in names:
                features[n].append(seen[n])
    progress("source features", len(images), len(images))
    return torch.cat(logits), {n: torch.cat(f) for n, f in features.items()}
