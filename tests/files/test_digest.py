"""files/digest.py: digests say which weights these are, whatever the file around them."""

import hashlib

import pytest
from support.handmade import make_target, target_tensors

from pnc_cli.errors import BadInput
from pnc_cli.files.digest import (
    TensorDigest,
    combined_sha256,
    file_sha256,
    read_span,
    tensor_digests,
)
from pnc_cli.files.header import read_header


def digest_of(path):
    return combined_sha256(tensor_digests(path, read_header(path)))


def test_the_combined_digest_has_this_value():
    table = {"b": TensorDigest("F32", (2, 3), "11"), "a": TensorDigest("U8", (), "22")}
    text = b'[["a","U8",[],"22"],["b","F32",[2,3],"11"]]'
    assert combined_sha256(table) == hashlib.sha256(text).hexdigest()


def test_the_order_of_tensors_and_the_metadata_do_not_matter(tmp_path):
    tensors = target_tensors()
    backwards = dict(reversed(tensors.items()))
    one = make_target(tmp_path / "a.safetensors", tensors)
    other = make_target(tmp_path / "b.safetensors", backwards, {"format": "pt"}, b"   ")
    assert digest_of(one) == digest_of(other)
    assert file_sha256(one) != file_sha256(other)


@pytest.mark.parametrize(
    "change",
    [
        {"mask": ("BOOL", (3,), b"\x00\x01\x00")},
        {"mask": ("U8", (3,), b"\x00\x01\x01")},
        {"mask": ("BOOL", (3, 1), b"\x00\x01\x01")},
        {"more": ("U8", (0,), b"")},
    ],
    ids=["value", "dtype", "shape", "name"],
)
def test_any_other_value_type_shape_or_name_matters(tmp_path, change):
    one = make_target(tmp_path / "a.safetensors", target_tensors())
    other = make_target(tmp_path / "b.safetensors", target_tensors() | change)
    assert digest_of(one) != digest_of(other)


def test_a_file_that_ends_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    with open(path, "rb") as f, pytest.raises(BadInput, match="ended 2 bytes early"):
        list(read_span(f, 1, 4, path))
