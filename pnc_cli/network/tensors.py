"""Tensors of a safetensors file, to PyTorch and back, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..data import batches
from ..errors import BadInput
from ..files.clone_file import RawTensor
from ..files.digest import read_span
from ..files.header import Header, TensorEntry

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {v: k for k, v in TORCH_DTYPES.items()}
PIECE = 1 << 22  # bytes of a tensor that are read at a time


def read_tensors(
    path: Path, header: Header, entries: Mapping[str, TensorEntry]
) -> dict[str, Tensor]:
    """Tensors of a file, by the ``entries`` of its data region.

    Raises ``BadInput`` for a type of numbers that torch has not.
    """
    tensors = {}
    with open(path, "rb") as f:
        for name, t in entries.items():
            dtype = torch_dtype(path, name, t)
            data = bytearray().join(read_span(f, header.data_start + t.start, t.size, path))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensors[name] = flat.reshape(t.shape)
    return tensors


def torch_dtype(path: Path, name: str, entry: TensorEntry) -> torch.dtype:
    """The type of a tensor's numbers.  Raises ``BadInput`` for one that torch has not."""
    if entry.dtype not in TORCH_DTYPES:
        raise BadInput(f"{path}: tensor '{name}': torch has no type for {entry.dtype}")
    return TORCH_DTYPES[entry.dtype]


def places(tensor: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """Memory for the bytes of numbers of type ``dtype`` that ``tensor`` is to hold, in pieces.

    Each is to be filled before the next is asked for.  It is the tensor's own memory where the
    types are the same, and a piece that is converted from then on where they are not.
    """
    flat = tensor.reshape(-1)  # a copy where the tensor is not in one block
    count = max(1, PIECE // dtype.itemsize)
    piece = None if tensor.dtype == dtype else torch.empty(min(count, len(flat)), dtype=dtype)
    for part in batches(len(flat), count):
        to = flat[part]
        given = to if piece is None else piece[: len(to)]
        yield given.view(torch.uint8).numpy().data
        if piece is not None:
            to.copy_(given)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def raw_tensor(t: Tensor) -> RawTensor:
    """A tensor as the bytes that ``read_tensors`` reads."""
    t = t.detach().cpu().contiguous()
    data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
    return RawTensor(DTYPE_NAMES[t.dtype], tuple(t.shape), data)
