"""pnc clone --unlabelled: images of whatever the target is used on, in place of labelled originals."""

import json
import shutil

import pytest
from support.command import clone_forked, pnc_forked


@pytest.fixture(scope="module")
def flat(made, tmp_path_factory):
    """Images of all classes in one folder, under names that say nothing."""
    folder = tmp_path_factory.mktemp("flat") / "images"
    folder.mkdir()
    for k, path in enumerate(sorted(made.train.rglob("*.png"))):
        shutil.copy(path, folder / f"{k}.png")
    return folder


def clone(made, folder, cwd, *more):
    few = ("--epochs", "0", "--limit-per-class", "10")
    ran = clone_forked(made, "--unlabelled", folder, *few, *more, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran, json.loads((cwd / "c.json").read_text())["method"]


def test_they_take_the_place_of_originals_and_it_is_said_how_many_and_what_of(made, flat, tmp_path):
    ran, method = clone(made, flat, tmp_path, "--no-originals")
    many = min(500, len(list(flat.iterdir())))
    assert f"{many} of {len(list(flat.iterdir()))}" in ran.err
    assert method["unlabelled_images"] == many and method["original_images"] == 0
    assert 0.1 < method["unlabelled_new"] < 0.9
    ran = pnc_forked(
        "eval", made.target, "--clone", "c.safetensors", "--data", made.test, "--json", cwd=tmp_path
    )
    assert ran.code == 0 and ran.json["average_accuracy"] > 0.6


def test_beside_labelled_originals_they_are_not_used_which_is_said(made, flat, tmp_path):
    ran, method = clone(made, flat, tmp_path)
    assert "not used" in ran.err
    assert "unlabelled_images" not in method and "unlabelled_new" not in method


def test_a_folder_without_images_is_refused(made, tmp_path):
    (tmp_path / "empty").mkdir()
    ran = clone_forked(made, "--unlabelled", "empty", cwd=tmp_path)
    assert ran.code == 3 and "empty" in ran.err
