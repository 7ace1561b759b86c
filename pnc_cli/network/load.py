"""From a checkpoint file to the timm network in it, built safely and loaded strictly.

Nothing is fetched, unpickled or imported because a file says so: the architecture must be a plain
name in timm's registry, and every tensor of the file must find its parameter.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from ..errors import BadInput, Incompatible, UsageError, in_words
from ..files.digest import TensorDigest, combined_sha256, read_digested
from ..files.header import TensorEntry
from ..files.identity import Identity, resolve_identity
from ..files.opened import Checkpoint, open_checkpoint
from ..manifest import NetworkRef, Preprocessing
from .blank import without_filling, without_memory
from .head import classifier_names
from .registry import recognise
from .tensors import places, torch_dtype

Weights = Mapping[str, TensorEntry]  # a checkpoint's tensors by their names in the network


@dataclass(frozen=True)
class Network:
    """A classifier of a checkpoint file: frozen, in eval mode, with what describes it."""

    path: Path
    model: nn.Module
    ref: NetworkRef
    digests: dict[str, TensorDigest]
    classifier: tuple[str, ...]  # the module(s) whose input are the pre-logits

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.ref.preprocessing.input_size

    @property
    def labels(self) -> list[str]:
        return self.ref.label_names

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def check_device(name: str) -> torch.device:
    """The device called ``name``.  Raises ``UsageError`` if this machine has not got it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        first = str(e).splitlines()[0]
        raise UsageError(
            f"--device {name}: {first}", hint="--device cpu works everywhere"
        ) from None
    return device


def load_network(
    path: Path,
    *,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    what: str = "--arch",
    device: torch.device | str = "cpu",
) -> Network:
    """Loads the classifier of a checkpoint; of a patched one, the target in it.

    The file is read once, into the network's own memory.  Mapping it there instead would make
    weights of what others write into the file later, and their place in memory, on which the last
    bits of a matrix product depend, that in the file: another one in a patched checkpoint.

    ``what`` is the flag that names the architecture, for the error that asks for it.
    Raises ``BadInput`` for a file that is corrupt or does not hold what it says.
    """
    checkpoint = open_checkpoint(path)
    path = checkpoint.path
    patched = checkpoint.clones[0].manifest.target if checkpoint.clones else None
    if patched is not None:
        identity = _identity(patched)
    else:
        identity = resolve_identity(
            path,
            checkpoint.header,
            architecture=architecture,
            model_args=model_args,
            flag=what,
            find=recognise,
        )
    name = _architecture(path, identity)
    model, classes, preprocessing = _build(path, checkpoint.weights, name, identity)
    digests, sha256 = _load_strictly(checkpoint, model, identity)
    combined = combined_sha256(digests)
    if patched is not None and (combined, sha256) != (
        patched.tensors_sha256,
        checkpoint.target_sha256,
    ):
        raise BadInput(
            f"{path}: the target in it is not what was patched: its tensors are not those of its manifest",
            hint="the file was changed or damaged; inject into the original target again",
        )
    ref = NetworkRef(
        architecture=name,
        model_args=identity.model_args,
        num_classes=classes,
        label_names=list(identity.label_names or map(str, range(classes))),
        preprocessing=preprocessing,
        file_sha256=sha256,
        tensors_sha256=combined,
        tensor_prefix=checkpoint.prefix,
    )
    return Network(path, model.to(device), ref, digests, classifier_names(model))


def build_architecture(ref: NetworkRef) -> nn.Module:
    """The architecture of ``ref``, frozen, in eval mode; its weights have no values yet."""
    with without_filling():
        model = _create(
            "the manifest",
            ref.architecture,
            ref.num_classes,
            ref.preprocessing.input_size,
            ref.model_args,
        )
    return model.eval().requires_grad_(False)


def _identity(ref: NetworkRef) -> Identity:
    """What a manifest says of its target."""
    return Identity(
        architecture=ref.architecture,
        num_classes=ref.num_classes,
        model_args=ref.model_args,
        label_names=tuple(ref.label_names),
        preprocessing={k: getattr(ref.preprocessing, k) for k in Preprocessing.__struct_fields__},
        origin="the patch manifest",
    )


def _architecture(path: Path, identity: Identity) -> str:
    """The architecture's name.  Raises ``BadInput`` if this timm has none of that name."""
    name = identity.architecture or ""  # never empty: the identity is resolved
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models())
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them all"
        raise BadInput(
            f"{path}: timm {timm.__version__} has no architecture '{name}' (from {identity.origin})",
            hint=hint,
        )
    return name


