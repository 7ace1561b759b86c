"""placement/search.py and study.py: what is tried, what a guess is worth, and when it is settled."""

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from support import plans

from pnc_cli.branch.classes import parse_classes
from pnc_cli.branch.cost import Amounts
from pnc_cli.branch.recipe import Ranking, localised
from pnc_cli.branch.task import gather
from pnc_cli.channels.localised import localised_features
from pnc_cli.channels.prune import rank_channels
from pnc_cli.data import open_images
from pnc_cli.limits import LIMITS
from pnc_cli.network.load import load_network
from pnc_cli.placement import search as searching
from pnc_cli.placement import study as studying
from pnc_cli.placement.grid import make_grid
from pnc_cli.placement.search import LEAST, Budget, search
from pnc_cli.placement.study import RECOVERED, Study
from pnc_cli.plan import Place

MAXPOOL = Place("maxpool", "maxpool")


def candidate(score, *, tap="a", cut="b", **fields):
    return plans.candidate(score=score, tap=tap, cut=cut, branch_accuracy=1.0, **fields)


@pytest.fixture(scope="module")
def studied(pair):
    """A study of the pair's task on the positions after the image and after two stages."""
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
    grid = make_grid(source, target, ["maxpool", "layer1"], ["maxpool", "layer1", "layer2"])
    return SimpleNamespace(task=task, grid=grid, study=Study.of(task, grid, seed=0))


@pytest.mark.parametrize(
    ("dense", "found", "expected"),
    [
        (candidate(0.8), candidate(0.6, share=0.5), 0.6 + RECOVERED * 0.2),
        (candidate(0.8), candidate(0.9, share=0.5), 0.9),  # it lost nothing
        # of the accuracy 0.8 and 0.7: a price is not recovered
        (candidate(0.75, macs=10), candidate(0.68, share=0.5, macs=5), 0.68 + RECOVERED * 0.1),
    ],
)
def test_half_of_the_accuracy_that_a_share_loses_is_taken_for_recovered(
    monkeypatch, dense, found, expected
):
    monkeypatch.setattr(studying, "price", lambda grid, macs: {1: 0.0, 10: 0.05, 5: 0.02}[macs])
    study = SimpleNamespace(shares={Place("a", "b"): dense}, grid=None)
    assert Study.recovered(study, found).score == pytest.approx(expected)


def test_a_group_is_ranked_once_for_all_modules_that_have_it(studied):
    material, grid = studied.study.material, studied.grid
    task = material.task
    ranking = Ranking(material, seed=0)
    ranking.all_of(["layer1", "maxpool"])
    for name in ("maxpool", "layer1"):
        cut = grid.source.position(name)
        fit = (~task.held_out & task.is_new).nonzero()[:, 0]
        images = task.images.at(fit, 1)
        features = localised_features(task.source, images, cut, 0)
        module, _ = grid.part(name, task.columns)
        alone = rank_channels(module, features)
        assert len(alone) == len(ranking.of(name)) > 0
        for mine, other in zip(ranking.of(name), alone):
            assert mine.group.sites.keys() == other.group.sites.keys()
            np.testing.assert_array_equal(mine.order, other.order)
            assert mine.sensitivity == pytest.approx(other.sensitivity, rel=1e-3, abs=1e-6)


def test_a_pair_is_tried_where_an_eighth_of_it_fits(studied, monkeypatch):
    """And not where less does."""
    study, grid = studied.study, studied.grid
    study.score_pairs()
    macs, large = grid.target_macs, study.pairs[MAXPOOL]
    monkeypatch.setattr(study, "pairs", {MAXPOOL: large})
    for room, tried in ((1.3 * LEAST, True), (0.9 * LEAST, False)):
        study.shares.clear()
        try:
            search(studied.task, grid, seed=0, budget=Budget(room * large.macs / macs), study=study)
        except searching.Incompatible:  # nothing is so small
            pass
        assert any(place.pair == MAXPOOL for place in study.shares) == tried


def test_the_best_guesses_are_refined_until_the_best_is_none():
    worth = {"a": 0.5, "b": 0.65, "c": 0.9}
    asked = []

    def try_out(c):
        asked.append(c.tap)
        return msgspec.structs.replace(c, score=worth[c.tap])

    guesses = [candidate(s, tap=t, share=0.5) for t, s in (("a", 0.7), ("b", 0.69), ("c", 0.6))]
    alike = candidate(0.69, tap="a", share=0.4)
    study = SimpleNamespace(
        try_out=try_out,
        limits=LIMITS,
        work_of_trial=lambda c: 0.0,
        material=SimpleNamespace(plain_macs=1e12),
        is_settled=lambda c: c.place.is_whole or c.tap in asked,
    )
    found = searching._tried_out(study, [*guesses, alike], lambda *a: None)
    assert asked == ["a", "b"]  # a's other share goes with a; 0.65 is ahead of the guess of 0.6
    assert [(c.tap, c.share, c.score) for c in found] == [
        ("b", 0.5, 0.65),
        ("c", 0.5, 0.6),
        ("a", 0.5, 0.5),
        ("a", 0.4, 0.49),
    ]
    asked.clear()
    whole = candidate(0.8, tap="w")
    found = searching._tried_out(study, [*guesses, whole], lambda *a: None)
    assert asked == [] and found[0] is whole  # what lost nothing has nothing to regain
    study.limits = replace(LIMITS, tried=1)
    found = searching._tried_out(study, guesses, lambda *a: None)
    assert asked == ["a"] and found[0].tap == "a" and found[0].score == 0.5  # no guess before it


