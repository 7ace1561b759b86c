"""Targets of very many classes, and features of more images than memory holds."""

from dataclasses import replace

import pytest
import torch

from pnc_cli.branch import make as cloning
from pnc_cli.branch.cost import Amounts
from pnc_cli.branch.make import Recipe, evidence_of, make_clone
from pnc_cli.branch.material import Material
from pnc_cli.branch.recipe import make_branch, run_module
from pnc_cli.branch.task import gather, kept, parse_classes, subset
from pnc_cli.data import LEAST, PER_CLASS, TOGETHER, images_per_class, open_images
from pnc_cli.limits import LIMITS
from pnc_cli.network.load import load_network
from pnc_cli.placement.grid import make_grid
from pnc_cli.placement.study import Study


@pytest.fixture(scope="module")
def given(pair):
    source, target = load_network(pair.source), load_network(pair.target)
    task = gather(
        source,
        target,
        parse_classes(pair.new, source, target),
        open_images(str(pair.train)),
        limit=10,
        originals=True,
        seed=0,
    )
    return task, make_grid(source, target, ["layer1"], ["layer1"])


@pytest.mark.parametrize(
    ("asked", "classes", "images"),
    [
        (None, 6, PER_CLASS),
        (None, TOGETHER // PER_CLASS, PER_CLASS),
        (None, 200, TOGETHER // 200),
        (None, 21_841, LEAST),
        (7, 21_841, 7),
        (0, 21_841, None),
    ],
)
def test_many_classes_are_read_fewer_images_each(asked, classes, images):
    assert images_per_class(asked, classes) == images


def test_a_task_without_some_of_its_originals_is_the_same_task(given):
    task, _ = given
    keep = (task.ids != 0) & (torch.arange(len(task.ids)) % 3 > 0)
    part = kept(task, keep)
    assert part.originals == task.originals[1:]
    names = [*task.originals, *(c.name for c in task.classes)]
    assert part.images.labels == [names[i] for i in task.ids[keep]]
    assert [
        [*part.originals, *(c.name for c in part.classes)][i] for i in part.ids
    ] == part.images.labels
    assert torch.equal(part.label_index, task.label_index[keep])
    assert torch.equal(part.is_new, task.is_new[keep])
    assert torch.equal(part.held_out, task.held_out[keep])
    for view, whole in zip(part.images.views, task.images.views):
        assert torch.equal(view, whole[keep])


def test_a_search_looks_at_some_of_very_many_originals(given):
    task, grid = given
    assert task.old > 2
    [all_of_them] = Study.of(task, grid, 0).score_pairs()
    few = replace(LIMITS, originals=2, fewest=6, search_features=1)
    study = Study.of(task, grid, 0, limits=few)
    looked_at = study.material.task
    assert looked_at.originals == [task.originals[0], task.originals[-1]]
    assert torch.bincount(looked_at.ids).tolist() == [6] * (2 + task.new)
    [some] = study.score_pairs()
    assert some.average_accuracy is not None
    assert Amounts.of(some) == Amounts.of(all_of_them)  # the join will tell all of them apart
    # few classes are all looked at, as they ever were
    assert LIMITS.originals >= 10 and LIMITS.fewest > 4
    assert subset(task, 6, held_out_every=2).originals == task.originals


def test_a_clone_whose_features_do_not_fit_is_learned_from_some(given, monkeypatch):
    """The join and the figures are of all images."""
    task, grid = given
    candidate = Study.of(task, grid, 0).score_pairs()[0]
    whole, _ = make_clone(task, grid, candidate, Recipe("c", 1, 0))
    seen = []
    monkeypatch.setattr(
        cloning,
        "make_branch",
        lambda material, *a, **k: seen.append(material) or make_branch(material, *a, **k),
    )
    [place] = grid.places
    elements = grid.tap(place).layout.elements + grid.cut(place).layout.elements
    room = 26
    limits = replace(LIMITS, clone_features=4 * elements * room)
    some, _ = make_clone(task, grid, candidate, Recipe("c", 1, 0), limits=limits)
    part = seen[0].task
    assert len(part.ids) == room < len(task.ids) and part.is_new.sum() == room // 2
    assert some.measured.images == whole.measured.images
    assert some.method.original_images == whole.method.original_images
    assert some.cost == whole.cost


def test_answers_of_a_batch_at_a_time_are_those_of_all(given):
    task, grid = given
    [place] = grid.places
    material = Material.of(task, grid, [place.tap], [place.cut])
    branch = make_branch(material, place, passes=0, seed=0)
    pre, z_b = run_module(branch.module, material.tap(place), branch.adapter)
    found = evidence_of(task, place.tap, branch, batch=7)
    for mine, other in zip(found.tensors, (material.target_pre, pre, material.z_t, z_b)):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
