"""The safetensors header, read and written at byte level.

The format: a u64 little-endian length, that many bytes of JSON (padded with spaces), then the
tensors' bytes without holes or overlaps.  The usual reader is lenient (duplicate names, extra
fields, empty names pass); this one refuses whatever two readers could understand differently.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput
from .bounded import open_regular
from .forms import documents_of
from .inputs import remember
from .kinds import what_it_is

MAX_HEADER = 100_000_000  # bytes; the format's own limit
# Limits of ours: what is parsed takes many times the room that its text does.
MAX_TENSORS = 50_000  # timm's largest network has some 5,000
MAX_AXES = 16  # of a tensor; torch's own operations stop at 64, networks at 6
MAX_NAME = 1_000  # bytes
MAX_NUMBERS = 1 << 62  # of one tensor: more overflows what others count with
MAX_METADATA = 1_000  # keys
_FIELDS = 3  # of a tensor: dtype, shape, data_offsets
METADATA = "__metadata__"
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its type, shape, and byte span [start, end) in the data region."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A validated header: ``text`` is its JSON as it stands in the file, padding included."""

    text: bytes
    tensors: dict[str, TensorEntry]  # in the header's order
    metadata: dict[str, str] | None

    @property
    def raw(self) -> bytes:
        """Everything in front of the data region."""
        return len(self.text).to_bytes(8, "little") + self.text

    @property
    def data_start(self) -> int:
        return 8 + len(self.text)

    @property
    def data_size(self) -> int:
        return max((t.end for t in self.tensors.values()), default=0)


def read_header(path: Path) -> Header:
    """Reads and validates the header of a file, and that the file is as long as it says.

    Raises ``BadInput`` naming the file and what is wrong with it.
    """
    remember(path, *documents_of(path))
    try:
        with open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            prefix = f.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > MAX_HEADER or 8 + length > size:
                raise _not_safetensors(path, size, length)
            text = f.read(length)
            if not text.startswith(b"{") and what_it_is(path) is not None:
                raise _not_safetensors(path, size, length)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read: {e.strerror}") from e
    header = parse_header(text, str(path))
    expected = header.data_start + header.data_size
    if expected != size:
        what = "truncated" if size < expected else "longer than its header says"
        raise BadInput(f"{path}: {what}: {size:,} bytes, expected {expected:,}")
    return header


def parse_header(text: bytes, where: str) -> Header:
    """Validates the header's JSON ``text``; ``where`` names the file in errors."""
    if not text.startswith(b"{"):
        raise BadInput(f"{where}: header does not begin with '{{'")
    _check_size(text, where)
    try:
        fields = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
        _check_text(fields)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{where}: header is not valid JSON: {e}") from None
    metadata = fields.pop(METADATA, None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        raise BadInput(f"{where}: {METADATA} is not a map from string to string")
    if len(fields) > MAX_TENSORS:
        raise _too_much(where, f"{len(fields):,} tensors", f"{MAX_TENSORS:,}")
    if len(metadata or {}) > MAX_METADATA:
        found = f"{len(metadata or {}):,} keys in {METADATA}"
        raise _too_much(where, found, f"{MAX_METADATA:,}")
    tensors = {name: _entry(name, value, where) for name, value in fields.items()}
    at = 0
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if t.start != at:
            what = "a hole" if t.start > at else "an overlap"
            raise BadInput(f"{where}: {what} before tensor '{name}': starts at {t.start}, not {at}")
        at = t.end
    return Header(text, tensors, metadata)


def format_header(tensors: dict[str, TensorEntry], metadata: dict[str, str]) -> bytes:
    """The bytes in front of the data region: length and JSON, metadata sorted, padded to 8."""
    if len(tensors) > MAX_TENSORS:
        raise _too_much("the new file", f"{len(tensors):,} tensors", f"{MAX_TENSORS:,}")
    fields: dict[str, object] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for name, t in tensors.items():
        fields[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.start, t.end]}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise BadInput(
            f"the header would take {len(text):,} bytes; the format allows {MAX_HEADER:,}"
        )
    return len(text).to_bytes(8, "little") + text


def _check_size(text: bytes, where: str) -> None:
    """Refuses what would take far more memory as values than as text, before it is parsed.

    Strings may be long, but not many, nor may what is outside them.
    """
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = MAX_TENSORS * (_FIELDS + 2) + 2 * MAX_METADATA + 1
    if (quoted := bare.count(b'"') // 2) > strings:
        raise _too_much(where, f"{quoted:,} strings", f"{MAX_TENSORS:,} tensors")
    outside = b"".join(bare.split(b'"')[::2])
    values = MAX_TENSORS * (_FIELDS + MAX_AXES + 2) + MAX_METADATA
    count = sum(map(outside.count, (b",", b"[", b"{")))
    if count > values:
        raise _too_much(where, f"{count:,} values", f"{MAX_TENSORS:,} tensors")


def _too_much(where: str, found: str, most: str) -> BadInput:
    return BadInput(
        f"{where}: the header has {found}; pnc reads at most {most}",
        hint="no classifier of timm's needs as much: is it the right file?",
    )


def _check_text(fields: dict[str, object]) -> None:
    """Raises ``ValueError`` for half characters, which no file name or JSON text may hold."""
    metadata = fields.get(METADATA)
    texts: list[Iterable[object]] = [fields]
    if isinstance(metadata, dict):
        texts += [metadata, metadata.values()]
    for found in texts:
        for value in found:
            if isinstance(value, str) and not value.isascii():
                value.encode("utf-8")


def _entry(name: str, value: object, where: str) -> TensorEntry:
    if not name:
        raise BadInput(f"{where}: a tensor has an empty name")
    if len(name.encode()) > MAX_NAME:
        raise BadInput(
            f"{where}: tensor '{name[:40]}…': its name has {len(name.encode()):,} bytes; "
            f"pnc reads at most {MAX_NAME:,}"
        )
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"{where}: tensor '{name}': expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadInput(f"{where}: tensor '{name}': unknown dtype {str(dtype)[:40]!r}")
    if isinstance(shape, list) and len(shape) > MAX_AXES:
        raise BadInput(
            f"{where}: tensor '{name}' has {len(shape):,} axes; pnc reads at most {MAX_AXES}"
        )
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise BadInput(f"{where}: tensor '{name}': shape or data_offsets are not natural numbers")
    if math.prod(n or 1 for n in shape) > MAX_NUMBERS:
        raise BadInput(
            f"{where}: tensor '{name}': a shape of {shape} is beyond 2^62 numbers, pnc's limit"
        )
    bits, span = math.prod(shape) * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if span * 8 != bits:
        raise BadInput(
            f"{where}: tensor '{name}': {dtype} {shape} takes {-(-bits // 8)} bytes, spans {span}"
        )
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"'{name[:100]}' stands twice")
            seen.add(name)
    return fields


def _no_constant(value: str) -> object:
    raise ValueError(f"{value} is not JSON")


def _not_safetensors(path: Path, size: int, length: int) -> BadInput:
    """The error that says what the file is instead, as far as that can be told."""
    found = what_it_is(path)
    if found is not None:
        what, hint = found
        return BadInput(f"{path}: not a safetensors file, but {what}", hint=hint)
    if size < 8:
        return BadInput(f"{path}: not a safetensors file: {size} bytes, too short")
    return BadInput(
        f"{path}: not a safetensors file, or truncated: "
        f"header length {length:,}, file size {size:,} bytes",
        hint="copy or download it again; pnc reads safetensors files of timm networks",
    )
