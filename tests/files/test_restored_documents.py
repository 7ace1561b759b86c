"""files/restored.py: a target that was taken out is still known for what it is."""

import json

import pytest
from support.handmade import make_clone, make_target, sha256, snapshot

from pnc_cli.files.header import read_header
from pnc_cli.files.identity import resolve_identity
from pnc_cli.files.patch import eject, inject

CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
KNOWN = {"architecture": "resnet18", "label_names": ["red", "green"], "pretrained_cfg": CFG}


@pytest.fixture
def patched(tmp_path):
    """p.safetensors in a folder, made where t.json said what t.safetensors is."""
    made = tmp_path / "made"
    made.mkdir()
    target = make_target(made / "t.safetensors")
    clone = make_clone(made / "c.safetensors", target)
    inject(target, [clone], made / "p.safetensors")
    return made / "p.safetensors"


def told(patched, output, **more):
    notes = []
    eject(patched, output, note=notes.append, **more)
    return notes


def test_under_a_new_name_a_document_says_what_the_file_is(patched, tmp_path):
    output = tmp_path / "new" / "back.safetensors"
    output.parent.mkdir()
    [note] = told(patched, output)
    assert "back.json: says what back.safetensors is: resnet18, 2 classes" in note
    assert sha256(output) == sha256(patched.with_name("t.safetensors"))
    known = resolve_identity(output, read_header(output))
    assert (known.architecture, known.label_names) == ("resnet18", ("red", "green"))
    assert known.preprocessing["mean"] == [0.5] * 3 and known.preprocessing["crop_pct"] == 1.0
    before = snapshot(output.parent)
    told(patched, output, force=True)  # the document that it wrote is nobody else's to keep
    assert snapshot(output.parent) == before


@pytest.mark.parametrize("where", ["back.json", "config.json"])
def test_where_a_document_says_it_nothing_is_written(patched, tmp_path, where):
    (tmp_path / where).write_text(json.dumps(KNOWN))
    assert told(patched, tmp_path / "back.safetensors") == []
    assert json.loads((tmp_path / where).read_text()) == KNOWN
    assert {p.suffix for p in tmp_path.glob("back.*")} <= {".safetensors", ".json"}
    assert (tmp_path / "back.json").exists() == (where == "back.json")


@pytest.mark.parametrize(
    "document, said",
    [
        ({**KNOWN, "architecture": "resnet34"}, "architecture"),
        ({"architecture": "resnet18", "pretrained_cfg": CFG}, "labels"),
        ({**KNOWN, "pretrained_cfg": {"mean": [0.1] * 3}}, "preprocessing"),
    ],
    ids=["another architecture", "no labels", "another mean"],
)
def test_a_document_of_the_users_is_kept_and_what_it_lacks_is_said(
    patched, tmp_path, document, said
):
    (tmp_path / "back.json").write_text(json.dumps(document))
    [note] = told(patched, tmp_path / "back.safetensors", force=True)
    assert "back.json: is not replaced" in note and said in note
    assert json.loads((tmp_path / "back.json").read_text()) == document


def test_a_folder_that_describes_another_network_does_not_take_its_place(patched, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**KNOWN, "label_names": ["cat", "dog"]}))
    told(patched, tmp_path / "back.safetensors")
    known = resolve_identity(
        tmp_path / "back.safetensors", read_header(tmp_path / "back.safetensors")
    )
    assert known.label_names == ("red", "green")
