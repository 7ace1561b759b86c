"""What becomes of labels and folders, through the real command: nothing is dropped in silence."""

import json
import shutil

import pytest
from support.command import clone_forked, pnc_forked

QUICK = (*("--tap", "layer2", "--cut", "layer2", "--share", "1", "--epochs", "0"),)


@pytest.fixture
def folder(made, tmp_path):
    """Both networks and the images, to be changed."""
    for name in ("source", "target"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(made.folder / f"{name}{suffix}", tmp_path)
    for label in [*made.old, *made.new]:
        (tmp_path / "data" / label).mkdir(parents=True)
        for path in sorted((made.train / label).iterdir())[:6]:
            shutil.copy(path, tmp_path / "data" / label)
    return tmp_path


def clone(folder, *more):
    files = ("source.safetensors", "target.safetensors", "--data", "data")
    return pnc_forked("clone", *files, "-o", "c.safetensors", *QUICK, *more, cwd=folder)


def unname(path):
    document = json.loads(path.read_text())
    del document["label_names"]
    path.write_text(json.dumps(document))


def test_the_block_comes_before_the_work_and_json_carries_it(folder):
    (folder / "data" / "Gren").mkdir()
    (folder / "data" / "green").rename(folder / "data" / "gren")
    (folder / "data" / "Gren").rmdir()
    shutil.copy(folder / "data" / "red" / "100.png", folder / "data" / "red" / "100.webp.bak")
    for path in (folder / "data" / "blue").iterdir():
        path.rename(path.with_suffix(".raw"))
    ran = clone(folder, "--json")
    assert ran.code == 0, ran.err
    data = ran.json["data"]
    assert data["clone_classes"] == {"yellow": 6, "purple": 6}
    assert data["original_classes"] == {"red": 6}
    assert data["folders_of_no_class"] == {"gren": 6}
    assert data["probably_meant"] == {"gren": "green"}
    assert data["folders_without_images"] == {"blue": 6}
    assert data["classes_without_folder"] == ["green"]
    [left] = data["left_out"]
    assert "red/100.webp.bak" in left["files"] and len(left["files"]) == 7
    lines = ran.err.splitlines()
    [block] = [k for k, line in enumerate(lines) if line.startswith("data data: ")]
    [images] = [k for k, line in enumerate(lines) if line.startswith("images: ")]
    assert block < images and "did you mean 'green'?" in ran.err


@pytest.mark.parametrize("command", ["search", "eval", "inject"])
def test_every_command_with_data_reconciles(made, folder, command):
    (folder / "data" / "pink").mkdir()
    shutil.copy(folder / "data" / "red" / "100.png", folder / "data" / "pink")
    pair = ("source.safetensors", "target.safetensors")
    args = {
        "search": ("search", *pair, "--tap", "layer2", "--cut", "layer2"),
        "eval": ("eval", made.patched),
        "inject": ("inject", "target.safetensors", made.clone, "-o", "p.safetensors"),
    }[command]
    ran = pnc_forked(*args, "--data", "data", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["data"]["folders_of_no_class"] == {"pink": 1}
    assert "folders that are no class, not used: pink" in ran.err
    quiet = pnc_forked(
        *args, "--data", "data", "-q", "--force"[: 7 * (command != "eval")] or "-q", cwd=folder
    )
    assert (quiet.code, quiet.err) == (0, "")


def test_source_classes_that_have_folders_are_taken(folder):
    shutil.rmtree(folder / "data" / "purple")
    ran = clone(folder, "--json")
    assert ran.code == 0, ran.err
    assert [c["name"] for c in ran.json["manifest"]["classes"]] == ["yellow"]
    assert "clone classes without a folder: purple" in ran.err
    assert ran.json["data"]["classes_without_folder"] == ["purple"]


def test_a_misspelt_folder_is_not_taken_for_a_missing_one(folder):
    (folder / "data" / "purple").rename(folder / "data" / "Purples")
    ran = clone(folder)
    assert ran.code == 3 and "'Purples' is no class; is it 'purple'" in ran.err
    assert "mv data/Purples data/purple" in ran.err
    named = clone(folder, "-c", "yellow,purple")
    assert named.code == 3 and "no images of clone class 'purple'" in named.err
    assert "mv data/Purples data/purple" in named.err
    (folder / "data" / "Purples").rename(folder / "data" / "purple")
    assert clone(folder).code == 0


def test_a_class_that_is_misspelt_and_a_pair_that_is_swapped_are_guessed(folder):
    ran = clone(folder, "-c", "yelow")
    assert ran.code == 4 and "did you mean 'yellow'?" in ran.err
    ran = pnc_forked(
        *("clone", "target.safetensors", "source.safetensors", "--data", "data"),
        *("-c", "yellow", "-o", "c.safetensors"),
        cwd=folder,
    )
    assert ran.code == 4 and "swapped?" in ran.err


def test_an_empty_folder_of_a_clone_class_is_not_a_missing_one(folder):
    for path in (folder / "data" / "yellow").iterdir():
        path.rename(path.with_suffix(".raw"))
    ran = clone(folder, "-c", "yellow")
    assert ran.code == 3 and "'yellow' is there, with 0 images and 6 other files" in ran.err


def test_an_original_class_of_which_no_image_decodes_is_named(folder):
    for path in (folder / "data" / "red").iterdir():
        path.write_bytes(b"")
    refused = clone(folder)
    assert refused.code == 3 and "the file is empty" in refused.err
    ran = clone(folder, "--skip-bad")
    assert ran.code == 0 and "original classes of which no image decodes, left out: red" in ran.err
    for path in (folder / "data" / "yellow").iterdir():
        path.write_bytes(b"")
    ran = clone(folder, "--skip-bad", "--force")
    assert ran.code == 3 and "no image of clone class 'yellow' decodes" in ran.err


def test_a_target_that_names_no_classes_does_not_lose_its_images(folder):
    unname(folder / "target.json")
    ran = clone(folder)
    assert ran.code == 4 and "target.safetensors: names no classes (0 to 2 assumed)" in ran.err
    assert "label_names" in ran.err and "target.json" in ran.err
    ran = clone(folder, "-c", "yellow,purple")
    assert ran.code == 4 and "blue, green, red match none" in ran.err
    ran = clone(folder, "-c", "yellow,purple", "--no-originals")
    assert ran.code == 0, ran.err


def test_a_source_that_names_no_classes_is_the_cause_that_is_told(folder):
    unname(folder / "source.json")
    ran = clone(folder)
    assert ran.code == 3 and "source.safetensors names no classes" in ran.err
    unname(folder / "target.json")
    ran = clone(folder)
    assert ran.code == 4 and "name no classes" in ran.err and "source.json" in ran.err


def test_eval_of_a_checkpoint_without_names_says_so(folder):
    unname(folder / "target.json")
    ran = pnc_forked("eval", "target.safetensors", "--data", "data", cwd=folder)
    assert ran.code == 3 and "names no classes, so they are numbered: 0, 1, 2" in ran.err


def test_classes_that_a_patched_target_holds_are_not_cloned_again(made, folder):
    ran = clone_forked(made, "-c", "yellow", "--name", "one", *QUICK, cwd=folder)
    assert ran.code == 0, ran.err
    inject = ("inject", "target.safetensors", "c.safetensors", "-o", "p.safetensors")
    assert pnc_forked(*inject, cwd=folder).code == 0
    again = ("clone", "source.safetensors", "p.safetensors", "--data", "data", *QUICK)
    ran = pnc_forked(*again, "-o", "d.safetensors", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert [c["name"] for c in ran.json["manifest"]["classes"]] == ["purple"]
    assert ran.json["data"]["folders_not_used"] == {
        "clones in the target's file have them": {"yellow": 6}
    }
    both = ("inject", "p.safetensors", "d.safetensors", "-o", "q.safetensors")
    assert pnc_forked(*both, cwd=folder).code == 0
    named = pnc_forked(*again, "-c", "yellow", "-o", "e.safetensors", cwd=folder)
    assert named.code == 4 and "a clone in the target's file has a class 'yellow'" in named.err


def test_one_folder_does_not_teach_two_classes(folder):
    shutil.rmtree(folder / "data" / "purple")
    ran = clone(folder, "-c", "yellow=purple,purple=yellow")
    assert ran.code == 3 and "the folder 'yellow' would teach both" in ran.err


def test_a_nested_split_is_refused_by_every_command(made, folder):
    (folder / "root").mkdir()
    (folder / "data").rename(folder / "root" / "train")
    shutil.copytree(folder / "root" / "train", folder / "root" / "valid")
    pair = ("source.safetensors", "target.safetensors")
    for args in (
        ("search", *pair),
        ("clone", *pair, "-o", "c.safetensors"),
        ("eval", made.patched),
        ("inject", "target.safetensors", made.clone, "-o", "p.safetensors"),
    ):
        ran = pnc_forked(*args, "--data", "root", cwd=folder)
        assert ran.code == 3 and "--data root/train" in ran.err, ran.err
    assert clone(folder, "--data", "root/train").code == 0


def test_a_split_of_hfds_is_chosen_said_and_in_the_json(made, folder, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    (folder / "root").mkdir()
    (folder / "data").rename(folder / "root" / "train")
    shutil.copytree(folder / "root" / "train", folder / "root" / "test")
    shutil.rmtree(folder / "root" / "test" / "red")
    hub = f"hfds/{folder / 'root'}"
    ran = clone(folder, "--data", hub)
    assert ran.code == 2 and "has the splits train, test" in ran.err
    ran = clone(folder, "--data", hub, "--split", "train", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["data"]["split"] == "train" and "split 'train'" in ran.err
    assert ran.json["data"]["original_classes"] == {"red": 6, "green": 6, "blue": 6}


@pytest.mark.parametrize(
    "args",
    [
        ("search", "--skip-bad"),
        ("search", "--no-originals"),
        ("search", "--limit-per-class", "5"),
        ("search", "--split", "train"),
        ("inject", "--skip-bad"),
        ("inject", "--limit-per-class", "5"),
        ("inject", "--seed", "3"),
    ],
    ids=" ".join,
)
def test_options_of_images_are_refused_without_images(made, folder, args):
    command, option, *value = args
    given = {
        "search": ("source.safetensors", "target.safetensors"),
        "inject": ("target.safetensors", made.clone, "-o", "p.safetensors"),
    }[command]
    ran = pnc_forked(command, *given, option, *value, cwd=folder)
    assert ran.code == 2 and option in ran.err and "no --data" in ran.err
