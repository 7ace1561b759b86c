"""Outputs, through the real command: what a command has read it never writes to, by whatever route it
came to it, and what it writes is called and described as what it is."""

import json
import shutil

import pytest
from support.command import pnc, pnc_forked
from support.handmade import sha256, snapshot
from support.networks import draw_folder

from pnc_cli.manifest import canonical_json, to_plain

QUICK = ["--epochs", "0", "--limit-per-class", "4", "--share", "1"]
ONE = [*QUICK[4:], "--tap", "layer1", "--cut", "layer1"]


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """source, target, clone and patched with their documents, images, and a plan."""
    folder = tmp_path_factory.mktemp("outputs")
    for name in ("source", "target", "clone", "patched"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(made.folder / (name + suffix), folder)
    draw_folder(folder / "data", [*made.old, *made.new], 4)
    (folder / "data" / "red" / "copy.png").symlink_to(folder / "data" / "red" / "0.png")
    (folder / "pool").mkdir()
    (folder / "pool" / "x.safetensors").symlink_to(folder / "data" / "red" / "2.png")
    (folder / "pool" / "1.png").symlink_to(folder / "data" / "red" / "2.png")
    shutil.make_archive(str(folder / "images"), "tar", folder / "data")
    (folder / "model.json").write_bytes((folder / "target.json").read_bytes())
    search = ["search", "source.safetensors", "target.safetensors", "--data", "data", *ONE]
    ran = pnc_forked(*search, "-o", "plan.json", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


SEARCH = ["search", "source.safetensors", "target.safetensors", *ONE]
CLONE = ["clone", "source.safetensors", "target.safetensors", "--data", "data"]


@pytest.mark.parametrize(
    "args",
    [
        [*SEARCH, "-o", "target.json"],
        [*SEARCH, "-o", "source.json"],
        [*SEARCH, "--data", "data", *QUICK[2:4], "-o", "data/red/0.png"],
        [*SEARCH, "--data", "data", *QUICK[2:4], "-o", "data/red/copy.png"],
        [*SEARCH, "--data", "data", *QUICK[2:4], "--plot", "data/green/1.png"],
        [*SEARCH, "--data", "images.tar", *QUICK[2:4], "-o", "images.tar"],
        [*CLONE, "--plan", "plan.json", "-o", "plan.safetensors"],
        [*CLONE, *ONE, "--no-originals", "--unlabelled", "pool", "-o", "pool/x.safetensors"],
        [
            "inject",
            "target.safetensors",
            "clone.safetensors",
            "-o",
            "clone.safetensors",
            "--data",
            "data",
        ],
        ["inject", "target.safetensors", "clone.safetensors", "-o", "target.safetensors"],
        ["eject", "patched.safetensors", "-o", "patched.safetensors"],
    ],
    ids=" ".join,
)
def test_force_does_not_replace_what_was_read(folder, args):
    before = snapshot(folder)
    ran = pnc_forked(*args, "--force", cwd=folder)
    assert ran.code == 2, ran.err
    assert "is an input, which is never written to" in ran.err
    assert snapshot(folder) == before


def test_a_clones_manifest_is_an_input_of_inject_with_data_too(folder, tmp_path):
    """The output is new, its sidecar is the clone's."""
    shutil.copytree(folder, tmp_path / "f")
    (tmp_path / "f" / "clone.safetensors").rename(tmp_path / "f" / "elsewhere.safetensors")
    (tmp_path / "f" / "elsewhere.json").symlink_to("clone.json")
    before = snapshot(tmp_path)
    for more in ([], ["--data", "data"]):
        inject = ["inject", "target.safetensors", "elsewhere.safetensors", *more]
        ran = pnc_forked(*inject, "-o", "clone.safetensors", "--force", cwd=tmp_path / "f")
        assert ran.code == 2 and "clone.json: is an input" in ran.err
    assert snapshot(tmp_path) == before


def test_what_an_earlier_command_made_may_be_replaced(folder, tmp_path):
    for _ in range(2):
        ran = pnc(
            *("inject", folder / "target.safetensors", folder / "clone.safetensors"),
            *("-o", "p.safetensors", "--force"),
            cwd=tmp_path,
        )
        assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    "args",
    [
        ["inject", "target.safetensors", "clone.safetensors"],
        ["eject", "patched.safetensors"],
        [*CLONE, *ONE],
    ],
    ids=lambda a: a[0],
)
@pytest.mark.parametrize(
    "output, said",
    [("-", "not written to standard output"), ("x.pth", "is not called .safetensors")],
)
def test_an_output_is_a_file_that_is_called_what_it_is(folder, args, output, said):
    before = snapshot(folder)
    ran = pnc_forked(*args, "-o", output, "--json", cwd=folder)
    assert ran.code == 2 and said in ran.err and ran.json["error"]["code"] == "usage"
    assert output == "-" or "try: -o x.safetensors" in ran.err
    assert snapshot(folder) == before


def test_an_ejected_target_under_a_new_name_can_be_used_as_it_is(made, tmp_path):
    ran = pnc("eject", made.patched, "-o", "back.safetensors", cwd=tmp_path)
    assert ran.code == 0
    assert "back.json: says what back.safetensors is: resnet18, 3 classes" in ran.err
    assert sha256(tmp_path / "back.safetensors") == sha256(made.target)
    document = json.loads((tmp_path / "back.json").read_text())
    assert document["label_names"] == made.old and document["model_args"]["channels"]
    found = [
        pnc_forked("eval", path, "--data", made.test, "--json", cwd=tmp_path).json
        for path in (made.target, "back.safetensors")
    ]
    assert found[0] == found[1] and found[0]["target_accuracy"] is not None
    ran = pnc("eject", made.patched, "-o", "more.safetensors", "-q", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "") and (tmp_path / "more.json").exists()


def test_two_clones_with_a_label_in_common_go_in_with_the_renaming_that_is_proposed(
    made, two, tmp_path
):
    """The command that the refusal ends with is run as it stands, as often as one comes."""
    import shlex

    copy = [
        "clone",
        made.source,
        made.target,
        "--data",
        made.train,
        *ONE,
        *QUICK[:4],
        "-c",
        "yellow",
    ]
    assert pnc_forked(*copy, "--name", "other", "-o", "other.safetensors", cwd=tmp_path).code == 0
    command = ["inject", made.target, made.clone, "other.safetensors", "-o", "p.safetensors"]
    for renamed in ([], ["--rename", "yellow=purple"]):
        ran = pnc(*command, *renamed, cwd=tmp_path)
        assert ran.code == 4
        words = shlex.split(ran.err.splitlines()[-1].partition("pnc ")[2])
        ran = pnc(*words, "--force", "--json", cwd=tmp_path)
        assert ran.code == 0, ran.err
        labels = [label for c in ran.json["clones"] for label in c["classes"]]
        assert len(set(labels)) == 3
    ran = pnc_forked(
        *("eval", made.target, "--clone", made.clone, "--clone", "other.safetensors"),
        *("--data", made.test),
        cwd=tmp_path,
    )
    assert ran.code == 4 and "try: inject it under another label: pnc inject" in ran.err


def test_a_plan_may_replace_an_older_one(folder, tmp_path):
    """Only what was read is kept: a plan that a search writes over was not."""
    from pnc_cli.manifest import parse
    from pnc_cli.plan import Plan

    shutil.copytree(folder, tmp_path / "f")
    ran = pnc_forked(*SEARCH, "--data", "data", "-o", "plan.json", "--force", cwd=tmp_path / "f")
    assert ran.code == 0, ran.err
    text = (tmp_path / "f" / "plan.json").read_bytes()
    assert canonical_json(to_plain(parse(text, Plan, "plan"))) == text
