"""sha256 of files and of tensors, in constant memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from ..errors import BadInput
from .bounded import open_regular
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
        with open_regular(path) as f:
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


Places = Callable[[str], Iterable[memoryview]]


def read_digested(
    path: Path, header: Header, own: Header, names: dict[str, str], places: Places
) -> tuple[dict[str, TensorDigest], str]:
    """Reads tensors into memory, once; returns their digests, and that of the file that is theirs.

    ``own`` is that file's header, ``header`` that of the file where they are.  ``names`` maps all
    of ``own`` to the names they are listed under.  ``places(listed)`` gives the memory for a
    tensor's bytes in pieces; each is full when the next is asked for.  What is digested are the
    bytes in memory, whatever becomes of the file.
    """
    found, file = {}, hashlib.sha256(own.raw)
    with open(path, "rb", buffering=0) as f, ThreadPoolExecutor(1) as beside:
        for name in sorted(names, key=lambda n: own.tensors[n].start):
            t, h = own.tensors[name], hashlib.sha256()
            f.seek(header.data_start + t.start)
            for piece in places(names[name]):
                _fill(f, piece, path)
                other = beside.submit(file.update, piece)  # hashing lets other threads run
                h.update(piece)
                other.result()
            found[name] = TensorDigest(t.dtype, t.shape, h.hexdigest())
    return {names[n]: found[n] for n in names}, file.hexdigest()


def _fill(f: FileIO, piece: memoryview, where: object) -> None:
    done = 0
    while done < len(piece):
        count = f.readinto(piece[done:])
        if not count:
            early = len(piece) - done
            raise BadInput(f"{where}: the file ended {early:,} bytes early while it was read")
        done += count


def combined_sha256(digests: dict[str, TensorDigest]) -> str:
    """One digest over tensors: their names, types, shapes and bytes, whatever their order.

    It is the sha256 of the JSON list of ``[name, dtype, shape, sha256 of the bytes]`` sorted by
    name, so the same weights in another file give the same digest.
    """
    table = sorted([name, d.dtype, list(d.shape), d.sha256] for name, d in digests.items())
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()
