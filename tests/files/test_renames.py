"""files/renames.py: old=new for all clones, clone:old=new for one, and the hint that works."""

import re
import shlex

import pytest
from support.handmade import make_clone, make_target

from pnc_cli.errors import Incompatible, UsageError
from pnc_cli.files.patch import inject


@pytest.fixture
def files(tmp_path):
    """t, and clones a, b and c that all have a class called pedestrian."""
    target = make_target(tmp_path / "t.safetensors")
    labels = {"a": ["pedestrian"], "b": ["cat", "pedestrian"], "c": ["pedestrian", "it's = a: b"]}
    return target, [
        make_clone(tmp_path / f"{n}.safetensors", target, seed=k, name=n, labels=labels[n])
        for k, n in enumerate(labels)
    ]


@pytest.mark.parametrize(
    "rename, labels",
    [
        (
            ["b:pedestrian=walker", "c:pedestrian=p"],
            [["pedestrian"], ["cat", "walker"], ["p", "it's = a: b"]],
        ),
        (
            {"a:pedestrian": "x", "b:pedestrian": "y"},
            [["x"], ["cat", "y"], ["pedestrian", "it's = a: b"]],
        ),
        (
            ["pedestrian=p", "b:pedestrian=q", "c:pedestrian=r"],
            [["p"], ["cat", "q"], ["r", "it's = a: b"]],
        ),
        (
            ["pedestrian=p", "a:pedestrian=x"],
            [["x"], ["cat", "pedestrian"], ["p", "it's = a: b"]],
        ),
        (
            ["a:pedestrian=x", "b:pedestrian=y", "c:it's = a: b=cow=1"],
            [["x"], ["cat", "y"], ["pedestrian", "cow=1"]],
        ),
    ],
)
def test_a_class_of_one_clone_is_renamed(files, tmp_path, rename, labels):
    target, clones = files
    patched = inject(target, clones, tmp_path / "p.safetensors", rename=rename)
    assert [c.labels for c in patched.clones] == labels


@pytest.mark.parametrize(
    "rename, message",
    [
        (["d:pedestrian=x"], "no clone has a class 'd:pedestrian'"),
        (["a:cat=x"], "no clone has a class 'a:cat'"),
        (["cat=x", "cat=y"], "renamed twice, to 'x' and to 'y'"),
        (["cat"], "expected old=new"),
        (["=cat"], "expected old=new"),
        (["cat="], "expected old=new"),
    ],
)
def test_what_renames_nothing_is_refused(files, tmp_path, rename, message):
    target, clones = files
    with pytest.raises(UsageError, match=re.escape(message)):
        inject(target, clones[1:2], tmp_path / "p.safetensors", rename=rename)
    assert not (tmp_path / "p.safetensors").exists()


@pytest.mark.parametrize("rename", [[], ["pedestrian=walker"], ["pedestrian=p_2", "b:cat=dog"]])
def test_the_renaming_that_a_refusal_proposes_works_when_pasted(files, tmp_path, rename):
    """As often as it takes; whatever else was renamed stays so."""
    target, clones = files
    for _ in range(3):
        try:
            patched = inject(target, clones, tmp_path / "p.safetensors", rename=rename)
            break
        except Incompatible as e:
            _, _, command = e.hint.partition(": ")
            words = shlex.split(command)
            assert words[:2] == ["pnc", "inject"] and words[2:6] == [
                str(p) for p in (target, *clones)
            ]
            rename = [words[i + 1] for i, w in enumerate(words) if w == "--rename"]
    every = [label for c in patched.clones for label in c.labels]
    assert len(set(every)) == 5
    assert every[0] in ("pedestrian", "walker", "p_2")
    assert ("dog" in every) == ("b:cat=dog" in rename)
