"""Which classifier is in a checkpoint file?  Answered without torch or timm.

Looked up in this order: the command's own flags; the file's ``__metadata__``; ``<stem>.json``
beside it; ``config.json`` in its folder (timm's layout, or the flat older one).  The first that
names an architecture decides; later ones fill in what is missing, unless they name another
architecture (a folder may hold several checkpoints).  Where none names one, the tensors tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..manifest import check_model_args
from .architectures import Match, Shapes, find
from .bounded import MAX_SIDECAR, read_bounded
from .forms import left_out, own_names, readings
from .header import Header

LABELS = ("label_names", "labels", "id2label")  # timm's of today, its older one, transformers'
PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
NOT_CLASSES = ("multi_label_classification", "regression")  # transformers' words


class UnknownArchitecture(BadInput):
    """Nothing says which architecture it is; no document is broken."""


@dataclass(frozen=True)
class Identity:
    """What is known of a checkpoint's classifier; None or empty where nothing says it."""

    architecture: str | None = None
    tag: str = ""  # behind the architecture's name: resnet18.a1_in1k names weights of timm's
    num_classes: int | None = None
    in_chans: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    origin: str = ""  # what named the architecture
    foreign: str = ""  # what a document says that it is, where that is no network of timm's


def resolve_identity(
    path: Path,
    header: Header,
    *,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    flag: str = "--arch",
    find: Callable[[Shapes], Match] = find,
) -> Identity:
    """What is known of the classifier in ``path``; ``find`` is asked where nothing names it.

    Raises ``BadInput`` for a document that is broken, and where neither the documents nor the
    tensors tell which architecture it is; ``flag`` is the option that would.
    """
    known = Identity()
    if architecture is not None:
        known = _identity({"architecture": architecture}, flag)
    if model_args:
        more = _identity({"model_args": model_args}, "the command's flag")
        known = replace(
            known,
            model_args=more.model_args,
            num_classes=more.num_classes,
            in_chans=more.in_chans,
        )
    known = read_documents(path, header, known)
    if known.architecture is None:
        match = _match(path, header, find)
        if match.chosen is None:
            raise _unknown(path, match, flag, known.foreign)
        known = replace(known, architecture=match.chosen, origin="its tensors")
    return known


def read_documents(path: Path, header: Header, known: Identity | None = None) -> Identity:
    """What the file's metadata and the documents beside it say of it, beyond what is ``known``.

    Raises ``BadInput`` for a document that is broken.
    """
    known = known or Identity()
    for read, own in (
        (lambda: _from_metadata(header, path), True),
        (lambda: _from_json(path.with_suffix(".json")), True),
        (lambda: _from_json(path.parent / "config.json"), False),
    ):
        if (more := read()) is not None:
            known = _merge(known, more, own=own)
    return known


def _match(path: Path, header: Header, find: Callable[[Shapes], Match]) -> Match:
    """What the tensors tell, with and without those that files may lack or have besides."""
    names = own_names(path, header.tensors)
    shapes = {own: header.tensors[n].shape for n, own in names.items()}
    match = Match((), {})
    for have in readings(shapes, left_out(header.metadata, names)):
        match = find(have)
        if match.names or match.near:
            break
    return match


def _unknown(path: Path, match: Match, flag: str, foreign: str) -> BadInput:
    """The error that asks for the architecture, with all that the tensors tell of it."""
    if foreign and not match.names:
        return BadInput(
            f"{path}: {foreign}, not a network of timm's",
            hint="pnc reads timm classifiers, on their own or in transformers' TimmWrapper: make "
            "one with timm.create_model, or with AutoModelForImageClassification of a timm/ name",
        )
    beside = path.with_suffix(".json").name
    document = f'{beside} beside it with {{"architecture": "resnet18", "label_names": [...]}}'
    if match.names:
        listed = "; ".join(
            f"{n} ({', '.join(f'{k} {v}' for k, v in match.traits.get(n, {}).items())})"
            for n in match.names
        )
        return UnknownArchitecture(
            f"{path}: {len(match.names)} timm architectures have just these tensors, "
            f"and nothing says which it is: {listed}",
            hint=f"give {flag} {match.names[0]}, or the one it is; or write {document}",
        )
    if match.near:
        more = f" and {len(match.near) - 5} more" if len(match.near) > 5 else ""
        return UnknownArchitecture(
            f"{path}: nothing says which timm architecture this is; its tensors have the names of "
            f"{', '.join(match.near[:5])}{more}, but other shapes"
            + (f": {match.difference}" if match.difference else ""),
            hint=f"give {flag} {match.near[0]} with its model_args, such as img_size "
            f"({flag.replace('arch', 'args')} where there is one, or model_args in {beside})",
        )
    return UnknownArchitecture(
        f"{path}: nothing says which timm architecture this is, and none has tensors of these names",
        hint=f"is it a timm classifier? then give {flag} NAME, or write {document}",
    )


