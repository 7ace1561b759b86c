"""What a file is, in words and as a document, and what is wrong with it; no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..manifest import MAX_DOCUMENT, Manifest, Patched, parse, to_plain
from ..plan import Plan
from .bounded import read_bounded
from .clone_file import MANIFEST_KEY, PARTS, TARGET_HEADER_KEY, open_clone, verify_clone
from .digest import file_sha256
from .forms import checkpoint_file, name_prefix, own_names
from .header import Header, read_header
from .identity import UnknownArchitecture, resolve_identity
from .opened import open_checkpoint, verify_target
from .problems import identity_problems, manifest_problems, patched_problems

DOCUMENTS: dict[str, type[Manifest] | type[Patched] | type[Plan]] = {
    "pnc.clone": Manifest,
    "pnc.patched": Patched,
    "pnc.plan": Plan,
}


@dataclass(frozen=True)
class Description:
    """``problems`` are what is wrong with the file, though it can be read; ``checked`` is whether its
    tensors were held against what it says it is."""

    document: dict[str, Any]
    text: str
    problems: tuple[str, ...] = ()
    checked: bool = False

    @property
    def sound(self) -> bool | None:
        """None where nothing says what the file should be, or that was not looked at."""
        return False if self.problems else True if self.checked else None


def describe(path: Path) -> Description:
    """Reads and checks ``path``.  Raises ``BadInput`` when it is none of ours, or damaged."""
    if path.suffix == ".json" and not path.name.endswith(".safetensors.index.json"):
        return _document(path)
    path = checkpoint_file(path)
    header = read_header(path)
    metadata = header.metadata or {}
    if TARGET_HEADER_KEY in metadata:
        return _patched(path)
    if MANIFEST_KEY in metadata:
        return _clone(path)
    names = header.tensors
    if all(n.startswith(PARTS) for n in names) and any(n.startswith("join.") for n in names):
        raise BadInput(
            f"{path}: a clone's tensors without its manifest ('{MANIFEST_KEY}' in the metadata)",
            hint="the file was rewritten or damaged: fetch or make the clone again",
        )
    return _checkpoint(path, header)


def _document(path: Path) -> Description:
    try:
        text = read_bounded(path, MAX_DOCUMENT)
        fields = json.loads(text)
    except (OSError, ValueError, RecursionError) as e:
        raise BadInput(f"{path}: not a JSON document: {e}") from None
    schema = fields.get("schema") if isinstance(fields, dict) else None
    kind = DOCUMENTS.get(str(schema).partition("/")[0])
    if kind is None:
        raise BadInput(f"{path}: not a document of pnc's: schema is {schema!r}")
    document = parse(text, kind, str(path))
    problems = [] if isinstance(document, Plan) else manifest_problems(path, document)
    beside = path.with_suffix(".safetensors")
    if kind is not Plan and beside.is_file() and _manifest_inside(beside) != text:
        problems.append(f"{path}: differs from the manifest inside {beside.name}")
    return Description(
        {"kind": schema, "document": to_plain(document)},
        f"{path}: a {schema} document",
        tuple(problems),
        checked=True,
    )


def _manifest_inside(path: Path) -> bytes:
    """The manifest in a clone or patched checkpoint, as its sidecar has it; else nothing."""
    metadata = read_header(path).metadata or {}
    return metadata.get(MANIFEST_KEY, "").encode("utf-8")


def _clone(path: Path) -> Description:
    clone = open_clone(path)
    verify_clone(clone)
    m = clone.manifest
    return Description(
        {"kind": "clone", "manifest": to_plain(m)},
        f"{path}: a clone, '{m.name}', of {', '.join(m.labels)}\n{_lines(m)}",
        tuple(manifest_problems(path, m)),
        checked=True,
    )


def _patched(path: Path) -> Description:
    checkpoint = open_checkpoint(path)
    verify_target(checkpoint)
    lines = [f"{path}: a patched checkpoint; its target has sha256 {checkpoint.target_sha256}"]
    for clone in checkpoint.clones:
        verify_clone(clone)
        lines.append(
            f"clone '{clone.name}': {', '.join(clone.manifest.labels)}\n{_lines(clone.manifest)}"
        )
    document = {
        "kind": "patched checkpoint",
        "target_sha256": checkpoint.target_sha256,
        "clones": [to_plain(c.manifest) for c in checkpoint.clones],
    }
    return Description(
        document, "\n".join(lines), tuple(patched_problems(checkpoint)), checked=True
    )


def _checkpoint(path: Path, header: Header) -> Description:
    size = sum(t.size for t in header.tensors.values())
    document: dict[str, Any] = {
        "kind": "checkpoint",
        "tensors": len(header.tensors),
        "bytes": size,
        "dtypes": sorted({t.dtype for t in header.tensors.values()}),
        "sha256": file_sha256(path),
    }
    lines = [f"{path}: a checkpoint, {len(header.tensors)} tensors, {size:,} bytes"]
    problems: list[str] = []
    checked = False
    try:
        names = own_names(path, header.tensors)
        if prefix := name_prefix(names):
            document["tensor_prefix"] = prefix
            lines.append(f"  every tensor's name begins with '{prefix}'")
        known = resolve_identity(path, header)
    except BadInput as e:
        document |= {"architecture": None, "reason": e.message}
        if isinstance(e, UnknownArchitecture):
            lines.append(f"  {e.message}")
        else:
            problems.append(e.message)
    else:
        labels = list(known.label_names or ())
        document |= {
            "architecture": known.architecture,
            "model_args": known.model_args,
            "label_names": labels,
            "named_by": known.origin,
        }
        shown = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
        lines.append(
            f"  {known.architecture} (from {known.origin})" + (f": {shown}" if shown else "")
        )
        shapes = {own: header.tensors[n].shape for n, own in names.items()}
        problems, checked = identity_problems(path, known, shapes)
    return Description(document, "\n".join(lines), tuple(problems), checked)


def _lines(m: Manifest) -> str:
    known = f"  for {m.target.architecture} (tensors {m.target.tensors_sha256[:16]}…): "
    join = f"join {m.join.kind} {m.join.parameters:,} numbers, {m.cost.bytes:,} bytes in all"
    if m.tap is None or m.cut is None or m.adapter is None:
        return f"{known}reads its pre-logits\n  no copied part, {join}"
    return (
        f"{known}reads '{m.tap.position}', then {m.source.architecture} after '{m.cut.position}'\n"
        f"  {len(m.module)} copied tensors, adapter {m.adapter.parameters:,} numbers, {join}"
    )
