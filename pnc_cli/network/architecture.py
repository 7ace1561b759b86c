"""What timm knows of an architecture: its name today, how its images are prepared, where its classes are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import _registry, get_pretrained_cfg, list_pretrained

from ..errors import BadInput
from ..files.header import TensorEntry
from ..files.identity import Identity
from ..manifest import Preprocessing

Weights = Mapping[str, TensorEntry]  # a checkpoint's tensors by their names in the network
VIEW = ("input_size", "interpolation", "crop_pct", "mean", "std")  # what makes the picture
STRUCTURE = ("architecture", "first_conv", "classifier", "fixed_input_size", "min_input_size")


@dataclass(frozen=True)
class Architecture:
    """A name of timm's registry, with the weights of timm's own (``tag``) that it is described by.

    ``cfg`` is timm's configuration of these; ``tag`` is empty where no document names any.
    """

    name: str
    tag: str
    cfg: dict[str, Any]


def resolve(path: Path, identity: Identity) -> Architecture:
    """The architecture in timm's words of today.

    Raises ``BadInput`` if this timm has none of that name, or no weights of that tag and no
    document says how their images are prepared.
    """
    name, tag = identity.architecture or "", identity.tag  # never empty: it is resolved
    deprecated = _registry._deprecated_models  # some timms have no public name for it
    if name in deprecated:
        current = deprecated[name]
        if current is None:
            raise BadInput(
                f"{path}: timm {timm.__version__} has no architecture '{name}' any more "
                f"(from {identity.origin}), and none in its place"
            )
        name, _, its_tag = current.partition(".")
        tag = tag or its_tag
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models())
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them all"
        raise BadInput(
            f"{path}: timm {timm.__version__} has no architecture '{name}' (from {identity.origin})",
            hint=hint,
        )
    default = get_pretrained_cfg(name, allow_unregistered=True)
    tagged = _of_tag(name, tag) if tag else None
    if tagged is not None:
        return Architecture(name, tag, tagged)
    if tag and not all(k in identity.preprocessing for k in VIEW):
        raise _no_such_tag(path, name, tag, identity)
    return Architecture(name, "", default.to_dict() if default else {})


def _of_tag(name: str, tag: str) -> dict[str, Any] | None:
    try:
        cfg = get_pretrained_cfg(f"{name}.{tag}", allow_unregistered=False)
    except (RuntimeError, KeyError):  # what timm raises for a tag that it has not
        return None
    return cfg.to_dict() if cfg else None


def _no_such_tag(path: Path, name: str, tag: str, identity: Identity) -> BadInput:
    tags = [n.partition(".")[2] for n in list_pretrained(f"{name}.*")]
    near = difflib.get_close_matches(tag, tags, n=3, cutoff=0.4) or tags[:3]
    missing = ", ".join(k for k in VIEW if k not in identity.preprocessing)
    return BadInput(
        f"{path}: timm {timm.__version__} has no weights '{name}.{tag}' (from "
        f"{identity.origin}), and nothing else says how their images are prepared ({missing})",
        hint=(f"did you mean {', '.join(f'{name}.{t}' for t in near)}? " if near else "")
        + f"{name} alone takes timm's default; or write pretrained_cfg with {missing} in "
        f"{path.with_suffix('.json').name}",
    )


def assumed(path: Path, found: Architecture, identity: Identity, how: Preprocessing) -> list[str]:
    """A sentence on the preprocessing where no document says it, and no tag."""
    said = {*identity.preprocessing, *(["input_size"] if "img_size" in identity.model_args else [])}
    missing = [k for k in VIEW if k not in said]
    if not missing or found.tag:
        return []
    tag = found.cfg.get("tag")
    values = ", ".join(f"{k} {_short(getattr(how, k))}" for k in missing)
    return [
        f"{path.name}: nothing says its {', '.join(missing)}; assumed as in timm's "
        f"{found.name}{f'.{tag}' if tag else ''}: {values}"
    ]


def _short(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value)) if type(value[0]) is int else str([*value])
    return f"{value:g}" if isinstance(value, float) else str(value)


def class_count(path: Path, weights: Weights, identity: Identity, cfg: dict) -> int:
    """Rows of the classifier's weight; the documents must agree with it.

    Raises ``BadInput`` where they do not, where nothing says it, and for one logit alone.
    """
    heads = _names(cfg.get("classifier"))
    found = None
    for head in heads:
        if (weight := weights.get(f"{head}.weight")) is not None and weight.shape:
            found = weight.shape[0]
            break
    stated = {
        "num_classes": identity.num_classes,
        "label_names": None if identity.label_names is None else len(identity.label_names),
    }
    for key, count in stated.items():
        if found is not None and count is not None and count != found:
            raise BadInput(
                f"{path}: classifier '{head}' has {found} classes, but {key} says {count}",
                hint="correct the document beside the checkpoint",
            )
    count = found or stated["num_classes"] or stated["label_names"]
    if count is None:
        wanted = ", ".join(f"'{h}.weight'" for h in heads) or "a classifier"
        raise BadInput(
            f"{path}: no class count: a {identity.architecture} has its classes in {wanted}, "
            "which this file has not",
            hint="is the architecture right? num_classes in the document beside it would do too",
        )
    if count == 1:
        raise BadInput(
            f"{path}: the classifier has one logit: that is a yes or no above 0, not a class among "
            "classes, and no softmax can weigh it against others",
            hint="train it with two classes and cross-entropy; two logits [0, z] are the same "
            "decision: a row of zeros in front of the classifier's weight and bias",
        )
    return count


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The modules that an entry of timm's configurations names: one, some or none."""
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def input_size(path: Path, weights: Weights, identity: Identity, cfg: dict) -> tuple[int, int, int]:
    """(C, H, W): channels from the first convolution, size from the documents or timm's default.

    Raises ``BadInput`` where model_args state other channels.
    """
    size = list(identity.preprocessing.get("input_size") or cfg.get("input_size") or (3, 224, 224))
    image = identity.model_args.get("img_size")
    if image is not None and "input_size" not in identity.preprocessing:
        size[1:] = [image, image] if isinstance(image, int) else list(image)
    size[0] = identity.in_chans or size[0]
    for name in _names(cfg.get("first_conv")):
        weight = weights.get(f"{name}.weight")
        if weight is not None and len(weight.shape) == 4 and 0 < weight.shape[1] <= 16:
            size[0] = weight.shape[1]  # more channels mean a space-to-depth stem
            if identity.in_chans not in (None, size[0]):
                raise BadInput(
                    f"{path}: '{name}' reads {size[0]} channels, but in_chans in model_args says "
                    f"{identity.in_chans}",
                    hint="correct the document beside the checkpoint",
                )
    return size[0], size[1], size[2]


def preprocessing(cfg: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
    """The fields of ``Preprocessing``; a mean and a deviation for each of the images' channels."""
    resolved = resolve_data_config({}, pretrained_cfg=cfg)
    resolved["input_size"] = size
    for key in ("mean", "std"):
        values = [float(v) for v in resolved[key]]
        if len(values) != size[0]:
            values = [sum(values) / len(values)] * size[0]
        resolved[key] = values
    resolved["crop_pct"] = float(resolved["crop_pct"])
    return {k: resolved[k] for k in Preprocessing.__struct_fields__}


def described(own: dict[str, Any], how: dict[str, Any], classes: int) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of a user's weights: how the network is built and read.

    Where timm's own weights come from, their licence and the size they were tested at are not
    these weights'.
    """
    kept = {k: own[k] for k in STRUCTURE if own.get(k) is not None}
    if own.get("pool_size") and tuple(own.get("input_size", ())) == tuple(how["input_size"]):
        kept["pool_size"] = own["pool_size"]
    return {**kept, **how, "num_classes": classes}
