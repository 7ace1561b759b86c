"""Targets of very many classes, and features of more images than memory holds."""

from dataclasses import replace

import pytest
import torch

from pnc_cli.branch import recipe as making
from pnc_cli.branch.classes import parse_classes
from pnc_cli.branch.cost import Amounts
from pnc_cli.branch.make import Recipe, evidence_of, make_clone
from pnc_cli.branch.material import Fits, Material
from pnc_cli.branch.recipe import make_branch
from pnc_cli.branch.refine import learned_from
from pnc_cli.branch.task import gather, kept, subset
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
    everything = torch.arange(len(part.ids))
    for view, whole in enumerate(task.images.views):
        assert torch.equal(part.images.at(everything, view), whole[keep])
    assert part.images.views is task.images.views, "pixels are shared, not copied"


def test_parts_of_parts_show_the_same_images(given):
    task, _ = given
    few = torch.arange(0, len(task.ids), 3)
    fewer = torch.tensor([4, 1])
    part = task.images.part(few).part(fewer)
    assert torch.equal(part.at(torch.tensor([1, 0])), task.images.at(few[fewer.flip(0)]))
    assert part.labels == [task.images.labels[i] for i in few[fewer]]


def test_a_search_looks_at_some_of_very_many_originals(given):
    task, grid = given
    assert task.old > 2
    [all_of_them] = Study.of(task, grid, 0).score_pairs()
    few = replace(LIMITS, originals=2, per_class=6)
    study = Study.of(task, grid, 0, limits=few)
    looked_at = study.material.task
    assert looked_at.originals == [task.originals[0], task.originals[-1]]
    assert torch.bincount(looked_at.ids).tolist() == [6] * (2 + task.new)
    [some] = study.score_pairs()
    assert some.average_accuracy is not None
    assert Amounts.of(some) == Amounts.of(all_of_them)  # the join will tell all of them apart
    # few classes are all looked at, as they ever were
    assert LIMITS.originals >= 10 and LIMITS.per_class > 4
    assert subset(task, 6, held_out_every=2).originals == task.originals


def test_a_clone_in_little_memory_is_made_of_the_same_images(given, monkeypatch):
    """Features of few stay, lessons are computed again where they do not fit, students run on few at
    a time; the fit, the join and the figures are of all images as ever."""
    task, grid = given
    candidate = Study.of(task, grid, 0).score_pairs()[0]
    [place] = grid.places
    seen = []

    def refined(adapter, modulation, student, lessons, **how):
        seen.append((lessons, how["together"]))
        return refine(adapter, modulation, student, lessons, **how)

    refine = making.refine
    monkeypatch.setattr(making, "refine", refined)
    each = 4 * grid.elements([place.tap], [place.cut])
    usual = replace(LIMITS, refining=1e9)  # all images are learned from
    tight = replace(usual, running=12 * grid.widest, sample=5 * each, lessons=each, gradients=each)
    made = [make_clone(task, grid, candidate, Recipe("c", 1, 0), limits=m) for m in (usual, tight)]
    (at_once, many), (again, few) = seen
    assert isinstance(at_once.features, torch.Tensor) and many == 25
    assert callable(again.features) and 1 <= few < 25
    assert at_once.images == again.images == int((~task.held_out).sum())
    torch.testing.assert_close(again.pre, at_once.pre, rtol=1e-4, atol=1e-5)
    index = torch.tensor([0, 7, 3])
    torch.testing.assert_close(again.given(index), at_once.given(index), rtol=1e-4, atol=1e-5)
    (one, _), (other, _) = made
    assert one.measured.images == other.measured.images == int(task.judged.sum())
    assert (one.cost, one.method) == (other.cost, other.method)
    assert other.measured.branch_accuracy == pytest.approx(one.measured.branch_accuracy, abs=0.3)


def test_a_student_learns_from_as_many_images_as_the_work_allows(given):
    """Half of them of the clone classes, none of them held out."""
    task, grid = given
    [place] = grid.places
    fitted, new = int((~task.held_out).sum()), int((~task.held_out & task.is_new).sum())

    def images(macs, **changes):
        material = Material.of(task, grid, limits=replace(LIMITS, **changes))
        found = learned_from(material, place, macs, passes=4)
        assert not task.held_out[found].any() and len(found.unique()) == len(found)
        return found

    assert len(images(1)) == fitted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pnc_cli.branch.refine.FEWEST", 20)
        few = images(10**12)  # the work allows none: some are always learned from
    assert len(few) == 20 and int(task.is_new[few].sum()) == min(10, new)


@pytest.mark.parametrize("batch", [1, 7])
def test_answers_of_a_batch_at_a_time_are_those_of_all(given, batch):
    task, grid = given
    [place] = grid.places

    def made(limits):
        fits = Fits(grid, task, [place], 10**6)
        material = Material.of(task, grid, fits, [place.tap], [place.cut], limits=limits)
        sample = material.sample([place.tap], [place.cut])
        return material, make_branch(material, place, fits.solve()[place], sample, passes=0, seed=0)

    few = replace(LIMITS, batch=batch)
    (whole, branch), (part, alike) = made(LIMITS), made(few)
    torch.testing.assert_close(alike.adapter.weight, branch.adapter.weight, rtol=0, atol=0.02)
    whole, part = (evidence_of(m, place, branch) for m in (whole, part))
    for mine, other in zip(part.tensors, whole.tensors):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
