"""``pnc info``: what it calls sound is, and what contradicts itself exits 3."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.command import pnc, pnc_forked
from support.handmade import rewrite_manifest, rewrite_metadata
from support.networks import make_network

RESNET18 = {"architecture": "resnet18", "num_classes": 3, "label_names": ["a", "b", "c"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """w.safetensors: a resnet18 as timm builds it, of three classes, and nothing beside it."""
    path = tmp_path_factory.mktemp("whole") / "w.safetensors"
    save_file(make_network("resnet18", 3).state_dict(), path)
    return path


@pytest.fixture
def files(made, whole, tmp_path):
    for name in ("source", "target", "clone", "patched"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(made.folder / (name + suffix), tmp_path)
    (tmp_path / "w.safetensors").symlink_to(whole)
    (tmp_path / "w.json").write_text(json.dumps(RESNET18))
    return tmp_path


@pytest.mark.parametrize("name", ["w", "target", "clone", "patched"])
def test_sound_files_are_called_so(files, name):
    ran = pnc_forked("info", f"{name}.safetensors", cwd=files)
    assert (ran.code, ran.err) == (0, "") and ran.out.endswith("\nsound\n")
    ran = pnc_forked("info", f"{name}.safetensors", "--json", cwd=files)
    assert ran.json["ok"] is True and ran.json["sound"] is True and ran.json["problems"] == []


def test_what_nothing_names_is_neither_sound_nor_not(files):
    (files / "target.json").unlink()
    tensors = load_file(files / "target.safetensors")
    save_file({f"x{n}": t for n, t in tensors.items()}, files / "target.safetensors")
    ran = pnc("info", "target.safetensors", "--json", cwd=files)
    assert (ran.code, ran.json["sound"]) == (0, None)
    assert "whether it is sound is not known" in pnc("info", "target.safetensors", cwd=files).out


def text(name, content):
    return lambda d: (d / name).write_text(content)


def says(name, **changes):
    def change(folder):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def tensors(change):
    def edit(folder):
        found = load_file(folder / "target.safetensors")
        change(found)
        save_file(found, folder / "target.safetensors")

    return edit


def manifest(change):
    def edit(document):
        document.pop("sha256", None)  # as clones were before they held it
        change(document)

    return lambda d: rewrite_manifest(d / "clone.safetensors", edit)


def patched(change):
    def edit(metadata):
        document = json.loads(metadata["pnc.manifest"])
        for one in document["clones"]:
            one.pop("sha256", None)  # as clones were before they held it
        change(document)
        metadata["pnc.manifest"] = json.dumps(document)

    return lambda d: [
        (d / "patched.json").unlink(),
        rewrite_metadata(d / "patched.safetensors", edit),
    ]


def reversed_labels(document):
    document["target"]["label_names"].append("one more")


UNSOUND = {
    "fewer labels than classes": (says("w", num_classes=None, label_names=["a", "b"]), "w.safetensors", "its classifier has 3 classes, but label_names says 2"),
    "another class count": (says("w", num_classes=4, label_names=None), "w.safetensors", "its classifier has 3 classes, but num_classes says 4"),
    "labels and count that differ": (says("w", num_classes=4), "w.safetensors", "has 3 labels for 4 classes"),
    "a label twice": (says("w", label_names=["a", "b", "a"]), "w.safetensors", "label 'a' stands for 2 classes"),
    "a label twice, model_args": (says("target", label_names=["red", "red", "blue"]), "target.safetensors", "label 'red' stands for 2 classes"),
    "fewer labels, model_args": (says("target", num_classes=None, label_names=["red", "blue"]), "target.safetensors", "has 3 classes, but label_names says 2"),
    "another architecture": (says("w", architecture="resnet34"), "w.safetensors", "does not hold a resnet34"),
    "no architecture of timm's": (says("w", architecture="resnet1800"), "w.safetensors", "has no architecture 'resnet1800'"),
    "other model_args": (says("target", model_args={"channels": [8, 8, 16, 32]}), "target.safetensors", "does not hold a resnet18"),
    "a tensor missing": (tensors(lambda t: t.pop("layer1.0.conv1.weight")), "target.safetensors", "'layer1.0.conv1.weight'"),
    "a tensor too many": (tensors(lambda t: t.update(extra=t["fc.bias"].clone())), "target.safetensors", "'extra'"),
    "a document that is no JSON": (text("w.json", "{"), "w.safetensors", "w.json: not valid JSON"),
    "a document of another kind": (text("w.json", "[1]"), "w.safetensors", "w.json: expected a JSON object"),
    "a broken config.json": (text("config.json", "nonsense"), "w.safetensors", "config.json: not valid JSON"),
    "a mean of words": (says("w", pretrained_cfg={"mean": ["x"]}), "w.safetensors", "mean is"),
    "a patched file's sidecar": (text("patched.json", "{}"), "patched.safetensors", "patched.json: differs from the manifest inside patched.safetensors"),
    "a clone's sidecar": (text("clone.json", "{}"), "clone.safetensors", "clone.json: differs from the manifest inside clone.safetensors"),
    "the document itself": (lambda d: (d / "clone.json").write_text((d / "clone.json").read_text().replace('"yellow"', '"golden"')), "clone.json", "clone.json: "),
    "a clone for more labels": (manifest(reversed_labels), "clone.safetensors", "4 label names for 3 classes"),
    "a class beyond the source's": (manifest(lambda m: m["classes"][0].update(source_index=77)), "clone.safetensors", "class 'yellow' is number 77 of 3"),
    "a class of another number": (manifest(lambda m: m["classes"][0].update(source_index=0)), "clone.safetensors", "class 0 of the source is 'blue', not 'yellow'"),
    "a label of the target": (manifest(lambda m: m["classes"][0].update(name="red")), "clone.safetensors", "class 'red' of clone"),
    "the same in a patched file": (patched(lambda m: m["clones"][0]["classes"][0].update(name="red")), "patched.safetensors", "class 'red' of clone"),
    "a clone for other tensors": (patched(lambda m: m["clones"][0]["target"].update(tensors_sha256="0" * 64)), "patched.safetensors", "was made for other tensors than the target's"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, name, message", UNSOUND.values(), ids=UNSOUND)
def test_what_contradicts_itself_exits_3_and_says_what(files, spoil, name, message):
    spoil(files)
    ran = pnc_forked("info", name, "--json", cwd=files)
    assert ran.code == 3, ran.out
    found = ran.json
    assert found["ok"] is False and found["error"]["code"] == "bad_input"
    assert message in found["error"]["message"] and message in ran.err
    plain = pnc_forked("info", name, cwd=files)
    assert plain.code == 3 and message in plain.err and not plain.out.endswith("sound\n")