def _merge(known: Identity, more: Identity, *, own: bool) -> Identity:
    """``known``, filled in.  A document of the file's ``own`` tells its classes, whatever it takes
    the architecture for."""
    if known.architecture and more.architecture not in (None, known.architecture):
        if not own:
            return known
        more = Identity(num_classes=more.num_classes, label_names=more.label_names)
    return Identity(
        architecture=known.architecture or more.architecture,
        tag=known.tag or more.tag,
        num_classes=more.num_classes if known.num_classes is None else known.num_classes,
        in_chans=more.in_chans if known.in_chans is None else known.in_chans,
        model_args=known.model_args or more.model_args,
        label_names=known.label_names or more.label_names,
        preprocessing={**more.preprocessing, **known.preprocessing},
        origin=known.origin or more.origin,
        foreign=known.foreign or more.foreign,
    )


def _from_metadata(header: Header, path: Path) -> Identity | None:
    """Metadata values are strings; those that are not plain words hold JSON."""
    given = header.metadata or {}
    fields: dict[str, Any] = {}
    for key in ("architecture", "num_classes", "model_args", *LABELS, "pretrained_cfg"):
        if key in given:
            text = given[key]
            if len(text) > MAX_SIDECAR:
                raise BadInput(
                    f"{path}: metadata '{key}' has {len(text):,} characters; pnc reads at most "
                    f"{MAX_SIDECAR:,}"
                )
            try:
                fields[key] = text if key == "architecture" else _json(text)
            except (ValueError, RecursionError) as e:
                raise BadInput(f"{path}: metadata '{key}' is not JSON: {e}") from None
    return _identity(fields, "the file's metadata") if fields else None


def _from_json(path: Path) -> Identity | None:
    try:
        text = read_bounded(path, MAX_SIDECAR).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: cannot be read: {e}") from e
    try:
        fields = _json(text)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path}: not valid JSON: {e}") from None
    if not isinstance(fields, dict):
        raise BadInput(f"{path}: expected a JSON object")
    if "schema" in fields:  # a sidecar of pnc's own
        return None
    return _identity(fields, path.name)


