"""placement/study.py: the most of a module that a budget leaves room for."""

import math
from types import SimpleNamespace

import pytest

from pnc_cli.branch.classes import parse_classes
from pnc_cli.branch.cost import Amounts
from pnc_cli.branch.task import gather
from pnc_cli.data import open_images
from pnc_cli.limits import LIMITS
from pnc_cli.network.load import load_network
from pnc_cli.placement.grid import make_grid
from pnc_cli.placement.study import Study

INF = math.inf
SMALLEST = LIMITS.smallest_share


@pytest.fixture(scope="module")
def place(pair):
    """The place of a module that can be pruned, in a study of the pair."""
    source, target = load_network(pair.source), load_network(pair.target)
    classes = parse_classes(pair.new, source, target)
    images = open_images(str(pair.train))
    task = gather(source, target, classes, images, limit=8, originals=True, seed=0)
    study = Study.of(task, make_grid(source, target, ["maxpool"], ["maxpool"]), seed=0)
    [at] = [c.place for c in study.score_pairs()]

    def adds(share, most=0):
        """What a clone with this share of the module adds."""
        [c] = study.score_places([at.with_share(share, most)])
        return Amounts.of(c)

    return SimpleNamespace(
        largest=lambda *room: study.largest(at, Amounts(*room)),
        adds=adds,
        whole=adds(1.0),
        beside=study.beside(at),
    )


def room_for(place, share):
    """So much of the module, by MACs, parameters and bytes, and what stands beside it."""
    return Amounts(*(b + share * (w - b) for b, w in zip(place.beside, place.whole)))


def test_all_of_it_where_there_is_no_limit_or_just_enough(place):
    assert place.largest(INF, INF, INF).is_whole
    assert place.largest(*(1.1 * w for w in place.whole)).is_whole


def used(place, found, room):
    """The part of what ``room`` leaves for the module that it uses, of what it uses most of."""
    adds = place.adds(found.share, found.most_parameters)
    assert adds.within(room)
    return max((a - b) / (r - b) for a, b, r in zip(adds, place.beside, room))


@pytest.mark.parametrize("limits", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("left", [0.3, 0.6, 0.85])
def test_it_fits_and_uses_what_there_is(place, left, limits):
    """Whether MACs, parameters, bytes or several are limited."""
    room = room_for(place, left)
    room = Amounts(*(r if k in limits else INF for k, r in enumerate(room)))
    found = place.largest(*room)
    assert SMALLEST < found.share <= 1.0 and not found.is_whole
    assert used(place, found, room) > 0.9


@pytest.mark.parametrize("tight", [0, 1], ids=["MACs", "parameters"])
def test_of_two_limits_both_are_kept_and_the_tighter_is_used_up(place, tight):
    narrow, generous = room_for(place, 0.3), room_for(place, 0.9)
    room = Amounts(*(narrow[k] if k == tight else generous[k] for k in range(3)))
    found = place.largest(*room)
    assert used(place, found, room) > 0.9


def test_where_there_is_no_room_the_smallest_is_said(place):
    """It does not fit either: the search leaves it out."""
    assert place.largest(place.beside.macs, INF, INF).share == SMALLEST
