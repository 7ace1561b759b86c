"""Few images of a class, through the real command: what could not be measured is said."""

import shutil

import pytest
from support.command import pnc_forked

QUICK = (*("--tap", "layer2", "--cut", "layer2", "--share", "1", "--epochs", "0"),)
FITTED = "on the images it was made from"


def some_of_each(made, folder, new, old):
    """So many images of each class."""
    for labels, count in ((made.new, new), (made.old, old)):
        for label in labels:
            (folder / "data" / label).mkdir(parents=True)
            for path in sorted((made.train / label).iterdir())[:count]:
                shutil.copy(path, folder / "data" / label)


def run(command, made, folder, *more):
    return pnc_forked(command, made.source, made.target, "--data", "data", *more, cwd=folder)


@pytest.mark.parametrize("new, old", [(1, 10), (4, 6), (10, 1), (6, 4), (1, 1), (4, 4), (2, 3)])
def test_from_one_image_a_class_upward_a_clone_is_made(made, tmp_path, new, old):
    some_of_each(made, tmp_path, new, old)
    ran = run("clone", made, tmp_path, *QUICK, "-o", "c.safetensors", "--json", "-q")
    assert (ran.code, ran.err) == (0, "")
    measured = ran.json["manifest"]["measured"]
    sides = [side for side, count in (("clone", new), ("original", old)) if count < 5]
    assert measured["fitted"] == sides
    few = {n: c for labels, c in ((made.old, old), (made.new, new)) if c < 5 for n in labels}
    assert measured["not_held_out"] == few
    assert None not in (measured[f"{w}_accuracy"] for w in ("branch", "clone", "original", "joint"))
    [unsure] = ran.json["unsure"]
    assert all(f"{n} ({c} image" in unsure for n, c in few.items())
    assert f"{' and '.join(sides)} classes is of images that the clone was made from" in unsure
    text = run("clone", made, tmp_path, *QUICK, "-o", "c.safetensors", "-q", "--force").out
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    if len(sides) == 2:
        assert rows.get(FITTED) and "on held-out images" not in text
    else:
        assert "on held-out images" in rows
        for side in ("clone", "original"):
            [row] = [r for r in rows if r.startswith(f"patched, {side} classes")]
            assert (FITTED in row) == (side in sides)
        assert FITTED in next(r for r in rows if r.startswith("patched, all"))
        assert (FITTED in next(r for r in rows if r.startswith("locality"))) == (
            sides == ["original"]
        )


def test_classes_with_too_few_among_others_are_named(made, tmp_path):
    some_of_each(made, tmp_path, 8, 8)
    for path in sorted((tmp_path / "data" / "purple").iterdir())[2:]:
        path.unlink()
    ran = run("clone", made, tmp_path, *QUICK, "-o", "c.safetensors", "--json")
    assert ran.code == 0, ran.err
    measured = ran.json["manifest"]["measured"]
    assert (measured["not_held_out"], "fitted" in measured) == ({"purple": 2}, False)
    [unsure] = ran.json["unsure"]
    assert "purple (2 images)" in unsure and "no part in what is shown" in unsure


def test_with_enough_images_nothing_is_unsure(made, tmp_path):
    some_of_each(made, tmp_path, 5, 5)
    ran = run("clone", made, tmp_path, *QUICK, "-o", "c.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert not {"fitted", "not_held_out"} & set(ran.json["manifest"]["measured"])
    assert ran.json["unsure"] == []


@pytest.mark.parametrize("new, old", [(1, 1), (1, 10), (4, 5)])
def test_a_search_on_few_images_says_what_its_figures_are_of(made, tmp_path, new, old):
    some_of_each(made, tmp_path, new, old)
    ran = run("search", made, tmp_path, "--tap", "layer2", "--cut", "layer2", "-o", "plan.json")
    assert ran.code == 0, ran.err
    assert "unsure: too few images of clone" in ran.out and "fitted on" in ran.out
    made_of_it = run("clone", made, tmp_path, "--plan", "plan.json", "-o", "c.safetensors")
    assert made_of_it.code == 0, made_of_it.err


def test_a_whole_search_and_clone_from_one_image_a_class(made, tmp_path):
    some_of_each(made, tmp_path, 1, 1)
    ran = run("clone", made, tmp_path, "-o", "c.safetensors")
    assert ran.code == 0, ran.err
    assert "unsure: too few images" in ran.err or "unsure: no image was held out" in ran.out


@pytest.mark.parametrize("options", [("--head-only",), ("--no-originals",)], ids=str)
def test_one_image_is_enough_for_the_other_ways_to_clone(made, tmp_path, options):
    some_of_each(made, tmp_path, 1, 1)
    more = () if options == ("--head-only",) else QUICK
    ran = run("clone", made, tmp_path, *options, *more, "-o", "c.safetensors")
    assert ran.code == 0, ran.err
    assert FITTED in ran.out and "on held-out images" not in ran.out