def _json(text: str) -> Any:
    """``text`` as JSON proper.  Raises ``ValueError``, also for NaN, which is none."""

    def refuse(value: str) -> None:
        raise ValueError(f"{value} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _identity(fields: dict[str, Any], where: str) -> Identity:
    cfg = fields.get("pretrained_cfg", fields)  # the older layout is flat
    if not isinstance(cfg, dict):
        raise BadInput(f"{where}: 'pretrained_cfg' is not an object")
    architecture, tag = fields.get("architecture", cfg.get("architecture")), ""
    if architecture is not None:
        if not isinstance(architecture, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", architecture):
            raise BadInput(
                f"{where}: architecture {architecture!r} is not a plain timm name",
                hint="names look like resnet18 or vit_tiny_patch16_224",
            )
        architecture, _, tag = architecture.partition(".")  # resnet18.a1_in1k: it names weights
    tag = tag or _plain_tag(cfg)
    args = fields.get("model_args") or {}
    args = dict(args) if isinstance(args, dict) else args
    count = _agreed(fields, cfg, args, where)
    channels = args.pop("in_chans", None) if isinstance(args, dict) else None
    if channels is not None and (type(channels) is not int or channels < 1):
        raise BadInput(f"{where}: in_chans in model_args is {channels!r}, expected a number")
    if (problem := fields.get("problem_type")) in NOT_CLASSES:
        raise BadInput(
            f"{where}: problem_type is {problem}: its outputs are not one softmax over classes",
            hint="pnc clones between classifiers that give each image one class",
        )
    given = ((k, v) for o in (fields, cfg) for k in LABELS if (v := o.get(k)) is not None)
    key, labels = next(given, ("", None))
    return Identity(
        architecture=architecture,
        tag=tag,
        num_classes=count,
        in_chans=channels,
        model_args=check_model_args(args, where),
        label_names=None if labels is None else _labels(labels, where, key),
        preprocessing=_preprocessing(cfg, where),
        origin=where if architecture else "",
        foreign="" if architecture else _foreign(fields, where),
    )


def _plain_tag(cfg: dict[str, Any]) -> str:
    tag = cfg.get("tag")
    return tag if isinstance(tag, str) and re.fullmatch(r"[A-Za-z0-9_.-]*", tag) else ""


def _agreed(fields: dict[str, Any], cfg: dict[str, Any], args: Any, where: str) -> int | None:
    """The number of classes that a document states, once or twice; it is taken from ``args``."""
    stated = {
        "num_classes": fields.get("num_classes", fields.get("num_labels", cfg.get("num_classes"))),
        "num_classes in model_args": args.pop("num_classes", None)
        if isinstance(args, dict)
        else None,
    }
    known = {key: count for key, count in stated.items() if count is not None}
    for key, count in known.items():
        if type(count) is not int or count < 1:
            raise BadInput(f"{where}: {key} is {count!r}, expected a positive number")
    if len(set(known.values())) > 1:
        told = " and ".join(f"{key} is {count}" for key, count in known.items())
        raise BadInput(f"{where}: {told}", hint="correct the document beside the checkpoint")
    return next(iter(known.values()), None)


def _foreign(fields: dict[str, Any], where: str) -> str:
    """What transformers' configurations call other networks than timm's."""
    kind, classes = fields.get("model_type"), fields.get("architectures")
    if not isinstance(kind, str) or kind == "timm_wrapper":
        return ""
    named = f" ({classes[0]})" if isinstance(classes, list) and classes else ""
    return f"{where} says that it is a '{kind}' of transformers{named}"


def _labels(labels: object, where: str, key: str) -> tuple[str, ...]:
    if isinstance(labels, dict):  # {"0": "cat", ...}
        labels = [labels.get(str(i), labels.get(i)) for i in range(len(labels))]
    if not isinstance(labels, list) or not all(isinstance(v, str) and v for v in labels):
        raise BadInput(f"{where}: {key} is not a list of names")
    return tuple(labels)


def _preprocessing(cfg: dict[str, Any], where: str) -> dict[str, Any]:
    found = {k: cfg[k] for k in PREPROCESSING if cfg.get(k) is not None}
    if (size := found.get("input_size")) is not None:
        if not (
            isinstance(size, list)
            and len(size) == 3
            and all(type(v) is int and 0 < v <= 8192 for v in size)
        ):
            raise BadInput(f"{where}: input_size is {size!r}, expected [channels, height, width]")
    for key in ("mean", "std"):
        value = found.get(key)
        if value is not None:
            value = [value] if _is_number(value) else value
            if not (isinstance(value, list) and value and all(map(_is_number, value))):
                raise BadInput(f"{where}: {key} is {value!r}, expected numbers, one a channel")
            if key == "std" and min(value) <= 0:
                raise BadInput(f"{where}: std is {value!r}, expected positive numbers")
            found[key] = value
    if "crop_pct" in found and not (
        type(found["crop_pct"]) in (int, float) and 0 < found["crop_pct"] <= 4
    ):
        raise BadInput(
            f"{where}: crop_pct is {found['crop_pct']!r}, expected a share such as 0.875"
        )
    for key, allowed in (
        (
            "interpolation",
            ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random"),
        ),
        ("crop_mode", ("center", "squash", "border")),
    ):
        if key in found and found[key] not in allowed:
            raise BadInput(
                f"{where}: {key} is {found[key]!r}, expected one of {', '.join(allowed)}"
            )
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
