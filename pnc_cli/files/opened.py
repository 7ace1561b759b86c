"""A checkpoint that has been opened: a plain target, or one with clones in it, and whose tensors are whose.

A patched checkpoint is the target's data region verbatim, then the clones' tensors under
``pnc.<clone>.``.  Its header lists both; its metadata keeps the target's own and adds the target
file's header, verbatim, and the patch manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from ..manifest import Patched, parse
from .clone_file import MANIFEST_KEY, TARGET_HEADER_KEY, Clone
from .digest import TensorDigest, read_span, tensor_digests
from .forms import checkpoint_file, name_prefix, own_names
from .header import Header, TensorEntry, parse_header, read_header
from .sound import check_sound

RESERVED = "pnc."  # tensors and metadata keys of ours begin with it


@dataclass(frozen=True)
class Checkpoint:
    """A target, with the clones that have been injected into it (none for a plain file)."""

    path: Path
    header: Header  # of the file
    target: Header  # of the target file; the same object for a plain file
    clones: tuple[Clone, ...]
    target_sha256: str | None  # as recorded in a patched file
    names: dict[str, str]  # of the target's tensors, in the file -> in the network

    @property
    def prefix(self) -> str:
        """What is in front of every tensor's name in the file."""
        return name_prefix(self.names)

    @property
    def weights(self) -> dict[str, TensorEntry]:
        """The target's tensors by the names they have in the network."""
        return {own: self.target.tensors[n] for n, own in self.names.items()}

    def target_digests(self) -> dict[str, TensorDigest]:
        """By the names in the network, so wrapped names do not make it another target."""
        return tensor_digests(self.path, self.header, self.names)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a plain or patched checkpoint, or a folder with one.  Raises ``BadInput``."""
    path = checkpoint_file(path)
    header = read_header(path)
    metadata = header.metadata or {}
    if TARGET_HEADER_KEY not in metadata:
        if MANIFEST_KEY in metadata:
            raise BadInput(
                f"{path}: is a clone, not a checkpoint", hint="give the target's own file"
            )
        for name in [*header.tensors, *metadata]:
            if name.startswith(RESERVED):
                raise BadInput(f"{path}: '{name}' uses the reserved prefix '{RESERVED}'")
        return Checkpoint(path, header, header, (), None, own_names(path, header.tensors))

    where = f"{path} ({TARGET_HEADER_KEY})"
    target = parse_header(metadata[TARGET_HEADER_KEY].encode("utf-8"), where)
    if MANIFEST_KEY not in metadata:
        raise BadInput(f"{path}: a patched checkpoint without '{MANIFEST_KEY}'")
    patched = parse(metadata[MANIFEST_KEY], Patched, str(path))
    own = {n: t for n, t in header.tensors.items() if not n.startswith(RESERVED)}
    if own != target.tensors:
        raise BadInput(
            f"{path}: its tensors are not laid out as in the target file",
            hint="another tool has rewritten it since it was patched; inject into the target again",
        )
    clones, strangers = [], set(header.tensors) - set(own)
    by_clone: dict[str, dict[str, TensorEntry]] = {}
    for n in header.tensors:
        if n.startswith(RESERVED):
            clone, _, inside = n.removeprefix(RESERVED).partition(".")
            by_clone.setdefault(clone, {})[inside] = header.tensors[n]
    for manifest in patched.clones:
        prefix = f"{RESERVED}{manifest.name}."
        ours = dict(by_clone.get(manifest.name, {}))
        strangers -= {prefix + n for n in ours}
        ours.pop("padding", None)
        check_sound(manifest, ours, path)
        clones.append(Clone(manifest, path, header.data_start, ours, prefix))
    if strangers:
        raise BadInput(f"{path}: tensor '{min(strangers)}' belongs to no clone of its manifest")
    if len({c.name for c in clones}) != len(clones):
        raise BadInput(f"{path}: two clones have the same name")
    names = own_names(path, target.tensors)
    return Checkpoint(path, header, target, tuple(clones), patched.target_sha256, names)


def verify_target(checkpoint: Checkpoint) -> None:
    """Checks that the target in a patched checkpoint is what was patched; raises ``BadInput``."""
    if checkpoint.target_sha256 is not None:
        for _ in _target_data(checkpoint, checkpoint.target_sha256):
            pass


def _target_data(checkpoint: Checkpoint, sha256: str) -> Iterator[bytes]:
    """Yields the target's data region; ``BadInput`` unless with its header it is the target file."""
    h = hashlib.sha256(checkpoint.target.raw)
    with open(checkpoint.path, "rb") as source:
        start, size = checkpoint.header.data_start, checkpoint.target.data_size
        for chunk in read_span(source, start, size, checkpoint.path):
            h.update(chunk)
            yield chunk
    if h.hexdigest() != sha256:
        raise BadInput(
            f"{checkpoint.path}: the target in it is not what was patched: "
            f"sha256 {h.hexdigest()[:16]}…, expected {sha256[:16]}…",
            hint="the file was changed or damaged; inject into the original target again",
        )
