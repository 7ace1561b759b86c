"""data/reconcile.py: labels and folders, what belongs together and what does not."""

import json

import pytest

from pnc_cli.data import ImageSource, LeftOut, likely, reconcile

IMAGENET = ["tench, Tinca tinca", "goldfish, Carassius auratus"]


@pytest.mark.parametrize(
    "name, labels, meant",
    [
        ("Frog", ["frog", "dog"], "frog"),
        ("frogs", ["frog"], "frog"),
        ("bus", ["buses"], "buses"),
        ("frgo", ["frog"], "frog"),
        ("aeroplane", ["airplane"], "airplane"),
        ("roe-deer", ["roe deer"], "roe deer"),
        ("goldfish", IMAGENET, IMAGENET[1]),
        ("beer", ["deer"], None),
        ("cat", ["car"], None),
        ("n01440764", ["n01440765"], None),
        ("7", ["1"], None),
        ("x", [], None),
    ],
)
def test_likely_names(name, labels, meant):
    assert likely(name, labels) == meant


def source(**counts):
    by_class, at = {}, 0
    for name, count in counts.items():
        by_class[name], at = list(range(at, at + count)), at + count
    return ImageSource(
        "d", by_class, None, empty={"dog": 3}, left_out=[LeftOut("hidden", ["a/.x", "\udcff"])]
    )


def test_every_folder_and_label_is_somewhere():
    given = source(frog=5, cat=4, bird=2, old=1, Cow=7)
    found = reconcile(
        given,
        {"frog": "frog"},
        ["cat", "dog", "cow", "sheep"],
        clone_without=["pig"],
        not_used={"asked for others": ["old", "ox"]},
    )
    document = json.loads(json.dumps(found.document))
    assert document == {
        "source": "d",
        "split": None,
        "clone_classes": {"frog": 5},
        "original_classes": {"cat": 4},
        "classes_without_folder": ["pig", "cow", "sheep"],
        "folders_not_used": {"asked for others": {"old": 1}},
        "folders_of_no_class": {"bird": 2, "Cow": 7},
        "probably_meant": {"Cow": "cow"},
        "folders_without_images": {"dog": 3},
        "left_out": [{"why": "hidden", "files": ["a/.x", "\\udcff"]}],
    }
    text = "\n".join(found.lines)
    for part in ("frog (5)", "cat (4)", "pig", "sheep", "bird", "did you mean 'cow'?"):
        assert part in text
    assert "old (1)" in text and "dog (3 files)" in text and "2 files" in text


def test_a_block_stays_short_whatever_there_is():
    given = ImageSource("d", {f"class {i}": [i] for i in range(1000)}, None)
    found = reconcile(given, {}, [f"class {i}" for i in range(500)])
    assert len(found.lines) == 2 and max(map(len, found.lines)) < 300
    assert len(found.document["folders_of_no_class"]) == 500
