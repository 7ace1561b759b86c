"""Small networks of every family, as checkpoint files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from pnc_cli.errors import PncError
from pnc_cli.network.tape import observe

from .structure import CLASSES, blank_network

SIZES = (32, 64, 96, 128, 160, 192, 224, 256)


@dataclass(frozen=True)
class Small:
    """An architecture, made small through ``model_args``, for square images of ``size``."""

    name: str
    size: int
    model_args: dict = field(default_factory=dict)

    def __str__(self) -> str:
        args = ", ".join(f"{k}={v}" for k, v in self.model_args.items())
        return f"{self.name}({args})" if args else self.name


def smallest_size(name: str, **model_args: object) -> int:
    """The smallest of ``SIZES`` that the architecture runs on; its own size where none does."""
    own = timm.models.get_pretrained_cfg(name).input_size[-1]
    for size in (s for s in SIZES if s < own):
        try:
            model = blank_network(name, size, **model_args)
            if tuple(model.pretrained_cfg["input_size"]) == (3, size, size):
                observe(model, (3, size, size))
                return size
        except (PncError, AssertionError, ValueError, RuntimeError, TypeError, ZeroDivisionError):
            continue
    return own


def save_network(small: Small, path: Path, *, seed: int = 0) -> Path:
    """Writes an untrained network, with lively weights, and the document that says what it is."""
    torch.manual_seed(seed)
    size = (3, small.size, small.size)
    model = timm.create_model(
        small.name,
        num_classes=CLASSES,
        pretrained_cfg_overlay={"input_size": size},
        **small.model_args,
    )
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():  # weights that begin as zeros hide what comes before
                value.add_(torch.randn_like(value), alpha=0.02)
    save_file({n: t.clone().contiguous() for n, t in model.state_dict().items()}, path)
    document = {
        "architecture": small.name,
        "num_classes": CLASSES,
        "label_names": [f"{path.stem}-{k}" for k in range(CLASSES)],
        "model_args": small.model_args,
        "pretrained_cfg": {"input_size": list(size), "crop_pct": 1.0},
    }
    path.with_suffix(".json").write_text(json.dumps(document))
    return path