def test_what_was_compared_on_few_images_stands_behind_the_best_of_all_images():
    """The best of many on few looks better than it is."""
    known, lucky, modest = (candidate(x, tap=t) for x, t in ((0.7, "k"), (0.9, "l"), (0.5, "m")))
    study = SimpleNamespace(shares={known.place: known})
    found = searching._behind_what_is_known_better([lucky, known, modest], study)
    assert max(found, key=lambda c: c.score).tap == "k"
    assert [c.score for c in found] == [pytest.approx(0.7, abs=1e-5), 0.7, 0.5]
    alone = searching._behind_what_is_known_better([lucky, modest], SimpleNamespace(shares={}))
    assert [c.score for c in alone] == [0.9, 0.5]


def test_trials_end_when_their_work_is_spent_but_the_first_is_made():
    asked = []

    def try_out(c):
        asked.append(c.tap)
        return msgspec.structs.replace(c, score=0.1)

    study = SimpleNamespace(
        try_out=try_out,
        limits=LIMITS,
        work_of_trial=lambda c: 1e12,
        material=SimpleNamespace(plain_macs=1e12),
        is_settled=lambda c: c.place.is_whole or c.tap in asked,
    )
    guesses = [candidate(s, tap=t, share=0.5) for t, s in (("a", 0.7), ("b", 0.69), ("c", 0.6))]
    found = searching._tried_out(study, guesses, lambda *a: None)
    assert asked == ["a"] and found[0].tap == "a"  # what is a guess stands behind what was tried


def test_a_trial_is_a_clone_refined_for_a_few_passes(studied, monkeypatch):
    study = studied.study
    study.trials.clear()
    budget = Budget(0.25 * study.pairs[MAXPOOL].macs / studied.grid.target_macs)
    found = search(studied.task, studied.grid, seed=0, budget=budget, study=study)
    assert study.trials and found.best in study.trials.values()
    for place, c in study.trials.items():
        assert place == c.place
        assert c.macs == study.shares[c.place].macs
    monkeypatch.setattr(study, "limits", replace(LIMITS, trial_passes=0))
    study.trials.clear()
    assert search(studied.task, studied.grid, seed=0, budget=budget, study=study).candidates
    for c in study.trials.values():  # guesses, as they were
        assert study.recovered(study.shares[c.place]).score == pytest.approx(c.score, abs=1e-4)


def test_a_clone_keeps_no_more_parameters_than_the_budget_leaves(studied):
    study = studied.study
    study.score_pairs()
    [found] = study.score_places([MAXPOOL.with_share(0.5)])
    material, sample = study.material, study.material.sample(["maxpool"], ["maxpool"])

    def count(most):
        place = found.place.with_share(0.5, most)
        module, _ = localised(material, place, study.ranking, sample)
        return sum(p.numel() for p in module.parameters())

    free = count(0)
    assert found.most_parameters == 0 and free > 0
    fewer = round(0.9 * free)
    assert 0.7 * fewer < count(fewer) <= fewer


def test_what_a_budget_leaves_for_a_module(studied):
    """By number and by bytes, whichever is less; no limit where there is none of either."""
    study, inf = studied.study, float("inf")
    [c] = [c for c in study.score_pairs() if c.place == MAXPOOL]
    beside = study.beside(c.place)
    module = c.parameters - beside.parameters

    def most(*room):
        return study.most_parameters(MAXPOOL, Amounts(*room))

    assert most(c.macs, inf, inf) == 0
    assert most(c.macs, beside.parameters + 0.5 * module, inf) == int(0.5 * module)
    assert most(inf, inf, c.bytes) == module
    bytes_of_module = c.bytes - beside.bytes
    room = Amounts(inf, c.parameters * 2, beside.bytes + 0.25 * bytes_of_module)
    assert most(*room) == int(0.25 * module)


def test_where_parameters_are_short_and_macs_are_not_no_macs_are_given_away(studied):
    """Half of the parameters go, and no more of the MACs than go with them."""
    study, inf = studied.study, float("inf")
    [c] = [c for c in study.score_pairs() if c.place == MAXPOOL]
    beside = study.beside(MAXPOOL)
    half = Amounts(inf, beside.parameters + 0.5 * (c.parameters - beside.parameters), inf)
    place = study.largest(MAXPOOL, half)
    [found, alike] = study.score_places([place, MAXPOOL.with_share(0.5)])
    assert place.most_parameters and found.parameters <= half.parameters
    assert found.macs > alike.macs
