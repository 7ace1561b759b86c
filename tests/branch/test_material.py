"""branch/material.py: images a batch at a time, of which little stays."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pnc_cli.branch.classes import parse_classes
from pnc_cli.branch.material import Fits, Look, Material, Size, alike
from pnc_cli.branch.recipe import is_the_source_itself
from pnc_cli.branch.task import gather
from pnc_cli.data import open_images
from pnc_cli.limits import LIMITS, USUAL_MEMORY
from pnc_cli.network.features import answers_of
from pnc_cli.network.load import load_network
from pnc_cli.placement.grid import make_grid
from pnc_cli.plan import Place

TAPS, CUTS = ["maxpool", "layer1"], ["layer1", "layer2"]


@pytest.fixture(scope="module")
def given(pair):
    source, target = load_network(pair.source), load_network(pair.target)
    classes = parse_classes(pair.new, source, target)
    images = open_images(str(pair.train))
    task = gather(source, target, classes, images, limit=9, originals=True, seed=0)
    grid = make_grid(source, target, TAPS, CUTS)
    whole = Material.of(task, grid)
    each = 4 * (grid.widest + grid.elements(TAPS, CUTS))
    return SimpleNamespace(task=task, grid=grid, whole=whole, each=each)


def limited(given, images):
    """Limits by which so many images run together."""
    limits = replace(LIMITS, running=images * given.each)
    assert given.grid.at_once(TAPS, CUTS, limits) == images
    return limits


def answers(material):
    return [getattr(material, n) for n in ("target_pre", "z_t", "source_pre", "z_s")]


def test_what_both_networks_answer_is_kept(given):
    task, whole = given.task, given.whole
    target, source = (
        answers_of(n, v) for n, v in zip((task.target, task.source), task.pixels.views)
    )
    expected = target.pre, target.logits, source.pre, source.logits[:, task.columns]
    for mine, other in zip(answers(whole), expected):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 17])
def test_answers_and_adapters_are_the_same_whatever_the_batch(given, batch):
    task, grid = given.task, given.grid
    limits, adapters = limited(given, batch), []
    for how in (LIMITS, limits):
        fits = Fits(grid, task, grid.places, 10**6)  # every cell of every image
        material = Material.of(task, grid, fits, TAPS, CUTS, limits=how)
        for mine, other in zip(answers(material), answers(given.whole)):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        adapters.append((fits.solve(), fits.explained))
    (one, explained), (other, as_much) = adapters
    assert set(one) == set(other) == set(grid.places)
    [look] = given.whole.look(torch.arange(len(task.ids)), TAPS, CUTS)
    for place in grid.places:
        wanted, x = look.cuts[place.cut], look.taps[place.tap]
        gap = one[place](x) - other[place](x)
        assert gap.square().mean().sqrt() < 1e-3 * wanted.std()  # of float32 sums
        assert explained[place] == pytest.approx(as_much[place], abs=5e-4)
        assert 0.2 < explained[place] < 1


def test_nothing_is_fitted_to_what_is_held_out(given):
    task, grid = given.task, given.grid
    images = replace(task.images, views=[v.clone() for v in task.images.views])
    for view in images.views:
        view[task.held_out] = 255 - view[task.held_out]
    weights = []
    for some in (task, replace(task, images=images)):
        fits = Fits(grid, some, grid.places, 500)
        material = Material.of(some, grid, fits, TAPS, CUTS, limits=limited(given, 4))
        weights.append([a.weight for a in fits.solve().values()])
        assert not some.held_out[material.sample(TAPS, CUTS).index].any()
    assert all(torch.equal(a, b) for a, b in zip(*weights))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_looks_are_the_same_whatever_the_batch(given, batch):
    material = replace(given.whole, limits=limited(given, min(batch, 128)))
    index = torch.tensor([3, 0, 11, 12, 40, 7])
    looks = list(material.look(index, TAPS, CUTS))
    assert [len(k.index) for k in looks] == [len(i) for i in index.split(batch)]
    assert torch.equal(torch.cat([k.index for k in looks]), index)
    [whole] = given.whole.look(index, TAPS, CUTS)
    for kind, names in (("taps", TAPS), ("cuts", CUTS)):
        for name in names:
            mine = torch.cat([getattr(k, kind)[name] for k in looks])
            torch.testing.assert_close(mine, getattr(whole, kind)[name], rtol=1e-4, atol=1e-5)


def test_a_look_says_how_far_it_is(given):
    said = []
    material = replace(given.whole, limits=limited(given, 4))
    look = material.look(
        torch.arange(10), TAPS, CUTS, what="it", progress=lambda *a: said.append(a)
    )
    assert len(list(look)) == 3
    assert said == [("it", 0, 10), ("it", 4, 10), ("it", 8, 10), ("it", 10, 10)]


@pytest.mark.parametrize("batch", [2, 5, 20])
def test_a_sample_is_of_fitted_images_and_keeps_to_its_limit(given, batch):
    elements = given.grid.elements(TAPS, CUTS)
    limits = replace(limited(given, batch), sample=6 * 4 * elements)
    material = replace(given.whole, limits=limits)
    sample = material.sample(TAPS, CUTS)
    assert 2 <= len(sample.index) <= 6 and not given.task.held_out[sample.index].any()
    [look] = given.whole.look(sample.index, TAPS, CUTS)
    for kind in ("taps", "cuts"):
        for name, features in getattr(sample, kind).items():
            torch.testing.assert_close(features, getattr(look, kind)[name], rtol=1e-4, atol=1e-5)
    assert given.whole.sample(TAPS, CUTS).index.tolist() == given.whole.fit.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_of_branches_are_the_same_whatever_the_batch(given, batch):
    task, grid, whole = given.task, given.grid, given.whole
    fits = Fits(grid, task, grid.places, 2_000)
    Material.of(task, grid, fits, TAPS, CUTS)
    adapters = fits.solve()
    branches = [(p, adapters[p], grid.part(p.cut, task.columns)[0]) for p in grid.places]
    index = torch.tensor([30, 2, 3, 17, 5])
    material = replace(whole, limits=replace(LIMITS, batch=batch))
    [look] = whole.look(index, TAPS)
    for (place, adapter, module), found in zip(branches, material.answers(branches, index)):
        with torch.no_grad():
            expected = module(adapter(look.taps[place.tap]))
        for mine, other in zip(found, expected):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def memory(grid, places):
    """Bytes of the regressions of ``places``."""
    return sum(Size.of(grid, group).bytes for group in alike(grid, places))


def test_what_stays_of_an_image_is_its_answers_alone(given):
    """However many positions are looked at."""
    task, grid = given.task, given.grid
    fits = Fits(grid, task, grid.places, 500)
    material = Material.of(task, grid, fits, TAPS, CUTS)
    kept = [v for f in fields(material) if isinstance(v := getattr(material, f.name), Tensor)]
    wide = (16 + 3) + (16 + task.new)  # pre-logits and logits of each network
    assert sum(t.numel() for t in kept) == wide * len(task.ids)
    before = memory(grid, grid.places)
    sums = [fit.sums for _, fit in fits._groups]
    held = sum(4 * (s.xx.numel() + s.xy.numel()) for s in sums)
    assert held == before


def test_places_that_share_their_left_side_share_a_regression(given):
    grid = given.grid
    places = [*grid.places, Place("maxpool", "layer1", resolution=0.5)]
    groups = alike(grid, places)
    assert sorted(p for g in groups for p in g) == sorted(places)
    for group in groups:
        cells = {grid.cut(p).layout.grid for p in group}
        assert (
            len({p.tap for p in group}) == len(cells) == len({grid.kernel(p) for p in group}) == 1
        )
    assert memory(grid, places) < sum(memory(grid, [p]) for p in places) + 1


def test_no_more_runs_together_than_memory_has_room_for(given):
    grid = given.grid
    for running in (1, given.each, 10 * given.each, 1 << 40):
        limits = replace(LIMITS, running=running)
        at_once = grid.at_once(TAPS, CUTS, limits)
        assert 1 <= at_once <= LIMITS.batch
        assert at_once == 1 or at_once * given.each <= running
        assert grid.at_once([], [], limits) >= at_once


def test_half_of_the_memory_is_half_of_all_that_is_held():
    half = LIMITS.within(USUAL_MEMORY // 2)
    held = ("running", "sums", "sample", "lessons", "gradients")
    assert all(getattr(half, n) == getattr(LIMITS, n) // 2 for n in held)
    assert sum(getattr(LIMITS, n) for n in held) <= 1.1 * USUAL_MEMORY
    rest = [f.name for f in fields(LIMITS) if f.name not in held]
    assert all(getattr(half, n) == getattr(LIMITS, n) for n in rest)
    assert LIMITS.within(USUAL_MEMORY) == LIMITS


def test_a_look_of_nothing_but_cuts_leaves_the_target_alone(given):
    ran = []
    handle = given.task.target.model.register_forward_pre_hook(lambda *a: ran.append(1))
    try:
        [look] = given.whole.look(torch.tensor([0, 1]), [], ["layer1"])
    finally:
        handle.remove()
    assert isinstance(look, Look) and look.taps == {} and not ran


def test_what_is_not_the_source_itself_is_told_of_places_that_cannot_be_too(given):
    """A vector has no other resolution; a search asks before it knows."""
    whole = given.whole
    assert not is_the_source_itself(whole, Place("maxpool", "global_pool", resolution=0.67))
    assert not is_the_source_itself(whole, Place("input", "input", resolution=0.5))
    assert not is_the_source_itself(whole, Place("input", "input", 0.5))
    assert is_the_source_itself(whole, Place("input", "input"))
