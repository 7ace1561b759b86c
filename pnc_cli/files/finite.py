"""Whether tensors' bytes are all finite numbers, without an array library."""

from __future__ import annotations

from typing import Literal, NamedTuple


class _Float(NamedTuple):
    code: Literal["H", "I", "Q"]  # of an unsigned number as wide, for memoryview.cast
    exponent: int  # its bits: all set in what is not finite
    suspects: bytes  # the highest bytes that such a number can have


def _highest(*first: int) -> bytes:
    return bytes(b | sign for b in first for sign in (0, 0x80))


FLOATS = {
    "F16": _Float("H", 0x7C00, _highest(0x7C, 0x7D, 0x7E, 0x7F)),
    "BF16": _Float("H", 0x7F80, _highest(0x7F)),
    "F32": _Float("I", 0x7F80_0000, _highest(0x7F)),
    "F64": _Float("Q", 0x7FF0_0000_0000_0000, _highest(0x7F)),
}


def all_finite(dtype: str, data: bytes) -> bool:
    """Whether little-endian numbers of a safetensors ``dtype`` have no NaN and no infinity; those of
    other types have none."""
    kind = FLOATS.get(dtype)
    if kind is None:
        return True
    numbers = memoryview(data).cast(kind.code)
    highest = data[numbers.itemsize - 1 :: numbers.itemsize]
    if not any(suspect in highest for suspect in kind.suspects):
        return True  # nearly always, and quick
    return all(n & kind.exponent != kind.exponent for n in numbers)
