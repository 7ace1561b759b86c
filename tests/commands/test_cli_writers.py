"""What is refused of networks, and said of them, is the same in every command."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.command import pnc, pnc_forked
from support.networks import RESNET, draw_folder, make_network, save_checkpoint

QUICK = ["--epochs", "0", "--limit-per-class", "6", "--tap", "layer1", "--cut", "layer2"]


@pytest.fixture(scope="module")
def odd(made, tmp_path_factory):
    """A folder with networks that cannot be cloned between, and a sound ``good``."""
    folder = tmp_path_factory.mktemp("odd")
    for suffix in (".safetensors", ".json"):
        shutil.copy(made.target.with_suffix(suffix), folder / f"good{suffix}")
    one = make_network("resnet18", 1, **RESNET)
    save_checkpoint(folder / "logit.safetensors", one, "resnet18", ["defect"], **RESNET)
    maps = make_network("resnet18", 3, **RESNET)
    args = {**RESNET, "global_pool": ""}
    save_checkpoint(folder / "maps.safetensors", maps, "resnet18", ["red", "b", "c"], **args)
    twice = ["red", "green", "red"]
    save_checkpoint(folder / "twice.safetensors", maps, "resnet18", twice, **RESNET)
    return folder


COMMANDS = {
    "eval": ["eval", "FILE", "--data"],
    "search": ["search", "good.safetensors", "FILE", "--data"],
    "clone": ["clone", "good.safetensors", "FILE", "-o", "c.safetensors", "--data"],
    "as the source": ["clone", "FILE", "good.safetensors", "-o", "c.safetensors", "--data"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "file, message",
    [
        ("logit", "logit.safetensors: the classifier has one logit"),
        ("maps", "maps.safetensors: the network does not answer with one row of 3 logits"),
        ("twice", "twice.safetensors: classes 0 and 2 are both called 'red'"),
    ],
)
def test_refused_in_every_command_in_the_same_words(made, odd, command, file, message):
    if (file, command) == ("twice", "as the source"):
        pytest.skip("other classes of such a source may be cloned")
    asked = [f"{file}.safetensors" if a == "FILE" else a for a in COMMANDS[command]]
    ran = pnc_forked(*asked, made.train, "--json", cwd=odd)
    assert ran.code == 3 and ran.json["error"]["message"].startswith(message)
    assert ran.json["error"]["hint"] and not (odd / "c.safetensors").exists()


def test_a_clone_class_that_the_target_has_under_another_name_is_said(made, tmp_path):
    files = [made.source, made.target, "--data", "data", "-c", "blue=azure"]
    draw_folder(tmp_path / "data", ["red", "green", "blue"], 12, first=300)
    (tmp_path / "data" / "blue").rename(tmp_path / "data" / "azure")
    said = "the target by itself answers 'blue' for"
    ran = pnc_forked("clone", *files, "-o", "c.safetensors", *QUICK, cwd=tmp_path)
    assert ran.code == 0 and said in ran.err and "'azure'" in ran.err, ran.err
    manifest = json.loads((tmp_path / "c.json").read_text())
    [known] = manifest["measured"]["known_already"]
    assert (known["name"], known["label"]) == ("azure", "blue") and known["share"] >= 0.9
    ran = pnc_forked("search", *files, "--tap", "layer1", "--cut", "layer2", cwd=tmp_path)
    assert ran.code == 0 and said in ran.out


def test_a_clone_of_a_source_without_counters_is_a_slice_of_it(made, tmp_path):
    kept = {n: t for n, t in load_file(made.source).items() if "num_batches" not in n}
    save_file(kept, tmp_path / "s.safetensors")
    shutil.copy(made.source.with_suffix(".json"), tmp_path / "s.json")
    files = ["s.safetensors", made.target, "--data", made.train]
    ran = pnc_forked("clone", *files, "-o", "c.safetensors", *QUICK, cwd=tmp_path)
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "c.json").read_text())
    assert manifest["module"] and set(manifest["module"]) <= set(kept)
    args = ["eval", made.target, "--clone", "c.safetensors", "--data", made.test, "--json"]
    assert pnc_forked(*args, cwd=tmp_path).code == 0


def test_info_names_what_a_file_is(tmp_path):
    (tmp_path / "t.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    ran = pnc("info", "t.safetensors", "--json", cwd=tmp_path)
    assert ran.code == 3 and "a Git LFS pointer" in ran.json["error"]["message"]
    assert "git lfs pull" in ran.json["error"]["hint"]
