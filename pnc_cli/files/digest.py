"""sha256 of files and of tensors, in constant memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import BadInput
from .header import Header

CHUNK = 1 << 20


def read_span(f: BinaryIO, start: int, size: int, where: object) -> Iterator[bytes]:
    """Yields ``size`` bytes from ``start`` in chunks; ``BadInput`` if the file ends before."""
    f.seek(start)
    while size:
        chunk = f.read(min(CHUNK, size))
        if not chunk:
            raise BadInput(f"{where}: the file ended {size:,} bytes early while it was read")
        size -= len(chunk)
        yield chunk


def file_sha256(path: Path) -> str:
    try:
        with open(path, "rb") as f:
            h = hashlib.sha256()
            while chunk := f.read(CHUNK):
                h.update(chunk)
            return h.hexdigest()
    except OSError as e:
        raise BadInput(f"{path}: cannot be read: {e.strerror}") from e


@dataclass(frozen=True)
class TensorDigest:
    """A tensor's type, shape and the sha256 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)} {self.sha256[:16]}"


def tensor_digests(
    path: Path, header: Header, names: dict[str, str] | None = None
) -> dict[str, TensorDigest]:
    """Digests of a file's tensors; ``names`` maps those wanted to the names they are listed under."""
    names = {n: n for n in header.tensors} if names is None else names
    digests = {}
    with open(path, "rb") as f:
        for name, listed in names.items():
            t = header.tensors[name]
            h = hashlib.sha256()
            for chunk in read_span(f, header.data_start + t.start, t.size, path):
                h.update(chunk)
            digests[listed] = TensorDigest(t.dtype, t.shape, h.hexdigest())
    return digests


def combined_sha256(digests: dict[str, TensorDigest]) -> str:
    """One digest over tensors: their names, types, shapes and bytes, whatever their order.

    It is the sha256 of the JSON list of ``[name, dtype, shape, sha256 of the bytes]`` sorted by
    name, so the same weights in another file give the same digest.
    """
    table = sorted([name, d.dtype, list(d.shape), d.sha256] for name, d in digests.items())
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()
