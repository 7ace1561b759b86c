"""What a file is that is no safetensors file: told from its first bytes, for the message.

Nothing is read but the beginning, and of a zip archive the names of its members.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from .forms import conversion

BEGINNING = 4096  # bytes that are looked at
ZIP = b"PK\x03\x04"
GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
ZSTD, SEVEN_ZIP, RAR = b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!"
PNG, JPEG, PARQUET = b"\x89PNG", b"\xff\xd8\xff", b"PAR1"
MAGIC = (  # the bytes at the beginning, and whose they are
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5: Keras, PyTables)"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (GZIP, "a gzip archive"),
    (BZIP2, "a bzip2 archive"),
    (XZ, "an xz archive"),
    (ZSTD, "a zstandard archive"),
    (SEVEN_ZIP, "a 7z archive"),
    (RAR, "a RAR archive"),
    (PNG, "a PNG image"),
    (JPEG, "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (PARQUET, "a Parquet file"),
    (b"\x7fELF", "a program"),
)
UNPACK = "unpack it and give the .safetensors file in it"
EXPORT = (
    "pnc reads timm networks as safetensors files: write the weights from PyTorch with "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
AGAIN = "download it again: the file itself, not the page about it (hf download REPO FILE)"


def what_it_is(path: Path) -> tuple[str, str] | None:
    """What the file at ``path`` is, and what to do about it; None where nothing tells."""
    with open(path, "rb") as f:
        start = f.read(BEGINNING)
        size = f.seek(0, 2)
    if not start:
        return "an empty file: 0 bytes, too short", "copy or download it again"
    if start[8:9] == b"{":  # a safetensors file, and something is wrong with it
        return None
    if start.startswith(b"version https://git-lfs"):
        return _pointer(start)
    if start[:2] == b"PK":
        return _archive(path)
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "a pickle", _pickle(path)
    for magic, name in MAGIC:
        if start.startswith(magic):
            return name, UNPACK if "archive" in name else EXPORT
    if start[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model", EXPORT
    if _looks_like_onnx(path, start):
        return "an ONNX model", EXPORT
    if size >= 64 and not start.strip(b"\x00"):
        return "a file of zeros", "the download was not finished: get it again"
    return _text(path, start, size)


def _pickle(path: Path) -> str:
    return f"this looks like a PyTorch pickle, which pnc never opens; {conversion(path)}"


def _pointer(start: bytes) -> tuple[str, str]:
    size = re.search(rb"^size (\d+)$", start, re.MULTILINE)
    real = f" (the file has {int(size.group(1)):,} bytes)" if size else ""
    return f"a Git LFS pointer, not the file itself{real}", "git lfs pull, in its repository"


def _archive(path: Path) -> tuple[str, str]:
    """A zip archive, by the names of what is in it."""
    try:
        with zipfile.ZipFile(path) as z:
            names = set(z.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        if path.suffix == ".keras":
            return "a Keras model, cut short", EXPORT
        if path.suffix == ".npz":
            return "a NumPy archive (.npz), cut short", EXPORT
        return "a zip archive that is cut short or damaged", (
            f"is it a PyTorch file? get it again; {_pickle(path)}"
        )
    if any(n.endswith("/data.pkl") or n == "data.pkl" for n in names):
        if any("/code/" in n or n.startswith("code/") for n in names):
            return "a TorchScript archive", f"its weights stay where they are; {EXPORT}"
        return "a zipped pickle", _pickle(path)
    if path.suffix == ".keras" or "model.weights.h5" in names:
        return "a Keras model (.keras)", EXPORT
    if names and all(n.endswith(".npy") for n in names):
        return "a NumPy archive (.npz)", EXPORT
    inside = sorted(n for n in names if n.endswith(".safetensors"))
    return "a zip archive" + (f" with {inside[0]}" if inside else ""), UNPACK


def _looks_like_onnx(path: Path, start: bytes) -> bool:
    """A protocol buffer that begins as ONNX models do: IR version, then the producer's name."""
    if start[:1] != b"\x08" or len(start) < 4:
        return False
    return path.suffix == ".onnx" or (start[1] < 32 and start[2:3] in (b"\x12", b"\x1a", b"\x3a"))


def _text(path: Path, start: bytes, size: int) -> tuple[str, str] | None:
    try:
        text = start.decode("utf-8-sig" if size <= BEGINNING else "latin-1").lstrip()
    except UnicodeDecodeError:
        return None
    head = text[:200].lower()
    if head.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page", AGAIN
    if head.startswith(("<?xml", "<error")):
        return "an XML document", AGAIN
    if text.startswith(("{", "[")) and size > 8:
        return _json(path, text)
    if text and text.isprintable() and size < 200:
        return f"text: '{text[:60]}'", AGAIN
    return None


def _json(path: Path, text: str) -> tuple[str, str]:
    """A JSON document; ours are named, whose keys are sorted and may be long."""
    schema = re.search(r'"schema":\s*"(pnc\.[a-z]+)/\d+"', text)
    if schema is None:
        try:
            schema = re.search(r'^  "schema": "(pnc\.[a-z]+)/\d+"', path.read_text(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            pass
    if schema is not None:
        what = {"pnc.clone": "clone's manifest", "pnc.patched": "patched checkpoint's manifest"}
        known = what.get(schema.group(1), f"{schema.group(1)} document")
        return f"a JSON document, a {known}", f"give the .safetensors file: {_beside(path)}"
    try:
        fields = json.loads(text)
    except ValueError:
        fields = {}
    error = fields.get("error", fields.get("message")) if isinstance(fields, dict) else None
    if error is not None:
        return f"a JSON document that says: {str(error)[:80]}", AGAIN
    return "a JSON document", f"give the .safetensors file: {_beside(path)}"


def _beside(path: Path) -> str:
    for other in (path.with_suffix(".safetensors"), path.with_name("model.safetensors")):
        if other != path and other.is_file():
            return str(other)
    return "pnc info FILE says what a file is"
