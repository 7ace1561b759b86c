"""A clone in a file of its own: adapter, module and join, with their manifest.

Tensors are named ``adapter.*``, ``module.*`` and ``join.*``; the one metadata key holds the
manifest.  The same manifest lies beside the file as ``<stem>.json`` for people and ``jq``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, UsageError
from ..manifest import MAX_DOCUMENT, Manifest, canonical_json, parse
from .atomic import Outputs
from .bounded import read_bounded
from .digest import TensorDigest, combined_sha256, read_span
from .finite import all_finite
from .header import TensorEntry, format_header, read_header
from .layout import lay_out
from .sound import check_sound

MANIFEST_KEY = "pnc.manifest"
TARGET_HEADER_KEY = "pnc.target_header"  # only patched checkpoints have it
ENDING = ".safetensors"
PARTS = ("adapter.", "module.", "join.")  # one of them begins each tensor's name


@dataclass(frozen=True)
class Clone:
    """A clone's tensors, wherever they lie: in a clone file, or in a patched checkpoint."""

    manifest: Manifest
    path: Path
    data_start: int
    tensors: dict[str, TensorEntry]  # adapter.*, module.*, join.*
    prefix: str = ""  # in front of the tensors' names in that file

    @property
    def name(self) -> str:
        return self.manifest.name


def open_clone(path: Path) -> Clone:
    """Opens a clone file; its manifest, its sidecar and its tensors must agree.

    Raises ``BadInput``.  The tensors' bytes are checked by :func:`verify_clone`.
    """
    header = read_header(path)
    metadata = header.metadata or {}
    if MANIFEST_KEY not in metadata:
        raise BadInput(
            f"{path}: is not a clone: no '{MANIFEST_KEY}' in its metadata",
            hint="pnc clone makes one; pnc info FILE says what a file is",
        )
    if TARGET_HEADER_KEY in metadata:
        raise BadInput(
            f"{path}: is a patched checkpoint, not a clone", hint="give the clone's own file"
        )
    if strangers := [n for n in header.tensors if not n.startswith(PARTS)]:
        raise BadInput(f"{path}: tensor '{strangers[0]}' belongs to no part of a clone")
    manifest = parse(metadata[MANIFEST_KEY], Manifest, str(path))
    sidecar = path.with_suffix(".json")
    embedded = metadata[MANIFEST_KEY].encode("utf-8")
    if sidecar.is_file() and (
        sidecar.stat().st_size != len(embedded) or read_bounded(sidecar, len(embedded)) != embedded
    ):
        raise BadInput(
            f"{sidecar}: differs from the manifest inside {path.name}",
            hint=f"the embedded one is the truth: remove {sidecar.name}",
        )
    check_sound(manifest, header.tensors, path)
    return Clone(manifest, path, header.data_start, header.tensors)


@dataclass(frozen=True)
class RawTensor:
    """A tensor as bytes: safetensors dtype name, shape, little-endian row-major data."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def digest(self) -> TensorDigest:
        return TensorDigest(self.dtype, self.shape, hashlib.sha256(self.data).hexdigest())


def raw_sha256(tensors: Mapping[str, RawTensor]) -> str:
    """The digest that a clone's manifest holds of its ``tensors``."""
    return combined_sha256({n: t.digest() for n, t in tensors.items()})


def check_finite(name: str, tensors: Mapping[str, RawTensor]) -> None:
    """Raises ``BadInput`` naming the first of a new clone's ``tensors`` that is not all numbers."""
    for tensor, raw in tensors.items():
        if not all_finite(raw.dtype, raw.data):
            raise BadInput(
                f"clone '{name}': its tensor '{tensor}' came out with numbers that are not finite",
                hint="look at what source and target say of the images: pnc eval",
            )


def verify_clone(clone: Clone) -> None:
    """Checks the tensors' bytes against the manifest, and that all are finite; raises ``BadInput``."""
    for _ in verified_data(clone, list(clone.tensors)):
        pass


def verified_data(clone: Clone, names: Iterable[str]) -> Iterator[bytes]:
    """Yields the data of all tensors in the order of ``names``; ``BadInput`` where a number is not finite
    or, at the end, where they are not those of the manifest."""
    digests = {}
    with open(clone.path, "rb") as source:
        for name in names:
            t, h = clone.tensors[name], hashlib.sha256()
            for chunk in read_span(source, clone.data_start + t.start, t.size, clone.path):
                if not all_finite(t.dtype, chunk):
                    raise BadInput(
                        f"{clone.path}: clone '{clone.name}': tensor '{name}' has numbers that are "
                        "not finite",
                        hint="it would answer nothing: make the clone again",
                    )
                h.update(chunk)
                yield chunk
            digests[name] = TensorDigest(t.dtype, t.shape, h.hexdigest())
    if combined_sha256(digests) != clone.manifest.tensors_sha256:
        raise corrupt(clone)


def corrupt(clone: Clone) -> BadInput:
    return BadInput(
        f"{clone.path}: clone '{clone.name}' is corrupt: its tensors are not those of its manifest",
        hint="fetch or make the clone again",
    )


def write_clone(
    output: Path,
    manifest: Manifest,
    tensors: Mapping[str, RawTensor],
    *,
    force: bool = False,
) -> None:
    """Writes a clone and its sidecar, both or neither."""
    entries = lay_out(
        {n: TensorEntry(t.dtype, t.shape, 0, len(t.data)) for n, t in tensors.items()}
    )
    document = canonical_json(manifest.sealed())
    parse(document, Manifest, str(output))  # what could not be read again is not written
    check_sound(manifest, entries, output)
    sidecar = sidecar_of(output)
    with Outputs(force=force) as outputs:
        f = outputs.open(output)
        f.write(format_header(entries, {MANIFEST_KEY: document.decode("utf-8")}))
        for name in entries:
            f.write(tensors[name].data)
        outputs.open(sidecar, beside=output).write(document)


def check_ending(path: Path) -> None:
    """What is in safetensors format is called so: by the ending, others choose how to read a file.

    Raises ``UsageError``.
    """
    if str(path) != "-" and path.suffix != ENDING:
        raise UsageError(
            f"{path}: is not called {ENDING}, which is the format it would be in",
            hint=f"-o {path.with_suffix(ENDING) if path.name else 'out' + ENDING}",
        )


def sidecar_of(path: Path) -> Path:
    """``<stem>.json`` beside ``path``.  Raises ``UsageError`` if that is a file not of ours, or if
    ``path`` has another ending than ``.safetensors``."""
    check_ending(path)
    sidecar = path.with_suffix(".json")
    if sidecar.is_file() and not is_ours(sidecar):
        raise UsageError(
            f"{sidecar}: exists and is not a manifest of pnc's; it would be replaced",
            hint="choose another -o, or move that file away",
        )
    return sidecar


def is_ours(document: Path) -> bool:
    """Whether a document is one that pnc wrote, as far as its text tells."""
    if document.stat().st_size > MAX_DOCUMENT:
        return False
    return b'"schema": "pnc.' in read_bounded(document, MAX_DOCUMENT)
