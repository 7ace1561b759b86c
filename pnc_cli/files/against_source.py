"""Whether a clone's copied tensors are the source's: what anybody with the source can check.

Every tensor of the module is an exact slice of a source tensor, by the indices that the manifest
holds; here each is cut out of the source's file again and compared, byte for byte.  No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import Incompatible, UsageError
from .clone_file import Clone, open_clone
from .describe import Description
from .digest import combined_sha256, read_span
from .header import DTYPE_BITS, TensorEntry
from .opened import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Verified:
    """What was compared."""

    tensors: int
    bytes: int
    same_source: bool  # whether the source is, tensor for tensor, the one the manifest names


def verify_source(clone: Clone, source: Checkpoint) -> Verified:
    """Compares the copied tensors of ``clone`` with the ``source`` they are said to be of.

    Raises ``Incompatible`` naming the first tensor that is not the source's slice.  A source whose
    other tensors differ from the manifest's is told by ``same_source``.
    """
    total, weights = 0, source.weights
    for name, slices in clone.manifest.module.items():
        entry = clone.tensors[f"module.{name}"]
        if name not in weights:
            raise _differs(clone, source, name, "the source has no such tensor")
        of_source = weights[name]
        if of_source.dtype != entry.dtype:
            kinds = f"{entry.dtype}, in the source {of_source.dtype}"
            raise _differs(clone, source, name, f"it is {kinds}")
        kept = {k.axis: k.indices for k in slices.kept}
        for axis, indices in kept.items():
            if axis >= len(of_source.shape) or max(indices) >= of_source.shape[axis]:
                shape = list(of_source.shape)
                raise _differs(clone, source, name, f"indices are kept beyond the source's {shape}")
        whole = _bytes(source.path, source.header.data_start, of_source)
        width = DTYPE_BITS[entry.dtype] // 8
        if b"".join(_sliced(whole, of_source.shape, width, kept)) != _bytes(
            clone.path, clone.data_start, entry
        ):
            raise _differs(clone, source, name, "its bytes are not the source's")
        total += entry.size
    sha256 = combined_sha256(source.target_digests())
    same = sha256 == clone.manifest.source.tensors_sha256
    return Verified(len(clone.manifest.module), total, same)


def held_against_source(found: Description, path: Path, source: Path) -> Description:
    """``found`` with what the copied tensors of the clone, or clones, in ``path`` are beside ``source``.

    Raises ``Incompatible`` where one is not the source's slice, ``UsageError`` for a file without
    clones.
    """
    kind = found.document["kind"]
    if kind not in ("clone", "patched checkpoint"):
        raise UsageError(
            f"{path}: --source is for clones and patched checkpoints", hint=f"pnc info {path}"
        )
    clones = [open_clone(path)] if kind == "clone" else open_checkpoint(path).clones
    checkpoint, lines, copied = open_checkpoint(source), [found.text], []
    for clone in clones:
        verified = verify_source(clone, checkpoint)
        copied.append({"clone": clone.name, **asdict(verified)})
        count = f"{verified.tensors} tensors, {verified.bytes:,} bytes"
        lines.append(f"clone '{clone.name}': {count}, all of them slices of {source}")
        if not verified.same_source:
            lines.append("  other tensors of that file are not those that the manifest names")
    return replace(found, document={**found.document, "copied": copied}, text="\n".join(lines))


def _differs(clone: Clone, source: Checkpoint, name: str, why: str) -> Incompatible:
    return Incompatible(
        f"{clone.path}: clone '{clone.name}': 'module.{name}' is not copied from {source.path}: {why}",
        hint=f"its manifest names a {clone.manifest.source.architecture} with sha256 "
        f"{clone.manifest.source.file_sha256[:16]}…: give that file to --source, or do not use the clone",
    )


def _bytes(path: Path, data_start: int, entry: TensorEntry) -> bytes:
    with open(path, "rb") as f:
        return b"".join(read_span(f, data_start + entry.start, entry.size, path))


def _sliced(
    data: bytes, shape: Sequence[int], width: int, kept: Mapping[int, Sequence[int]]
) -> Iterator[memoryview]:
    """The bytes of a row-major tensor of which some indices of some axes are ``kept``, in pieces."""

    def pieces(part: memoryview, axis: int) -> Iterator[memoryview]:
        if all(a < axis for a in kept):
            yield part
            return
        step = width * math.prod(shape[axis + 1 :])
        for i in kept.get(axis, range(shape[axis])):
            yield from pieces(part[i * step : (i + 1) * step], axis + 1)

    return pieces(memoryview(data), 0)
