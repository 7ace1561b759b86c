"""files/clone_file.py: a clone in a file of its own, and the same manifest beside it."""

import json

import pytest
from support.handmade import (
    clone_tensors,
    flip,
    make_clone,
    make_manifest,
    make_target,
    rewrite_manifest,
    rewrite_metadata,
    safetensors,
    snapshot,
)

from pnc_cli.errors import BadInput, UsageError
from pnc_cli.files.clone_file import (
    RawTensor,
    open_clone,
    raw_sha256,
    sidecar_of,
    verify_clone,
    write_clone,
)
from pnc_cli.manifest import canonical_json


@pytest.fixture
def clone(tmp_path):
    return make_clone(tmp_path / "c.safetensors", make_target(tmp_path / "t.safetensors"))


def test_the_manifest_is_the_only_metadata_and_lies_beside_the_file(clone):
    raw = clone.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == ["pnc.manifest"]
    assert header["__metadata__"]["pnc.manifest"] == clone.with_suffix(".json").read_text("utf-8")


def test_every_tensor_is_aligned_to_its_own_width(clone):
    opened = open_clone(clone)
    assert opened.data_start % 8 == 0
    widths = {"I64": 8, "F32": 4, "BF16": 2}
    starts = [t.start % widths[t.dtype] for t in opened.tensors.values()]
    assert starts == [0] * len(clone_tensors())


def test_the_order_in_which_tensors_are_given_does_not_matter(tmp_path, clone):
    target, backwards = tmp_path / "t.safetensors", dict(reversed(clone_tensors().items()))
    again = make_clone(tmp_path / "again.safetensors", target, tensors=backwards)
    assert again.read_bytes() == clone.read_bytes()


def test_a_clone_without_its_sidecar_is_whole(clone):
    clone.with_suffix(".json").unlink()
    verify_clone(open_clone(clone))
    assert open_clone(clone).manifest.labels == ["frog"]


def test_a_sidecar_that_differs_is_refused(clone):
    sidecar = clone.with_suffix(".json")
    sidecar.write_bytes(sidecar.read_bytes().replace(b'"frog"', b'"toad"'))
    with pytest.raises(
        BadInput, match="c.json: differs from the manifest inside c.safetensors"
    ) as e:
        open_clone(clone)
    assert "remove c.json" in e.value.hint


@pytest.mark.parametrize("offset", [-1, -20])
def test_a_changed_tensor_is_corruption(clone, offset):
    with pytest.raises(BadInput, match="clone 'frogs' is corrupt"):
        verify_clone(open_clone(flip(clone, offset)))


def test_a_checkpoint_is_not_a_clone(tmp_path):
    with pytest.raises(BadInput, match="is not a clone"):
        open_clone(make_target(tmp_path / "t.safetensors"))


def test_a_patched_checkpoint_is_not_a_clone(clone):
    rewrite_metadata(clone, lambda m: m.update({"pnc.target_header": "{}"}))
    with pytest.raises(BadInput, match="is a patched checkpoint, not a clone"):
        open_clone(clone)


def test_a_manifest_of_a_newer_version_is_refused(clone):
    rewrite_manifest(clone, lambda d: d.update(schema="pnc.clone/2"))
    with pytest.raises(BadInput, match="c.safetensors: manifest is 'pnc.clone/2'"):
        open_clone(clone)


@pytest.mark.parametrize("name", ["padding", "stranger.weight", "adapter", "modules.x"])
def test_a_tensor_that_belongs_to_no_part_is_refused(tmp_path, name):
    target = make_target(tmp_path / "t.safetensors")
    tensors = {**clone_tensors(), name: RawTensor("U8", (1,), b"x")}
    with pytest.raises(BadInput, match=f"tensor '{name}' belongs to no part of a clone"):
        make_clone(tmp_path / "c.safetensors", target, tensors=tensors)


def test_a_document_that_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "c.json").write_text('{"architecture": "resnet18"}')
    target = make_target(tmp_path / "t.safetensors")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="is not a manifest of pnc's"):
        make_clone(tmp_path / "c.safetensors", target)
    assert snapshot(tmp_path) == before


def test_an_output_called_json_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not called .safetensors"):
        sidecar_of(tmp_path / "c.json")


def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path):
    target = make_target(tmp_path / "t.safetensors")
    before = snapshot(tmp_path)
    manifest = make_manifest(target, clone_tensors(), labels=["x" * 1001])
    with pytest.raises(BadInput, match="does not follow"):
        write_clone(tmp_path / "c.safetensors", manifest, clone_tensors())
    assert snapshot(tmp_path) == before


def test_the_digest_of_tensors_is_that_of_the_file(clone):
    assert open_clone(clone).manifest.tensors_sha256 == raw_sha256(clone_tensors())
    assert clone.with_suffix(".json").read_bytes() == canonical_json(open_clone(clone).manifest)


def test_a_clone_without_manifest_is_not_a_clone(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(safetensors({"module.x": ("U8", (1,), b"x")}, {"other": "thing"}))
    with pytest.raises(BadInput, match="no 'pnc.manifest' in its metadata"):
        open_clone(path)
