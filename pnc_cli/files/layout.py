"""Where the tensors of a file we write lie, and plain copying of their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .header import DTYPE_BITS, TensorEntry

ALIGNMENT = 8  # bytes; readers view a tensor's bytes in place, as wide types


def lay_out(tensors: dict[str, TensorEntry], start: int = 0) -> dict[str, TensorEntry]:
    """The same tensors packed from ``start``: widest type first, then by name.

    From an aligned start every tensor is then aligned to its own width, without holes.
    """
    at, placed = start, {}
    for name in sorted(tensors, key=lambda n: (-DTYPE_BITS[tensors[n].dtype], n)):
        size = tensors[name].size
        placed[name] = replace(tensors[name], start=at, end=at + size)
        at += size
    return placed


def padding(size: int) -> int:
    """Bytes missing to the next aligned offset."""
    return -size % ALIGNMENT


def end_of(tensors: Iterable[TensorEntry], default: int = 0) -> int:
    return max((t.end for t in tensors), default=default)
