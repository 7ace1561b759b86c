"""manifest.py: the manifest is read strictly and written canonically."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.handmade import clone_tensors, make_manifest, make_target
from support.plans import make_plan

from pnc_cli.errors import BadInput
from pnc_cli.manifest import (
    CLONE_SCHEMA,
    Manifest,
    Patched,
    WithoutOriginals,
    canonical_json,
    json_schema,
    parse,
    to_plain,
)
from pnc_cli.plan import Plan


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(
        make_target(tmp_path / "t.safetensors"), clone_tensors(), labels=["frog", "toad"]
    )


def test_canonical_json_has_these_bytes():
    assert canonical_json({"b": [1, 0.5], "a": {"é": None, "d": "\n"}}) == (
        b'{\n  "a": {\n    "d": "\\n",\n    "\xc3\xa9": null\n  },\n  "b": [\n    1,\n    0.5\n  ]\n}\n'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_never_holds_nan(value):
    with pytest.raises(ValueError):
        canonical_json({"a": value})


def test_documents_are_read_back_the_same(manifest):
    patched = Patched(schema="pnc.patched/1", target_sha256="0" * 64, clones=[manifest])
    for document in (manifest, patched, make_plan()):
        text = canonical_json(document)
        assert parse(text, type(document), "x") == document
        assert canonical_json(parse(text, type(document), "x")) == text


def test_what_is_said_of_clones_without_originals_changes_no_byte_of_others(manifest):
    assert b"without_originals" not in canonical_json(manifest)
    known = WithoutOriginals(
        reason="r", images=4, held_out=True, clone_won=0.5, target_confidence=1.0
    )
    measured = msgspec.structs.replace(manifest.measured, without_originals=known)
    unsure = msgspec.structs.replace(manifest, measured=measured)
    text = canonical_json(unsure)
    assert parse(text, Manifest, "x") == unsure and canonical_json(unsure) == text
    older = json.loads(text)
    assert older["measured"].pop("without_originals")["clone_won"] == 0.5
    assert canonical_json(older) == canonical_json(manifest)
    schema = json_schema()["$defs"]["Measured"]
    optional = {"without_originals", "fitted", "not_held_out", "known_already"}
    assert set(schema["properties"]) - set(schema["required"]) == optional


def changed(manifest, change):
    document = to_plain(manifest)
    change(document)
    return json.dumps(document, default=list)


CHANGES = {
    "a newer version": (
        lambda d: d.update(schema="pnc.clone/2"),
        "is 'pnc.clone/2', this pnc reads 'pnc.clone/1'",
    ),
    "another document": (lambda d: d.update(schema="pnc.plan/1"), "is 'pnc.plan/1'"),
    "no schema": (lambda d: d.pop("schema"), "is 'None'"),
    "an unknown field": (lambda d: d.update(colour="red"), "colour"),
    "an unknown inner field": (lambda d: d["adapter"].update(colour="red"), "colour"),
    "an unknown class field": (lambda d: d["classes"][0].update(colour="red"), "colour"),
    "a missing field": (lambda d: d.pop("tap"), "tap"),
    "a wrong type": (lambda d: d["method"].update(seed="0"), "seed"),
    "a negative index": (lambda d: d["classes"][0].update(source_index=-1), "source_index"),
    "an unknown join": (lambda d: d["join"].update(kind="magic"), "kind"),
    "an unknown adapter": (lambda d: d["adapter"].update(kind="magic"), "kind"),
    "a name with a slash": (lambda d: d.update(name="a/b"), "name"),
    "a name with a dot": (lambda d: d.update(name="a.b"), "name"),
    "a name with a newline": (lambda d: d.update(name="a\n"), "name"),
    "an empty label": (lambda d: d["classes"][0].update(name=""), "name"),
    "a digest that is none": (lambda d: d.update(tensors_sha256="abc"), "tensors_sha256"),
    "no classes": (lambda d: d.update(classes=[], columns=[]), "classes and columns"),
    "classes out of order": (lambda d: d["classes"].reverse(), "classes and columns"),
    "too few columns": (lambda d: d.update(columns=[0]), "classes and columns"),
    "a label twice": (lambda d: d["classes"][1].update(name="frog"), "a label stands twice"),
    "a hub address": (
        lambda d: d["source"].update(architecture="hf-hub:x"),
        "not a plain timm name",
    ),
    "a hub address as target": (
        lambda d: d["target"].update(architecture="hf-hub:x"),
        "not a plain timm name",
    ),
    "pretrained": (
        lambda d: d["source"].update(model_args={"pretrained": True}),
        "may not set 'pretrained'",
    ),
    "a checkpoint path": (
        lambda d: d["source"].update(model_args={"checkpoint_path": "x.pth"}),
        "may not set 'checkpoint_path'",
    ),
    "one for the target": (
        lambda d: d["target"].update(model_args={"checkpoint_path": "x.pth"}),
        "may not set 'checkpoint_path'",
    ),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_manifest_is_refused_with(manifest, change, message):
    with pytest.raises(BadInput, match=message) as e:
        parse(changed(manifest, change), Manifest, "x.safetensors")
    assert e.value.message.startswith("x.safetensors")


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_patched_manifest_is_refused_for_any_of_its_clones(manifest, change, message):
    patched = Patched(schema="pnc.patched/1", target_sha256="0" * 64, clones=[manifest, manifest])
    if "version" in message or "is '" in message:
        message = "schema"
    with pytest.raises(BadInput, match=message):
        parse(changed(patched, lambda d: change(d["clones"][1])), Patched, "x")


def test_a_newer_version_says_to_upgrade(manifest):
    with pytest.raises(BadInput) as e:
        parse(changed(manifest, lambda d: d.update(schema="pnc.clone/2")), Manifest, "x")
    assert e.value.hint == "it is of a newer pnc than this one: upgrade pnc"


def test_a_plan_must_choose_one_of_its_candidates():
    with pytest.raises(BadInput, match="chosen candidate 1 is not in the list"):
        parse(canonical_json(make_plan(chosen=1)), Plan, "x")
    with pytest.raises(BadInput, match="best candidate 1 is not in the list"):
        parse(canonical_json(make_plan(best=1)), Plan, "x")


def test_a_plan_of_before_is_read():
    plan = json.loads(canonical_json(make_plan(error=0.01)))
    del plan["best"]
    assert parse(json.dumps(plan), Plan, "x").held_against is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"schema": []}'],
    ids=lambda t: t[:8],
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(BadInput):
        parse(text, Manifest, "x")


@given(st.data())
def test_a_manifest_with_a_changed_byte_is_read_or_refused(tmp_path, data):
    made = make_manifest(make_target(tmp_path / "t.safetensors"), clone_tensors())
    text = bytearray(canonical_json(made))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert parse(bytes(text), Manifest, "x").schema == CLONE_SCHEMA
    except BadInput as e:
        assert e.message.startswith("x: ")


def test_a_renamed_clone_differs_in_its_labels_alone(manifest):
    renamed = manifest.renamed({"frog": "roe frog", "cat": "no such class"})
    assert renamed.labels == ["roe frog", "toad"]
    assert [c.source_name for c in renamed.classes] == ["frog", "toad"]
    assert msgspec.structs.replace(renamed, classes=manifest.classes) == manifest


def test_the_json_schema_describes_all_three_documents():
    schema = json_schema()
    assert {"Manifest", "Patched", "Plan"} <= set(schema["$defs"])
    assert schema["$defs"]["Manifest"]["additionalProperties"] is False
    assert set(schema["$defs"]["Manifest"]["required"]) == {*Manifest.__struct_fields__} - {
        "sha256"
    }