def _build(
    path: Path, weights: Weights, name: str, identity: Identity
) -> tuple[nn.Module, int, Preprocessing]:
    """The model that these tensors are to fill, how many classes it has, and its preprocessing."""
    cfg = get_pretrained_cfg(name, allow_unregistered=True)
    defaults = cfg.to_dict() if cfg else {}
    classes = _class_count(path, weights, identity, defaults)
    size = _input_size(weights, identity, defaults)
    _check_shapes(path, weights, name, identity, classes, size)
    with without_filling():
        model = _create(str(path), name, classes, size, identity.model_args)
    own = cast(dict[str, Any], model.pretrained_cfg)
    preprocessing = _preprocessing({**own, **identity.preprocessing}, size)
    described = {**own, **preprocessing, "num_classes": classes}
    model.pretrained_cfg = described  # type: ignore[assignment]  # torch knows of tensors alone
    return model, classes, Preprocessing(**preprocessing)


def _preprocessing(cfg: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
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


def _create(
    where: str, name: str, classes: int, size: tuple[int, int, int], args: dict[str, Any]
) -> nn.Module:
    """An untrained network; ``where`` its ``args`` come from is named if timm refuses them."""
    if not timm.is_model(name):
        raise Incompatible(
            f"timm {timm.__version__} has no architecture '{name}'", hint="pip install -U timm"
        )
    extra: dict[str, Any] = {"in_chans": size[0]} if size[0] != 3 else {}
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        return timm.create_model(
            name,
            pretrained=False,
            num_classes=classes,
            pretrained_cfg_overlay={"input_size": tuple(size)},
            **extra,
            **args,
        )
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as e:
        raise BadInput(
            f"{where}: timm cannot build '{name}' with model_args {args}: {in_words(e)}",
            hint="model_args must be arguments of that architecture in timm",
        ) from e


def _class_count(path: Path, weights: Weights, identity: Identity, cfg: dict) -> int:
    """Rows of the classifier's weight; the documents must agree with it."""
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
    return count


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The modules that an entry of timm's configurations names: one, some or none."""
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _input_size(weights: Weights, identity: Identity, cfg: dict) -> tuple[int, int, int]:
    """(C, H, W): channels from the first convolution, size from the documents or timm's default."""
    size = list(identity.preprocessing.get("input_size") or cfg.get("input_size") or (3, 224, 224))
    image = identity.model_args.get("img_size")
    if image is not None and "input_size" not in identity.preprocessing:
        size[1:] = [image, image] if isinstance(image, int) else list(image)
    for name in _names(cfg.get("first_conv")):
        weight = weights.get(f"{name}.weight")
        if weight is not None and len(weight.shape) == 4 and 0 < weight.shape[1] <= 16:
            size[0] = weight.shape[1]  # more channels mean a space-to-depth stem
    return tuple(size)


def _check_shapes(
    path: Path,
    weights: Weights,
    name: str,
    identity: Identity,
    classes: int,
    size: tuple[int, int, int],
) -> None:
    """Compares the file with the architecture before memory is spent on it."""
    try:
        with without_memory():
            model = _create(str(path), name, classes, size, identity.model_args)
    except (NotImplementedError, BadInput):  # with memory it may work: older timms compute here
        return
    expected = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    _compare(path, identity, expected, {n: t.shape for n, t in weights.items()})


def _load_strictly(
    checkpoint: Checkpoint, model: nn.Module, identity: Identity
) -> tuple[dict[str, TensorDigest], str]:
    """Reads all the tensors, each into its parameter or buffer, and freezes the model.

    Returns their digests, and that of the target's own file.
    """
    path, weights, state = checkpoint.path, checkpoint.weights, model.state_dict()
    expected = {n: tuple(t.shape) for n, t in state.items()}
    _compare(path, identity, expected, {n: t.shape for n, t in weights.items()})
    dtypes = {n: torch_dtype(path, n, t) for n, t in weights.items()}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not dtypes[name].is_floating_point:
            kind = str(dtypes[name]).removeprefix("torch.")
            raise BadInput(
                f"{path}: tensor '{name}' holds {kind} numbers, expected floating-point ones",
                hint="quantised checkpoints cannot be read; give the one it was made from",
            )
    last = {t.data_ptr(): n for n, t in state.items()}  # of names that share a tensor it counts

    def where(name: str) -> Iterator[memoryview]:
        tensor = state[name]
        mine = last[tensor.data_ptr()] == name
        return places(tensor if mine else torch.empty_like(tensor), dtypes[name])

    read = read_digested(path, checkpoint.header, checkpoint.target, checkpoint.names, where)
    model.eval().requires_grad_(False)
    return read


def _compare(
    path: Path,
    identity: Identity,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Sequence[int]],
) -> None:
    """Raises ``BadInput`` unless the same tensors of the same shapes are expected and found."""

    def refuse(what: str) -> BadInput:
        return BadInput(
            f"{path}: does not hold a {identity.architecture} (as {identity.origin} says): {what}",
            hint="check the architecture and its model_args",
        )

    missing = [n for n in expected if n not in found]
    unexpected = [n for n in found if n not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} tensors {word}, such as '{names[0]}'"
            for names, word in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise refuse("; ".join(parts))
    for n, shape in expected.items():
        if tuple(found[n]) != shape:
            raise refuse(f"tensor '{n}' has shape {list(found[n])}, expected {list(shape)}")
