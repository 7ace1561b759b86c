"""files/patch.py: clones go into a checkpoint and come out of it, byte for byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from support.handmade import (
    LABELS,
    clone_tensors,
    flip,
    make_clone,
    make_target,
    rewrite_metadata,
    sha256,
    snapshot,
    target_tensors,
)

from pnc_cli.errors import BadInput, Incompatible, UsageError
from pnc_cli.files.clone_file import RawTensor
from pnc_cli.files.header import DTYPE_BITS, read_header
from pnc_cli.files.opened import open_checkpoint
from pnc_cli.files.patch import eject, inject
from pnc_cli.files.sound import COPIED

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


plain_name = text.filter(lambda n: n and n != "__metadata__" and not n.startswith("pnc."))


@st.composite
def tensors(draw, name=plain_name):
    """Tensors of any type and shape, zero-size and 0-d ones among them."""
    found = {}
    for n in draw(st.lists(name, unique=True, max_size=5)):
        dtype = draw(st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL", "U8", "F64", "F8_E4M3"]))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        size = DTYPE_BITS[dtype] // 8
        for s in shape:
            size *= s
        found[n] = (dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return found


part = text.filter(bool).map("module.{}".format)


def copied(found):
    """A clone with copied tensors of any shape, their numbers finite."""
    plain = {
        n: RawTensor(dtype, shape, bytes(byte & 0x3F for byte in data))
        for n, (dtype, shape, data) in found.items()
        if dtype in COPIED
    }
    return {**clone_tensors(), **plain}


clones = tensors(part).map(copied)
metadata = st.none() | st.dictionaries(text.filter(lambda k: not k.startswith("pnc.")), text)
padding = st.text(" ", max_size=9).map(str.encode)


@given(tensors(), metadata, padding, clones, clones)
def test_eject_gives_any_target_file_back_and_a_plus_b_minus_a_is_b(
    tmp_path, target, meta, pad, a, b
):
    path = tmp_path / "t.safetensors"
    make_target(path, target or {"x": ("U8", (0,), b"")}, meta, pad)
    for name, made in (("a", a), ("b", b)):
        make_clone(tmp_path / f"{name}.safetensors", path, tensors=made, name=name, labels=[name])
    files = {
        n: tmp_path / f"{n}.safetensors"
        for n in ("a+b", "b+a", "only b", "minus a", "back", "back too")
    }
    both = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    inject(path, both, files["a+b"], force=True)
    inject(path, both[1:], files["only b"], force=True)
    eject(files["a+b"], files["minus a"], names=["a"], force=True)
    assert files["minus a"].read_bytes() == files["only b"].read_bytes()
    eject(files["a+b"], files["back"], force=True)
    eject(files["minus a"], files["back too"], names=["b"], force=True)
    assert files["back"].read_bytes() == files["back too"].read_bytes() == path.read_bytes()
    inject(path, both[::-1], files["b+a"], force=True)
    eject(files["b+a"], files["back"], force=True)
    assert files["back"].read_bytes() == path.read_bytes()


@pytest.fixture
def target(tmp_path):
    return make_target(
        tmp_path / "t.safetensors", metadata={"format": "pt", "z": "é"}, pad=b" " * 3
    )


@pytest.fixture
def clone(tmp_path, target):
    return make_clone(tmp_path / "a.safetensors", target, name="a", labels=["cat"])


@pytest.fixture
def other(tmp_path, target):
    return make_clone(tmp_path / "b.safetensors", target, seed=5, name="b", labels=["dog"])


@pytest.fixture
def patched(tmp_path, target, clone, other):
    inject(target, [clone, other], tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_injecting_one_after_the_other_is_injecting_both(tmp_path, target, clone, other, patched):
    inject(target, [clone], tmp_path / "one.safetensors")
    inject(tmp_path / "one.safetensors", [other], tmp_path / "two.safetensors")
    assert (tmp_path / "two.safetensors").read_bytes() == patched.read_bytes()
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "p.json").read_bytes()


def test_the_usual_reader_finds_every_tensor_of_target_and_clones(tmp_path, patched):
    with safe_open(patched, "pt") as f:
        found = set(f.keys())
        metadata = f.metadata()
    ours = {f"pnc.{c}.{n}" for c in ("a", "b") for n in clone_tensors()}
    assert found - {"pnc.a.padding", "pnc.b.padding"} == {*target_tensors(), *ours}
    assert set(metadata) == {"format", "z", "pnc.target_header", "pnc.manifest"}


def test_clone_tensors_start_on_a_multiple_of_8(patched):
    header = read_header(patched)
    first = min(
        t.start for n, t in header.tensors.items() if n.startswith("pnc.a.") and t.dtype == "I64"
    )
    assert (first + header.data_start) % 8 == 0


def test_the_target_header_is_kept_verbatim(target, patched):
    raw = target.read_bytes()
    kept = read_header(patched).metadata["pnc.target_header"].encode()
    assert kept == raw[8 : 8 + int.from_bytes(raw[:8], "little")]


def test_the_sidecar_is_the_embedded_manifest(patched):
    embedded = read_header(patched).metadata["pnc.manifest"]
    assert patched.with_suffix(".json").read_text("utf-8") == embedded
    assert [c["name"] for c in json.loads(embedded)["clones"]] == ["a", "b"]


def test_a_renamed_label_is_what_the_patched_file_says(tmp_path, target, clone):
    patched = inject(target, [clone], tmp_path / "p.safetensors", rename={"cat": "tom"})
    assert patched.clones[0].labels == ["tom"]
    assert [c.manifest.labels for c in open_checkpoint(tmp_path / "p.safetensors").clones] == [
        ["tom"]
    ]
    eject(tmp_path / "p.safetensors", tmp_path / "back.safetensors")
    assert sha256(tmp_path / "back.safetensors") == sha256(target)


def refused(tmp_path, error, message, call):
    """``call`` raises and leaves everything as it was; its hint is returned."""
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message) as e:
        call()
    assert snapshot(tmp_path) == before
    return e.value.hint


def test_a_clone_for_other_weights_is_refused_naming_the_tensor(tmp_path, clone):
    changed = {**target_tensors(), "fc.bias": ("BF16", (5,), bytes(10))}
    trained = make_target(tmp_path / "trained.safetensors", changed)
    hint = refused(
        tmp_path,
        Incompatible,
        r"tensor 'fc.bias' is BF16 \[5\] \w{16}, expected BF16 \[5\] \w{16}",
        lambda: inject(trained, [clone], tmp_path / "p.safetensors"),
    )
    assert hint.startswith("give the target it was made for")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("mask"), "has a tensor 'mask', this file has not"),
        (
            lambda t: t.update(more=("U8", (1,), b"x")),
            "tensor 'more' is not in its target, a resnet18",
        ),
        (
            lambda t: t.update({"conv.weight": ("F32", (3, 2), t["conv.weight"][2])}),
            r"'conv.weight' is F32 \[3, 2\]",
        ),
    ],
    ids=["missing", "more", "shape"],
)
def test_a_clone_for_another_architecture_is_refused_naming_the_tensor(
    tmp_path, clone, change, message
):
    tensors = target_tensors()
    change(tensors)
    wrong = make_target(tmp_path / "wrong.safetensors", tensors)
    refused(
        tmp_path, Incompatible, message, lambda: inject(wrong, [clone], tmp_path / "p.safetensors")
    )


def test_the_same_clone_twice_is_refused(tmp_path, target, clone, patched):
    hint = refused(
        tmp_path,
        Incompatible,
        "clone 'a' is in the checkpoint already",
        lambda: inject(patched, [clone], tmp_path / "q.safetensors"),
    )
    assert hint == (f"take that off first: pnc eject {patched} --name a -o without.safetensors")
    refused(
        tmp_path,
        UsageError,
        f"{clone}: given twice",
        lambda: inject(target, [clone, clone], tmp_path / "q.safetensors"),
    )


@pytest.mark.parametrize("label, owner", [(LABELS[0], "the target"), ("dog", "clone 'b'")])
def test_a_label_that_is_taken_is_refused_with_the_way_to_rename(
    tmp_path, target, other, label, owner
):
    same = make_clone(tmp_path / "c.safetensors", target, name="c", labels=["new", label])
    hint = refused(
        tmp_path,
        Incompatible,
        f"class '{label}' of clone 'c' is a label of {owner} already",
        lambda: inject(target, [other, same], tmp_path / "p.safetensors"),
    )
    files = " ".join(map(str, (target, other, same)))
    option = f"--rename c:{label}={label}_2"
    assert hint == (
        f"inject it under another label: pnc inject {files} {option} -o patched.safetensors"
    )
    inject(target, [other], tmp_path / "p.safetensors")
    assert inject(
        tmp_path / "p.safetensors", [same], tmp_path / "q.safetensors", rename={label: f"{label}_2"}
    )


@pytest.mark.parametrize(
    "rename, error, message",
    [
        ({"wolf": "dog"}, UsageError, "no clone has a class 'wolf'"),
        ({"cat": LABELS[1]}, Incompatible, "is a label of the target already"),
        ({"cat": "x" * 1001}, BadInput, "does not follow"),
    ],
    ids=["unknown", "taken", "too long"],
)
def test_a_bad_rename_is_refused(tmp_path, target, clone, rename, error, message):
    refused(
        tmp_path,
        error,
        message,
        lambda: inject(target, [clone], tmp_path / "p.safetensors", rename=rename),
    )


def test_a_corrupt_clone_is_refused(tmp_path, target, clone):
    flip(clone, -1)
    refused(
        tmp_path,
        BadInput,
        "clone 'a' is corrupt",
        lambda: inject(target, [clone], tmp_path / "p.safetensors"),
    )


@pytest.mark.parametrize("names", [None, ["a"]], ids=["all", "one"])
def test_a_damaged_patched_checkpoint_is_not_ejected(tmp_path, patched, names):
    start = read_header(patched).data_start
    flip(patched, start + 3)
    hint = refused(
        tmp_path,
        BadInput,
        "the target in it is not what was patched",
        lambda: eject(patched, tmp_path / "q.safetensors", names=names),
    )
    assert "inject into the original target again" in hint


def test_what_is_not_patched_cannot_be_ejected(tmp_path, target):
    refused(
        tmp_path,
        BadInput,
        "is not a patched checkpoint",
        lambda: eject(target, tmp_path / "q.safetensors"),
    )


def test_an_unknown_clone_cannot_be_ejected(tmp_path, patched):
    hint = refused(
        tmp_path,
        UsageError,
        "has no clone 'c'",
        lambda: eject(patched, tmp_path / "q.safetensors", names=["a", "c"]),
    )
    assert hint == "it has: a, b"


def without_its_last_clone(text):
    document = json.loads(text)
    document["clones"].pop()
    return json.dumps(document)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.pop("pnc.manifest"), "without 'pnc.manifest'"),
        (lambda m: m.update({"pnc.target_header": "{}"}), "not laid out as in the target file"),
        (lambda m: m.update({"pnc.target_header": "{"}), "not valid JSON"),
        (
            lambda m: m.update(
                {"pnc.manifest": m["pnc.manifest"].replace('"name": "b"', '"name": "c"')}
            ),
            "clone 'c': its manifest is not what was written",
        ),
        (
            lambda m: m.update({"pnc.manifest": without_its_last_clone(m["pnc.manifest"])}),
            "tensor 'pnc.b.* belongs to no clone",
        ),
        (
            lambda m: m.update(
                {"pnc.manifest": m["pnc.manifest"].replace("patched/1", "patched/2")}
            ),
            "this pnc reads 'pnc.patched/1'",
        ),
    ],
    ids=["no manifest", "other header", "broken header", "renamed", "no such clone", "newer"],
)
def test_a_patched_checkpoint_that_contradicts_itself_is_refused(patched, change, message):
    with pytest.raises(BadInput, match=message):
        open_checkpoint(rewrite_metadata(patched, change))


@pytest.mark.parametrize(
    "tensors, metadata",
    [
        ({"pnc.x": ("U8", (1,), b"x")}, None),
        ({"x": ("U8", (1,), b"x")}, {"pnc.other": "1"}),
    ],
    ids=["tensor", "metadata"],
)
def test_a_target_that_uses_our_prefix_is_refused(tmp_path, tensors, metadata):
    with pytest.raises(BadInput, match="reserved prefix 'pnc.'"):
        open_checkpoint(make_target(tmp_path / "t.safetensors", tensors, metadata))


def test_a_clone_is_not_a_checkpoint(clone):
    with pytest.raises(BadInput, match="is a clone, not a checkpoint"):
        open_checkpoint(clone)


@pytest.mark.parametrize("output", ["t.safetensors", "a.safetensors"])
def test_an_input_or_its_sidecar_is_never_replaced_even_with_force(tmp_path, target, clone, output):
    refused(
        tmp_path,
        UsageError,
        "is an input",
        lambda: inject(target, [clone], tmp_path / output, force=True),
    )


def test_a_target_that_replaces_a_patched_checkpoint_takes_its_manifest_away(
    tmp_path, target, clone, patched
):
    old = tmp_path / "old.safetensors"
    inject(target, [clone], old)
    eject(patched, old, force=True)
    assert old.read_bytes() == target.read_bytes()
    document = json.loads(old.with_suffix(".json").read_text())  # the target's, in its place
    assert "schema" not in document and document["architecture"] == "resnet18"
    patched.rename(odd := tmp_path / "p.ckpt")  # what lies beside it is an input too
    with pytest.raises(UsageError, match="p.json: is an input"):
        eject(odd, patched, force=True)
    assert not patched.exists()
