"""The structure of any architecture of timm's registry, on shapes alone.

No weights are made: a network of a billion parameters takes as little memory as a small one.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from dataclasses import dataclass
from functools import cache

import timm
import torch
from torch import fx, nn

from pnc_cli.channels.groups import prunable_groups
from pnc_cli.errors import Incompatible
from pnc_cli.network.blank import without_memory
from pnc_cli.network.graph import part_after, trace
from pnc_cli.network.head import classifier_names, cuts, find_head
from pnc_cli.network.position import Position
from pnc_cli.network.tape import observe

CLASSES = 5
SMALL_ENOUGH = 30_000_000  # parameters of a network whose prunable channels are looked for


@dataclass(frozen=True)
class Structure:
    """What an architecture offers.  ``target`` and ``source`` are "yes", or why it is not one."""

    name: str
    family: str  # timm's model file
    parameters: int = 0
    macs: int = 0  # per image
    taps: int = 0
    cuts: int = 0
    prunable: float | None = None  # share of the parameters after the middle cut; None: not looked
    target: str = "yes"
    source: str = "yes"
    seconds: float = 0.0


@cache
def families() -> dict[str, str]:
    """Every architecture of the registry, with its model file."""
    return {
        name: module for module in timm.list_modules() for name in timm.list_models(module=module)
    }


def blank_network(name: str, size: int | None = None, **model_args: object) -> nn.Module:
    """The architecture without weights, for square images of ``size`` (default: its own)."""
    logging.getLogger("timm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    overlay = {"pretrained_cfg_overlay": {"input_size": (3, size, size)}} if size else {}
    with without_memory():
        model = timm.create_model(name, num_classes=CLASSES, **overlay, **model_args)
    return model.eval().requires_grad_(False)


def describe(name: str) -> Structure:
    """Builds, taps and cuts ``name`` at its own image size; never raises."""
    start, found = time.process_time(), {"name": name, "family": families()[name]}
    try:
        _describe(name, found)
    except Exception as e:  # the report lists what fails, whatever it is
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        found.setdefault("target", reason)
        found.setdefault("source", reason)
    return Structure(**found, seconds=round(time.process_time() - start, 2))


def _describe(name: str, found: dict) -> None:
    model = blank_network(name)
    size = tuple(model.pretrained_cfg["input_size"])
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if (classifier := classifier_names(model)) == ():
        raise ValueError("has no classifier: timm builds an encoder of features")
    seen = observe(model, size)
    found |= {"macs": sum(seen.macs.values()), "taps": len(seen.positions), "target": "yes"}
    try:
        traced = trace(model, size, seen)
    except Incompatible as e:
        found["source"] = e.message
        return
    head = find_head(traced, classifier)
    possible = cuts(traced, head)
    part = part_after(traced, middle(possible), [head.pre, head.logits])
    found |= {"cuts": len(possible), "source": "yes"}
    if found["parameters"] < SMALL_ENOUGH:
        example = torch.zeros(2, *middle(possible).layout.shape, device="meta")
        found["prunable"] = prunable_share(part, example)


def middle(positions: list[Position]) -> Position:
    """The position nearest to half of the network's work."""
    return min(positions, key=lambda p: abs(p.depth - 0.5))


def prunable_share(part: fx.GraphModule, example: torch.Tensor) -> float:
    """The share of the parameters of ``part`` that go when all its prunable channels do."""
    shapes = {n: p.shape for n, p in part.named_parameters()}
    stays = {n: [1.0] * len(shape) for n, shape in shapes.items()}
    for group in prunable_groups(part, example):
        for (tensor, axis), indices in group.sites.items():
            if tensor in shapes:
                stays[tensor][axis] -= indices.size / shapes[tensor][axis]
    left = sum(shape.numel() * math.prod(stays[n]) for n, shape in shapes.items())
    return round(1 - left / max(sum(shape.numel() for shape in shapes.values()), 1), 3)
