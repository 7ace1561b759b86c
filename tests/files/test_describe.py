"""files/describe.py: what a file is, and whether it is sound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.handmade import flip, make_clone, make_target, rewrite_metadata, sha256, target_tensors
from support.plans import make_plan

from pnc_cli.errors import BadInput
from pnc_cli.files.describe import describe
from pnc_cli.files.header import read_header
from pnc_cli.files.patch import inject
from pnc_cli.manifest import canonical_json


@pytest.fixture
def files(tmp_path):
    """A folder with t (target), c (clone), p (patched) and plan.json."""
    target = make_target(tmp_path / "t.safetensors")
    clone = make_clone(tmp_path / "c.safetensors", target)
    inject(target, [clone], tmp_path / "p.safetensors")
    (tmp_path / "plan.json").write_bytes(canonical_json(make_plan()))
    return tmp_path


@pytest.mark.parametrize(
    "name, kind, words",
    [
        ("t.safetensors", "checkpoint", "a checkpoint, 5 tensors, 45 bytes"),
        ("c.safetensors", "clone", "a clone, 'frogs', of frog"),
        ("p.safetensors", "patched checkpoint", "clone 'frogs': frog"),
        ("c.json", "pnc.clone/1", "a pnc.clone/1 document"),
        ("p.json", "pnc.patched/1", "a pnc.patched/1 document"),
        ("plan.json", "pnc.plan/1", "a pnc.plan/1 document"),
    ],
)
def test_every_file_of_ours_is_recognised(files, name, kind, words):
    found = describe(files / name)
    assert found.document["kind"] == kind
    assert words in found.text
    json.dumps(found.document, allow_nan=False)


def test_a_patched_checkpoint_says_the_sha256_of_its_target(files):
    found = describe(files / "p.safetensors")
    assert found.document["target_sha256"] == sha256(files / "t.safetensors")
    clones = json.loads(json.dumps(found.document["clones"]))
    assert clones == [json.loads((files / "c.json").read_text())]


def test_a_checkpoint_says_what_wraps_its_names(tmp_path):
    tensors = {f"module.{n}": t for n, t in target_tensors().items()}
    found = describe(make_target(tmp_path / "t.safetensors", tensors))
    assert found.document["tensor_prefix"] == "module."
    assert "every tensor's name begins with 'module.'" in found.text


def test_a_checkpoint_that_nothing_names_says_why(tmp_path):
    found = describe(make_target(tmp_path / "t.safetensors"))
    assert found.document["architecture"] is None
    assert found.document["reason"] in found.text
    assert "none has tensors of these names" in found.document["reason"]


def test_a_checkpoint_says_its_architecture_where_anything_names_it(files):
    assert describe(files / "t.safetensors").document["architecture"] is None
    (files / "t.json").write_text('{"architecture": "resnet18", "label_names": ["a", "b"]}')
    found = describe(files / "t.safetensors")
    assert found.document["architecture"] == "resnet18"
    assert found.document["sha256"] == sha256(files / "t.safetensors")
    assert "resnet18 (from t.json): a, b" in found.text


@pytest.mark.parametrize(
    "name, message",
    [
        ("p.safetensors", "the target in it is not what was patched"),
        ("c.safetensors", "is corrupt"),
    ],
)
def test_damage_is_found_in_the_first_byte_of_data(files, name, message):
    flip(files / name, read_header(files / name).data_start)
    with pytest.raises(BadInput, match=message):
        describe(files / name)


def test_damage_is_found_in_the_clone_of_a_patched_checkpoint(files):
    with pytest.raises(BadInput, match="clone 'frogs' is corrupt"):
        describe(flip(files / "p.safetensors", -1))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a JSON document"),
        ("[]", "schema is None"),
        ('{"schema": "x/1"}', "schema is 'x/1'"),
        ('{"schema": "pnc.clone/9"}', "this pnc reads 'pnc.clone/1'"),
        ('{"schema": "pnc.plan/1"}', "does not follow"),
    ],
)
def test_a_document_that_is_not_ours_or_newer_is_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput, match=message):
        describe(tmp_path / "x.json")


@given(st.data())
def test_a_changed_byte_never_crashes_it_and_in_the_data_never_passes(files, data):
    name = data.draw(st.sampled_from(["c.safetensors", "p.safetensors"]))
    path, original = files / name, (files / name).read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    changed = (
        original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))]) + original[at + 1 :]
    )
    start = read_header(path).data_start
    path.write_bytes(changed)
    try:
        describe(path)
        assert at < start
    except BadInput as e:
        assert name in e.message or "c.json" in e.message
    finally:
        path.write_bytes(original)


def test_a_clone_renamed_by_hand_is_told_from_its_sidecar(files):
    def rename(metadata):
        metadata["pnc.manifest"] = metadata["pnc.manifest"].replace('"frog"', '"toad"')

    rewrite_metadata(files / "c.safetensors", rename)
    with pytest.raises(BadInput, match="its manifest is not what was written"):
        describe(files / "c.safetensors")
