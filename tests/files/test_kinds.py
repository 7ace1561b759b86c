"""files/kinds.py: what is no safetensors file is named for what it is."""

import gzip
import json
import zipfile

import numpy as np
import pytest
import torch

from pnc_cli.errors import BadInput
from pnc_cli.files.header import read_header


def npz(path):
    with open(path, "wb") as f:
        np.savez(f, a=np.zeros(3))


def keras(path):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("config.json", "{}")
        z.writestr("model.weights.h5", "")


def scripted(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46807446\n"
KINDS = {
    "lfs": (POINTER, "a Git LFS pointer, not the file itself .the file has 46,807,446 bytes", "git lfs pull"),
    "html": (b"<!DOCTYPE html>\n<html>404</html>" * 5, "an HTML page", "download it again"),
    "indented html": (b"\n\n  <html lang='en'>" + bytes(5000), "an HTML page", "download"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document", ""),
    "json": (b'{"architecture": "resnet18", "num_classes": 3}', "a JSON document", "safetensors"),
    "an error": (b'{"error": "Repository not found"}' + b" " * 9, "says: Repository not found", ""),
    "a plan": (json.dumps({"chosen": 0, "schema": "pnc.plan/1"}).encode(), "a pnc.plan document", ""),
    "a manifest": (b'{"name": "x", "schema": "pnc.clone/1"}', "a clone's manifest", "safetensors"),
    "text": (b"Entry not found", "text: 'Entry not found'", "download it again"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "an HDF5 file", "save_file"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(500), "a GGUF file", "save_file"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0" + bytes(99), "an ONNX model", "save_file"),
    "gzip": (gzip.compress(bytes(100)), "a gzip archive", "unpack"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(100), "a NumPy array", "save_file"),
    "zeros": (bytes(4096), "a file of zeros", "download was not finished"),
    "empty": (b"", "an empty file", "again"),
    "npz": (npz, "a NumPy archive", "save_file"),
    "keras": (keras, "a Keras model", "save_file"),
    "a pickle": (lambda p: torch.save({"a": torch.zeros(1)}, p), "a zipped pickle", "convert it"),
    "an old pickle": (
        lambda p: torch.save({"a": torch.zeros(1)}, p, _use_new_zipfile_serialization=False),
        "a pickle",
        "convert it",
    ),
    "torchscript": (scripted, "a TorchScript archive", "save_file"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made, what, hint", KINDS.values(), ids=KINDS)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, made, what, hint):
    path = tmp_path / "t.safetensors"
    path.write_bytes(made) if isinstance(made, bytes) else made(path)
    with pytest.raises(BadInput, match=f"not a safetensors file, but .*{what}") as e:
        read_header(path)
    assert hint in e.value.hint
    pickled = "pickle" in what
    assert ("pickle" in e.value.message + e.value.hint) == pickled
