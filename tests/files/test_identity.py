"""files/identity.py: which classifier a file holds, answered from documents alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.handmade import make_target, target_tensors

from pnc_cli.errors import BadInput
from pnc_cli.files.architectures import Match
from pnc_cli.files.header import read_header
from pnc_cli.files.identity import resolve_identity


def resolve(folder, *, metadata=None, beside=None, config=None, **flags):
    """The identity of ``folder/net.safetensors`` with these documents; dictionaries become JSON."""
    path = make_target(folder / "net.safetensors", metadata=metadata)
    for name, document in (("net.json", beside), ("config.json", config)):
        if document is not None:
            text = document if isinstance(document, str) else json.dumps(document)
            (folder / name).write_text(text)
    return resolve_identity(path, read_header(path), **flags)


DOCUMENTS = {
    "architecture": "flag",
    "metadata": {"architecture": "in_metadata"},
    "beside": {"architecture": "in_stem_json"},
    "config": {"architecture": "in_config_json"},
}


@pytest.mark.parametrize(
    "first, expected",
    [
        (0, ("flag", "--arch")),
        (1, ("in_metadata", "the file's metadata")),
        (2, ("in_stem_json", "net.json")),
        (3, ("in_config_json", "config.json")),
    ],
)
def test_flag_then_metadata_then_stem_json_then_config_json_names_the_architecture(
    tmp_path, first, expected
):
    found = resolve(tmp_path, **dict(list(DOCUMENTS.items())[first:]))
    assert (found.architecture, found.origin) == expected


def test_metadata_values_hold_json(tmp_path):
    found = resolve(
        tmp_path,
        metadata={
            "architecture": "resnet18.a1_in1k",
            "num_classes": "2",
            "label_names": '["a", "b"]',
            "model_args": '{"channels": [8]}',
            "format": "pt",
        },
    )
    assert (found.architecture, found.num_classes, found.label_names) == ("resnet18", 2, ("a", "b"))
    assert found.model_args == {"channels": [8]}


CFG = {
    "input_size": [3, 32, 32],
    "mean": [0.1, 0.2, 0.3],
    "std": 0.5,
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
}


@pytest.mark.parametrize("layout", ["current", "flat"])
def test_both_layouts_of_timms_config_json_are_read(tmp_path, layout):
    named = {"architecture": "resnet18", "num_classes": 2, "label_names": {"0": "a", "1": "b"}}
    config = {**named, **CFG} if layout == "flat" else {**named, "pretrained_cfg": CFG}
    found = resolve(tmp_path, config=config)
    assert (found.num_classes, found.label_names) == (2, ("a", "b"))
    assert found.preprocessing == {**CFG, "std": [0.5]}


def test_later_documents_fill_in_what_is_missing(tmp_path):
    found = resolve(
        tmp_path,
        architecture="resnet18",
        beside={"architecture": "resnet18", "label_names": ["a"]},
        config={"num_classes": 1, "crop_pct": 0.9},
    )
    assert (found.label_names, found.num_classes, found.preprocessing) == (
        ("a",),
        1,
        {"crop_pct": 0.9},
    )


def test_a_document_of_another_architecture_fills_in_nothing(tmp_path):
    found = resolve(
        tmp_path,
        beside={"architecture": "resnet18"},
        config={
            "architecture": "vit_tiny_patch16_224",
            "label_names": ["a"],
            "model_args": {"depth": 3},
        },
    )
    assert (found.label_names, found.model_args) == (None, {})


def test_a_manifest_beside_the_file_is_not_taken_for_its_document(tmp_path):
    found = resolve(
        tmp_path, beside={"schema": "pnc.patched/1"}, config={"architecture": "resnet18"}
    )
    assert found.origin == "config.json"


def test_a_file_that_nothing_names_asks_for_the_flag_or_a_document(tmp_path):
    with pytest.raises(BadInput, match="nothing says which timm architecture") as e:
        resolve(tmp_path, flag="--source-arch")
    assert "--source-arch NAME" in e.value.hint and "net.json" in e.value.hint


ARCHITECTURES = [
    "hf-hub:timm/resnet18",
    "hf_hub:x/y",
    "local-dir:/tmp/x",
    "timm/resnet18",
    "../x",
    "",
    "a b",
    18,
]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("where", ["architecture", "metadata", "beside", "config"])
def test_an_architecture_that_is_no_plain_name_is_refused(tmp_path, name, where):
    given = name if where == "architecture" else {"architecture": name}
    if where == "metadata" and not isinstance(name, str):
        given = {"architecture": str([name])}
    with pytest.raises(BadInput, match="is not a plain timm name"):
        resolve(tmp_path, **{where: given})


@pytest.mark.parametrize(
    "args",
    [
        {"pretrained": True},
        {"checkpoint_path": "evil.pth"},
        {"pretrained_cfg": {"url": "http://x"}},
        {"pretrained_cfg_overlay": {"file": "evil.pth"}},
        {"cache_dir": "/tmp"},
        {"features_only": True},
        {"scriptable": True},
        {"num_classes": 3, "exportable": True},
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["flag", "metadata", "beside"])
def test_model_args_that_could_fetch_or_read_are_refused(tmp_path, args, where):
    if not args and where != "beside":
        args = {"no_jit": True}
    with pytest.raises(BadInput, match="model_args"):
        if where == "flag":
            resolve(tmp_path, architecture="resnet18", model_args=args)
        elif where == "metadata":
            resolve(tmp_path, metadata={"architecture": "resnet18", "model_args": json.dumps(args)})
        else:
            resolve(tmp_path, beside={"architecture": "resnet18", "model_args": args or [1]})


@pytest.mark.parametrize(
    "document, message",
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a JSON object"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"num_classes": "10"}, "num_classes is '10'"),
        ({"label_names": "cat"}, "label_names is not a list of names"),
        ({"label_names": ["cat", ""]}, "label_names is not a list of names"),
        ({"label_names": {"0": "cat", "2": "dog"}}, "label_names is not a list of names"),
        ({"pretrained_cfg": 3}, "'pretrained_cfg' is not an object"),
        ({"input_size": [32, 32]}, "input_size is"),
        ({"input_size": [3, 32, 0]}, "input_size is"),
        ({"input_size": [3, 32, 10**9]}, "input_size is"),
        ({"mean": ["a"]}, "mean is"),
        ({"mean": []}, "mean is"),
        ('{"mean": [NaN]}', "NaN"),
        ('{"std": [1e999]}', "std is"),
        ({"std": [0.5, 0.5, 0]}, "std is"),
        ({"crop_pct": 0}, "crop_pct is 0"),
        ({"crop_pct": "all"}, "crop_pct is 'all'"),
        ({"interpolation": "magic"}, "interpolation is 'magic'"),
        ({"crop_mode": ["center"]}, "crop_mode is"),
    ],
    ids=str,
)
def test_a_broken_document_is_named_with_what_is_wrong(tmp_path, document, message):
    if isinstance(document, dict):
        document = {"architecture": "resnet18", **document}
    with pytest.raises(BadInput, match=message) as e:
        resolve(tmp_path, beside=document)
    assert "net.json" in e.value.message


def test_metadata_that_is_not_json_is_named(tmp_path):
    with pytest.raises(BadInput, match="net.safetensors: metadata 'label_names' is not JSON"):
        resolve(tmp_path, metadata={"label_names": "cat,dog"})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = [
    "architecture",
    "num_classes",
    "label_names",
    "model_args",
    "pretrained_cfg",
    "mean",
    "input_size",
    "crop_pct",
    "crop_mode",
    "interpolation",
]


@given(st.dictionaries(st.sampled_from(KEYS), values))
def test_no_document_crashes_the_reader(tmp_path, document):
    try:
        found = resolve(tmp_path, beside=document)
    except BadInput:
        return
    assert found.architecture == document.get("architecture", "").partition(".")[0] or (
        found.architecture == document["pretrained_cfg"]["architecture"]
    )


@given(st.text(max_size=60))
def test_no_metadata_crashes_the_reader(tmp_path, text):
    for key in ("num_classes", "label_names", "model_args", "pretrained_cfg"):
        if "\x00" in text:
            continue
        try:
            assert resolve(tmp_path, metadata={"architecture": "x", key: text}).architecture == "x"
        except BadInput as e:
            assert key in e.message or "metadata" in e.message
    with pytest.raises(BadInput, match="not JSON"):
        resolve(tmp_path, metadata={"architecture": "x", "model_args": "[" * 100_000})


def test_tensors_tell_the_architecture_and_documents_the_rest(tmp_path):
    match = Match(("resnet18",), {})
    found = resolve(
        tmp_path,
        beside={"label_names": ["a"], "model_args": {"drop_rate": 0.1}},
        find=lambda shapes: match,
    )
    assert (found.architecture, found.origin) == ("resnet18", "its tensors")
    assert (found.label_names, found.model_args) == (("a",), {"drop_rate": 0.1})


def test_tensors_are_not_asked_where_a_document_names_the_architecture(tmp_path):
    resolve(tmp_path, beside={"architecture": "resnet18"}, find=None)


def test_the_lookup_sees_the_networks_own_names(tmp_path):
    seen = []
    path = make_target(
        tmp_path / "net.safetensors", {f"module.{n}": t for n, t in target_tensors().items()}
    )
    with pytest.raises(BadInput, match="none has tensors of these names"):
        resolve_identity(path, read_header(path), find=lambda s: seen.append(s) or Match((), {}))
    assert seen == [{n: shape for n, (_, shape, _) in target_tensors().items()}]


@pytest.mark.parametrize(
    "match, message, hint",
    [
        (
            Match(("a", "b"), {"a": {"act": "ReLU"}, "b": {"act": "SiLU"}}),
            r"2 timm architectures have just these tensors.*: a \(act ReLU\); b \(act SiLU\)",
            "--arch a, or the one",
        ),
        (
            Match((), {}, tuple("abcdefg"), "tensor 'x' has [1], that of a [2]"),
            r"names of a, b, c, d, e and 2 more, but other shapes: tensor 'x' has \[1\], that of a \[2\]",
            "--arch a with its model_args",
        ),
    ],
)
def test_what_the_tensors_do_not_settle_is_listed_with_the_flag_to_give(
    tmp_path, match, message, hint
):
    with pytest.raises(BadInput, match=message) as e:
        resolve(tmp_path, find=lambda shapes: match)
    assert hint in e.value.hint
