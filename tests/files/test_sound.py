"""files/sound.py: a manifest that does not fit its tensors is refused by inject and by info alike."""

import json
import math
import struct

import pytest
from support.handmade import (
    clone_tensors,
    make_clone,
    make_target,
    rewrite_manifest,
    snapshot,
)

from pnc_cli.errors import BadInput
from pnc_cli.files.clone_file import RawTensor, open_clone
from pnc_cli.files.describe import describe
from pnc_cli.files.finite import all_finite
from pnc_cli.files.patch import inject


def kept(*slices):
    return [{"axis": axis, "indices": list(indices)} for axis, indices in slices]


def module(name, *slices):
    return lambda d: d["module"][name].update(kept=kept(*slices))


def preprocessing(who, **fields):
    return lambda d: d[who]["preprocessing"].update(fields)


LIES = {
    "kept indices that stand twice": (
        lambda d: d["module"].update({"fc.empty": {"kept": kept((1, [1, 1]))}}),
        "stand twice",
    ),
    "fewer kept indices than numbers": (module("fc.weight", (1, [0])), "1 indices for 5 numbers"),
    "no kept index": (module("fc.weight", (0, [])), "0 indices for 1 numbers"),
    "an index of 2^62": (module("fc.weight", (0, [2**62])), "too large"),
    "an axis that is not there": (module("fc.weight", (2, [0])), "has 2 axes"),
    "an axis kept twice": (module("fc.weight", (0, [0]), (0, [0])), "an axis is kept twice"),
    "no modules": (lambda d: d.update(module={}), "tap, cut, adapter and module do not match"),
    "a copied tensor that is not listed": (
        lambda d: d["module"].pop("fc.empty"),
        "'module.fc.empty' is not listed",
    ),
    "a copied tensor that is not there": (
        lambda d: d["module"].update({"fc.more": {"kept": []}}),
        "'module.fc.more' is listed and not there",
    ),
    "std of nought": (preprocessing("target", std=[0.0] * 3), "std .* is no std"),
    "std below nought": (preprocessing("source", std=[-1.0] * 3), "source: std .* is no std"),
    "two means": (preprocessing("target", mean=[0.5, 0.5]), "mean has 2 values for 3 channels"),
    "crop_pct of nought": (preprocessing("target", crop_pct=0), "crop_pct 0"),
    "an interpolation that is none": (
        preprocessing("target", interpolation="foo"),
        "interpolation 'foo', expected one of",
    ),
    "a crop that is none": (preprocessing("target", crop_mode="foo"), "crop_mode 'foo'"),
    "an input of a million pixels": (
        preprocessing("target", input_size=[3, 10**6, 10**6]),
        "input_size",
    ),
    "a kernel of 100001": (lambda d: d["adapter"].update(kernel=100001), "kernel is odd"),
    "an even kernel": (lambda d: d["adapter"].update(kernel=2), "kernel is odd"),
    "an adapter of other size": (lambda d: d["adapter"].update(parameters=21), "adapter has 20"),
    "a join of other size": (lambda d: d["join"].update(parameters=8), "the join has 7 numbers"),
    "a join of another kind": (
        lambda d: d["join"].update(kind="mixture"),
        "'join.weight' is missing",
    ),
    "a join of other features": (
        lambda d: d["join"].update(branch_features=5),
        r"'join.mean_weight' has shape \[4\], expected \[5\]",
    ),
    "a tap of other shape": (
        lambda d: d["tap"].update(shape=[8, 8, 8]),
        r"'adapter.weight' has shape \[4, 4, 1, 1\], expected \[4, 8, 1, 1\]",
    ),
    "a grid that is not the map's": (lambda d: d["cut"].update(grid=[4, 8]), "cut: NCHW features"),
    "prefix tokens of a map": (lambda d: d["cut"].update(prefix=1), "prefix tokens: 1"),
    "a map of 2^40 cells": (
        lambda d: d["tap"].update(shape=[4, 2**20, 2**20], grid=[2**20, 2**20]),
        "tap: features of shape",
    ),
    "modulation of no layer": (
        lambda d: d["adapter"].update(modulation=["bn7"]),
        r"modulation of \[\], listed is \['bn7'\]",
    ),
    "a class of another name": (
        lambda d: d["classes"][0].update(source_name="toad"),
        "class 0 of the source is 'frog', not 'toad'",
    ),
    "a class beyond the source's": (
        lambda d: d["classes"][0].update(source_index=7),
        "is number 7 of 1",
    ),
    "a column beyond the source's": (lambda d: d.update(columns=[7]), "columns .7. are not those"),
    "label names for other classes": (
        lambda d: d["target"].update(num_classes=3),
        "target: 2 label names for 3 classes",
    ),
    "an accuracy above 1": (
        lambda d: d["measured"].update(locality=1.5),
        "locality is 1.5, expected 0 to 1",
    ),
}


