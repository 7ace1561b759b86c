"""files/forms.py: folders, shards, wrapped names and EMA twins."""

import shlex
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.handmade import make_clone, make_target, numbers, sha256, target_tensors

from pnc_cli.errors import BadInput
from pnc_cli.files.digest import combined_sha256
from pnc_cli.files.forms import checkpoint_file, common_prefix, own_names
from pnc_cli.files.opened import open_checkpoint
from pnc_cli.files.patch import eject, inject

WRAPPED = [
    "module.",
    "model.",
    "_orig_mod.",
    "state_dict.",
    "module._orig_mod.",
    "state_dict.model.module.",
]
WRAPPERS = ["module.", "model.", "_orig_mod.", "state_dict.", "timm_model.", "net.backbone."]
NAMES = ["conv.weight", "fc.weight", "fc.bias"]


def wrapped(prefix, tensors=None):
    return {prefix + n: t for n, t in (tensors or target_tensors()).items()}


def run(hint):
    """Runs the ``python -c …`` that a hint ends with."""
    _, *rest = shlex.split(hint[hint.index("python -c") :])
    subprocess.run([sys.executable, *rest], check=True)


# wrapped names

own = st.sets(st.text(st.sampled_from("abm._"), min_size=1, max_size=6), min_size=1, max_size=5)
prefixes = st.lists(st.sampled_from(WRAPPERS), max_size=3).map("".join)


@given(own, prefixes)
def test_whatever_wraps_all_names_is_looked_through_and_nothing_else(names, prefix):
    bare = own_names("x", names)
    found = own_names("x", {prefix + n for n in names})
    assert {n.removeprefix(prefix): o for n, o in found.items()} == bare
    assert len(set(found.values())) == len(names) and all(n.endswith(o) for n, o in found.items())


@given(own, prefixes.filter(bool))
def test_a_prefix_of_some_names_only_is_part_of_them(names, prefix):
    names = {prefix + n for n in names} | {"fc"}
    assert own_names("x", names) == {n: n for n in names}


@given(own, prefixes)
def test_clones_for_wrapped_targets_go_in_and_come_out_byte_for_byte(tmp_path, names, prefix):
    tensors = {prefix + n: ("U8", (3,), numbers(3, i)) for i, n in enumerate(sorted(names))}
    target = make_target(tmp_path / "t.safetensors", tensors, pad=b" " * 3)
    clone = make_clone(tmp_path / "c.safetensors", target)
    inject(target, [clone], tmp_path / "p.safetensors", force=True)
    eject(tmp_path / "p.safetensors", tmp_path / "o.safetensors", force=True)
    assert sha256(tmp_path / "o.safetensors") == sha256(target)
    header = open_checkpoint(tmp_path / "p.safetensors").header
    assert set(tensors) == {n for n in header.tensors if not n.startswith("pnc.")}


@pytest.mark.parametrize("prefix", WRAPPED)
def test_the_same_weights_under_wrapped_names_are_the_same_target(tmp_path, prefix):
    plain = make_target(tmp_path / "plain.safetensors")
    other = make_target(tmp_path / "wrapped.safetensors", wrapped(prefix))
    digests = [combined_sha256(open_checkpoint(p).target_digests()) for p in (plain, other)]
    assert digests[0] == digests[1]
    assert open_checkpoint(other).prefix == prefix
    clone = make_clone(tmp_path / "c.safetensors", plain)
    inject(other, [clone], tmp_path / "p.safetensors")
    assert open_checkpoint(tmp_path / "p.safetensors").prefix == prefix


# moving averages


@pytest.mark.parametrize(
    "first, second",
    [
        ("model.", "model_ema."),
        ("", "ema."),
        ("state_dict.", "state_dict_ema."),
        ("model.", "ema.module."),
        ("module.model.", "module.ema_model."),
    ],
)
def test_a_file_with_a_moving_average_is_refused_and_the_hint_takes_it_out(tmp_path, first, second):
    plain = {n: torch.randn(3) for n in NAMES}
    average = {n: torch.randn(3) for n in NAMES}
    path = tmp_path / "x.safetensors"
    save_file({**wrapped(first, plain), **wrapped(second, average)}, path)
    with pytest.raises(BadInput, match="3 tensors twice") as e:
        open_checkpoint(path)
    assert f"'{second}…'" in e.value.message and (f"'{first}…'" in e.value.message) == bool(first)
    run(e.value.hint.replace(" ema.safetensors", f" {tmp_path / 'ema.safetensors'}"))
    found = load_file(tmp_path / "ema.safetensors")
    assert set(found) == set(NAMES) and all(torch.equal(found[n], average[n]) for n in NAMES)


def test_a_moving_average_alone_is_taken():
    assert set(own_names("x", wrapped("model_ema.")).values()) == set(target_tensors())


def test_tensors_that_only_sound_like_an_average_are_the_networks_own():
    names = ["schema.weight", "fc.weight", "fc.bias"]
    assert own_names("x", names) == {n: n for n in names} and common_prefix(names) == ""


# folders and files


def test_a_folder_stands_for_the_file_in_it(tmp_path):
    target = make_target(tmp_path / "model.safetensors")
    assert checkpoint_file(tmp_path) == target == open_checkpoint(tmp_path).path
    assert checkpoint_file(target) == target


def test_a_folder_with_other_files_names_them(tmp_path):
    make_target(tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match="without model.safetensors; it has a.safetensors") as e:
        checkpoint_file(tmp_path)
    assert str(tmp_path / "a.safetensors") in e.value.hint


def test_a_single_file_numbered_as_one_is_no_shard(tmp_path):
    path = make_target(tmp_path / "model-00001-of-00001.safetensors")
    assert checkpoint_file(path) == path


def test_a_folder_that_cannot_be_listed_is_bad_input(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        checkpoint_file(tmp_path)


@pytest.mark.parametrize(
    "given", ["", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
)
def test_shards_are_refused_and_the_hint_puts_them_together(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(NAMES, 1):
        save_file({name: torch.full((2,), i)}, f"model-{i:05}-of-00003.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadInput, match="in several files, expected one") as e:
        checkpoint_file(tmp_path / given)
    run(e.value.hint)
    assert {n: t[0].item() for n, t in load_file("model.safetensors").items()} == dict(
        zip(NAMES, (1, 2, 3))
    )


@pytest.mark.parametrize("around", [None, "state_dict", "model"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "it's.pth"])
def test_a_pickle_is_refused_and_the_hint_converts_it(tmp_path, monkeypatch, around, name):
    monkeypatch.chdir(tmp_path)
    tied = torch.randn(3)
    weights = {"a": tied, "b": tied, "c": torch.randn(4, 2).T}
    torch.save({around: weights, "epoch": 3} if around else weights, name)
    hints = []
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(BadInput, match="pickle|safetensors file") as e:
            open_checkpoint(path)
        hints.append(e.value.hint)
    for hint in hints:
        run(hint)
        [made] = tmp_path.glob("*.safetensors")
        assert all(torch.equal(t, weights[n]) for n, t in load_file(made).items())
        assert set(load_file(made)) == set(weights)
        made.unlink()
