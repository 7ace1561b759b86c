"""pnc clone without any image of an original class: what is not known then is said."""

import json

import pytest
from support.command import clone_forked, pnc_forked

import pnc_cli
from pnc_cli import data
from pnc_cli.branch.patched import answer, preprocessing_of

QUICK = ("--epochs", "0", "--whole", "--limit-per-class")
UNKNOWN = ("original_accuracy", "joint_accuracy", "locality")


def measured(folder):
    return json.loads((folder / "c.json").read_text())["measured"]


@pytest.fixture(scope="module")
def without(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without")
    ran = clone_forked(made, "--no-originals", *QUICK, "10", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    return folder, ran.json


def test_the_manifest_has_a_reason_beside_its_nulls_and_what_clone_images_tell(without):
    folder, _ = without
    found = measured(folder)
    assert [found[name] for name in UNKNOWN] == [None] * 3
    known = found["without_originals"]
    assert known["reason"] == "not measured: no original images"
    assert known["held_out"] is True and known["images"] == found["images"] == 4
    assert found["clone_accuracy"] <= known["clone_won"] <= 1
    assert 1 / 3 <= known["target_confidence"] <= 1
    assert pnc_forked("info", "c.safetensors", cwd=folder).code == 0


def test_json_says_what_is_unknown_and_what_would_help(without):
    folder, found = without
    assert found["manifest"]["measured"] == measured(folder)
    missing, unknown, told, try_this = found["unsure"]
    assert "accuracy on original classes and locality were not measured" in missing
    assert "is unknown" in unknown and "as high as 0.38" in unknown
    known = measured(folder)["without_originals"]
    assert told.startswith("measured on 4 clone images that were held out")
    assert f"{known['clone_won']:.3f}" in told and f"{known['target_confidence']:.3f}" in told
    assert "a few images of each original class" in try_this and "--unlabelled" in try_this


def test_text_says_the_same_on_stdout_and_images_that_were_fitted_on_are_named(made, tmp_path):
    ran = clone_forked(made, "--no-originals", *QUICK, "4", "-q", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    table, *doubts = ran.out.split("\nunsure: ")
    unmeasured = [line for line in table.splitlines() if line.endswith("not measured")]
    assert [line.split("  ")[0] for line in unmeasured] == [
        "patched, original classes",
        "patched, all",
        "locality",
    ]
    assert "on the images it was made from" in table and "held-out" not in table
    assert len(doubts) == 5 and "8 clone images, the ones it was made from" in doubts[2]
    known = measured(tmp_path)["without_originals"]
    assert known["held_out"] is False

    # with none held out the join that was measured is the one that ships
    model = pnc_cli.load(made.target, tmp_path / "c.safetensors")
    source = data.open_images(str(made.train))
    chosen = data.choose(source, made.new, 4, 0)
    z, _ = answer(model, data.load_images(source, chosen, [preprocessing_of(model)]))
    won = (z.argmax(1) >= len(made.old)).double().mean().item()
    sure = z[:, : len(made.old)].softmax(1).amax(1).mean().item()
    assert (known["images"], known["clone_won"]) == (len(z), won)
    assert known["target_confidence"] == pytest.approx(sure, abs=1e-4)


def test_with_unlabelled_images_the_nulls_have_their_reason_and_no_more_is_asked_for(
    made, tmp_path
):
    asked = ("--no-originals", "--unlabelled", made.train / "red")
    ran = clone_forked(made, *asked, *QUICK, "6", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    found = measured(tmp_path)
    assert found["locality"] is None
    assert found["without_originals"]["reason"] == "not measured: no original images"
    missing, told = ran.json["unsure"]
    assert "were not measured" in missing and told.startswith("measured on ")


def test_with_original_images_there_is_nothing_to_say(made):
    assert made.ran.json["unsure"] == []
    assert "without_originals" not in made.ran.json["manifest"]["measured"]


def test_recalibrated_on_images_of_all_classes_the_clone_no_longer_says_so(made, without, tmp_path):
    clone = without[0] / "c.safetensors"
    few = ("--data", made.train, "--limit-per-class", "5")
    ran = pnc_forked("inject", made.target, clone, "-o", "p.safetensors", *few, cwd=tmp_path)
    assert ran.code == 0, ran.err
    [manifest] = json.loads((tmp_path / "p.json").read_text())["clones"]
    assert "without_originals" not in manifest["measured"]