@pytest.fixture
def target(tmp_path):
    return make_target(tmp_path / "t.safetensors")


@pytest.mark.parametrize("lie", LIES)
def test_7_a_manifest_that_lies_is_refused_before_anything_is_written(tmp_path, target, lie):
    change, message = LIES[lie]
    path = rewrite_manifest(make_clone(tmp_path / "c.safetensors", target), change)
    before = snapshot(tmp_path)
    for use in (describe, lambda p: inject(target, [p], tmp_path / "out.safetensors")):
        with pytest.raises(BadInput, match=message):
            use(path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("lie", LIES)
def test_7_nor_is_it_believed_inside_a_patched_file(tmp_path, target, lie):
    change, message = LIES[lie]
    clone = make_clone(tmp_path / "c.safetensors", target)
    patched = tmp_path / "p.safetensors"
    inject(target, [clone], patched)

    def of_the_clone(document):
        document["clones"][0].pop("sha256")
        change(document["clones"][0])

    with pytest.raises(BadInput, match=message):
        describe(rewrite_manifest(patched, of_the_clone))


@pytest.mark.parametrize("dtype", ["I32", "C64", "BOOL", "U8"])
def test_a_weight_of_integers_or_complex_numbers_is_refused(tmp_path, target, dtype):
    width = {"I32": 4, "C64": 8}.get(dtype, 1)
    odd = {**clone_tensors(), "module.x": RawTensor(dtype, (1,), bytes(width))}
    with pytest.raises(BadInput, match=f"'module.x' is {dtype}, no type of a weight"):
        make_clone(tmp_path / "c.safetensors", target, tensors=odd)


def test_every_bit_of_a_header_that_is_flipped_is_noticed(tmp_path, target):
    """The whole header: manifest, names, types, shapes and offsets."""
    path = make_clone(tmp_path / "c.safetensors", target)
    raw = path.read_bytes()
    path.with_suffix(".json").unlink()
    end = 8 + int.from_bytes(raw[:8], "little")
    unnoticed = []
    for at in range(0, end, 3):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        try:
            describe(path)
        except BadInput:
            continue
        unnoticed.append((at, raw[max(0, at - 20) : at + 10]))
    assert not [u for u in unnoticed if raw[u[0]] not in b" \t\n"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["adapter.bias", "join.offset", "module.x"])
def test_numbers_that_are_none_are_not_injected(tmp_path, target, name, bad):
    tensors = clone_tensors()
    shape = tensors[name].shape if name in tensors else (3,)
    count = math.prod(shape)
    values = [0.0] * (count - 1) + [bad]
    tensors[name] = RawTensor("F32", shape, struct.pack(f"<{count}f", *values))
    path = make_clone(tmp_path / "c.safetensors", target, tensors=tensors)
    before = snapshot(tmp_path)
    for use in (describe, lambda p: inject(target, [p], tmp_path / "out.safetensors")):
        with pytest.raises(BadInput, match=f"tensor '{name}' has numbers that are not finite"):
            use(path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "dtype, finite, other",
    [
        ("F16", "ff7b ff03 0000 00fb", "007c"),
        ("BF16", "7f7f 0080 4040 7fff", "80ff"),
        ("F32", "ffff7f7f 01000000 ffff7fff 00000000", "0000c07f"),
        ("F64", "ffffffffffffef7f 000000000000f03f", "000000000000f0ff"),
        ("I64", "ffffffffffffffff", None),
    ],
)
def test_finite_numbers_of_every_type_are_told_from_others(dtype, finite, other):
    data = bytes.fromhex(finite)
    assert all_finite(dtype, data) and all_finite(dtype, b"")
    if other:
        assert not all_finite(dtype, data + bytes.fromhex(other))


def test_a_clone_of_before_the_digest_is_still_read(tmp_path, target):
    path = rewrite_manifest(make_clone(tmp_path / "c.safetensors", target), lambda d: None)
    assert open_clone(path).manifest.sha256 is None
    describe(path)


def test_a_renamed_clone_has_the_digest_of_its_new_names(tmp_path, target):
    clone = make_clone(tmp_path / "c.safetensors", target)
    patched = inject(target, [clone], tmp_path / "p.safetensors", rename={"frog": "toad"})
    [manifest] = patched.clones
    assert manifest.sha256 == manifest.digest() != open_clone(clone).manifest.sha256
    assert json.loads((tmp_path / "p.json").read_text())["clones"][0]["sha256"] == manifest.sha256
