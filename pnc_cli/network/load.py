"""From a checkpoint file to the timm network in it, built safely and loaded strictly.

Nothing is fetched, unpickled or imported because a file says so: the architecture must be a plain
name in timm's registry, and every tensor of the file must find its parameter or be one that timm
passes over too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from ..errors import BadInput, Incompatible, OutOfMemory, UsageError, in_words
from ..files.digest import TensorDigest, combined_sha256, read_digested
from ..files.identity import Identity, resolve_identity
from ..files.opened import Checkpoint, open_checkpoint
from ..manifest import NetworkRef, Preprocessing
from .architecture import (
    Architecture,
    assumed,
    class_count,
    described,
    input_size,
    preprocessing,
    resolve,
)
from .blank import without_filling, without_memory
from .bounds import LARGEST, Bounds, TooLarge, bounded
from .finite import check_weights
from .fitting import check_answers, passed_over, remark
from .head import classifier_names
from .registry import recognise
from .tensors import places, torch_dtype

SOURCE = "--source-arch"  # the flag of a network that clones are taken from


@dataclass(frozen=True)
class Network:
    """A classifier of a checkpoint file: frozen, in eval mode, with what describes it."""

    path: Path
    model: nn.Module
    ref: NetworkRef
    digests: dict[str, TensorDigest]
    classifier: tuple[str, ...]  # the module(s) whose input are the pre-logits
    remarks: tuple[str, ...] = ()  # what was assumed of the file or passed over in it

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

    ``what`` is the flag that names the architecture, for the error that asks for it; labels of a
    source may stand twice.
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
    known = resolve(path, identity)
    model, classes, how = _build(path, checkpoint, known, identity)
    digests, sha256, extra = _load_strictly(checkpoint, model, identity)
    if patched is None and what != SOURCE:
        check_distinct(path, identity.label_names or ())
    check_answers(path, model, classes, how.input_size)
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
        architecture=known.name,
        model_args=identity.model_args,
        num_classes=classes,
        label_names=list(identity.label_names or map(str, range(classes))),
        preprocessing=how,
        file_sha256=sha256,
        tensors_sha256=combined,
        tensor_prefix=checkpoint.prefix,
    )
    remarks = [*assumed(path, known, identity, how), *remark(path, known.name, extra)]
    return Network(path, model.to(device), ref, digests, classifier_names(model), tuple(remarks))


def build_architecture(ref: NetworkRef) -> nn.Module:
    """The architecture of ``ref``, frozen, in eval mode; its weights have no values yet."""
    with without_filling(), bounded("the manifest", LARGEST):
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


def _build(
    path: Path, checkpoint: Checkpoint, known: Architecture, identity: Identity
) -> tuple[nn.Module, int, Preprocessing]:
    """The model that these tensors are to fill, how many classes it has, and its preprocessing."""
    weights, name = checkpoint.weights, known.name
    classes = class_count(path, weights, identity, known.cfg)
    size = input_size(path, weights, identity, known.cfg)
    numbers = sum(math.prod(t.shape) for t in weights.values())
    most = Bounds.of_file(len(weights), numbers)
    _check_shapes(checkpoint, name, identity, classes, size, most)
    with without_filling(), bounded(str(path), most):
        model = _create(str(path), name, classes, size, identity.model_args)
    own = cast(dict[str, Any], model.pretrained_cfg)
    view = {**(known.cfg if known.tag else own), **identity.preprocessing}
    how = preprocessing(view, size)
    cfg = described(own, how, classes)
    for attribute in ("pretrained_cfg", "default_cfg"):
        setattr(model, attribute, cfg)
    return model, classes, Preprocessing(**how)


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
        if (lacking := OutOfMemory.of(e)) is not None:
            raise lacking from e
        raise BadInput(
            f"{where}: timm cannot build '{name}' with model_args {args}: {in_words(e)}",
            hint="model_args must be arguments of that architecture in timm",
        ) from e


def _check_shapes(
    checkpoint: Checkpoint,
    name: str,
    identity: Identity,
    classes: int,
    size: tuple[int, int, int],
    most: Bounds,
) -> None:
    """Compares the file with the architecture before memory is spent on it."""
    try:
        with without_memory(), bounded(str(checkpoint.path), replace(most, numbers=None)):
            model = _create(str(checkpoint.path), name, classes, size, identity.model_args)
    except TooLarge:
        raise
    except (NotImplementedError, BadInput):  # with memory it may work: older timms compute here
        return
    passed_over(checkpoint, model, identity)


def _load_strictly(
    checkpoint: Checkpoint, model: nn.Module, identity: Identity
) -> tuple[dict[str, TensorDigest], str, list[str]]:
    """Reads all the tensors, each into its parameter or buffer, and freezes the model.

    Returns their digests, that of the target's own file, and which have no part in the network.
    """
    path, weights, state = checkpoint.path, checkpoint.weights, model.state_dict()
    extra = passed_over(checkpoint, model, identity)
    dtypes = {n: torch_dtype(path, n, t) for n, t in weights.items()}
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name in dtypes and not dtypes[name].is_floating_point:
            kind = str(dtypes[name]).removeprefix("torch.")
            raise BadInput(
                f"{path}: tensor '{name}' holds {kind} numbers, expected floating-point ones",
                hint="quantised checkpoints cannot be read; give the one it was made from",
            )
    # of names that share a tensor the last in the file counts
    last = {t.data_ptr(): n for n, t in state.items() if n in weights}

    def where(name: str) -> Iterator[memoryview]:
        if name in extra:  # it counts for what the file is alone
            return places(torch.empty(weights[name].shape, dtype=dtypes[name]), dtypes[name])
        tensor = state[name]
        mine = last[tensor.data_ptr()] == name
        return places(tensor if mine else torch.empty_like(tensor), dtypes[name])

    digests, sha256 = read_digested(
        path, checkpoint.header, checkpoint.target, checkpoint.names, where
    )
    check_weights(path, checkpoint.prefix, state)
    model.eval().requires_grad_(False)
    return digests, sha256, extra


def check_distinct(where: object, labels: Sequence[str]) -> None:
    """Raises ``BadInput`` for a label of two classes: no image of theirs could be told right."""
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        if label in seen:
            raise BadInput(
                f"{where}: classes {seen[label]} and {index} are both called '{label}'",
                hint="give each class a name of its own, in label_names of the document beside the "
                f"checkpoint: '{label}' and '{label}_2'",
            )
        seen[label] = index
