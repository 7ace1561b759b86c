"""One small network of a family, as target and as source, with real weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .pair import run_pair
from .small import Small, save_network, smallest_size
from .structure import Structure

PARTNER = Small("test_resnet", 32)  # the other network of each pair
SMALLER = {  # families without a small network, made small
    "beit": {"depth": 3, "embed_dim": 96, "num_heads": 3},
    "davit": {"embed_dims": [32, 64, 128, 256], "num_heads": [1, 2, 4, 8]},
    "deepseek_vit": {"depth": 2},
    "gemma4_vit": {"depth": 3},
    "hiera": {"embed_dim": 24},
    "hieradet_sam2": {"embed_dim": 24},
    "naflexvit": {"depth": 3, "embed_dim": 96, "num_heads": 3},
    "qwen3_vit": {"depth": 3},
    "swin_transformer": {"embed_dim": 24},
    "swin_transformer_v2": {"embed_dim": 24},
    "swin_transformer_v2_cr": {"embed_dim": 24},
    "twins": {"embed_dims": [16, 32, 64, 128], "num_heads": [1, 2, 4, 8]},
    "vgg": {"mlp_ratio": 0.02},
    "vision_transformer_hybrid": {"depth": 2},
    "vision_transformer_sam": {
        "depth": 4,
        "embed_dim": 96,
        "num_heads": 3,
        "global_attn_indexes": [1, 3],
    },
}


@dataclass(frozen=True)
class Family:
    """What one small network of a model file did.  "yes", or what went wrong."""

    family: str
    model: str
    size: int = 0
    parameters: int = 0
    taps: int = 0  # each of which was recorded
    cut: str = "-"  # the middle one, where it was cut as a source
    target: str = "yes"
    source: str = "yes"
    seconds: float = 0.0


def smallest(structures: Sequence[Structure], family: str) -> Small:
    """The network of ``family`` with the fewest parameters that is a classifier."""
    able = [s for s in structures if s.family == family and s.target == "yes"]
    name = min(able, key=lambda s: s.parameters).name
    args = SMALLER.get(family, {})
    return Small(name, smallest_size(name, **args), args)


def run_family(structures: Sequence[Structure], family: str) -> Family:
    """Clones from a network of ``family`` and into it; never raises."""
    try:
        small = smallest(structures, family)
    except Exception as e:
        return Family(family, "-", target=_reason(e), source=_reason(e))
    start = time.process_time()
    found: dict = {"family": family, "model": str(small), "size": small.size}
    with tempfile.TemporaryDirectory() as folder:
        try:
            ours = save_network(small, Path(folder, f"{family}.safetensors"))
            partner = save_network(PARTNER, Path(folder, "partner.safetensors"), seed=1)
        except Exception as e:
            return Family(**found, target=_reason(e), source=_reason(e))
        found["parameters"] = ours.stat().st_size // 4
        for role, pair in (("target", (partner, ours)), ("source", (ours, partner))):
            try:
                made = run_pair(*pair, Path(folder))
                found |= {"taps": made.taps} if role == "target" else {"cut": made.cut}
            except Exception as e:
                found[role] = _reason(e)
    return Family(**found, seconds=round(time.process_time() - start, 1))


def _reason(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:300]
