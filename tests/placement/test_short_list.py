"""placement/search.py: which pairs are tried with less than all of their module."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from support.plans import make_plan

from pnc_cli.limits import LIMITS
from pnc_cli.placement.ranking import short_list

SHORT_LIST = LIMITS.short_list
BEST = SHORT_LIST // 2  # of it by score alone


def candidates(*scores_and_macs):
    """One for each (score, MACs), with a tap of its own."""
    [some] = make_plan().candidates
    return [
        msgspec.structs.replace(some, tap=f"t{k}", score=score, macs=macs)
        for k, (score, macs) in enumerate(scores_and_macs)
    ]


def test_the_best_come_first_and_then_what_nothing_as_cheap_beats():
    best = [(0.9 - 0.01 * k, 100) for k in range(BEST)]
    dear, cheap, as_cheap, cheaper = (0.7, 120), (0.6, 50), (0.5, 50), (0.4, 10)
    found = short_list(candidates(cheaper, as_cheap, dear, *best, cheap))
    assert [(c.score, c.macs) for c in found] == [*best, cheap, cheaper]


def test_the_best_are_in_it_whatever_they_cost():
    best = [(0.9 - 0.01 * k, 100 + k) for k in range(BEST)]
    assert [(c.score, c.macs) for c in short_list(candidates(*best, (0.5, 100)))] == best


def test_of_equal_scores_the_cheapest_comes_first():
    found = short_list(candidates((0.5, 30), (0.5, 10), (0.5, 20)))
    assert [c.macs for c in found] == [10, 20, 30][: len(found)] and len(found) == min(3, BEST)


def test_it_is_full_where_there_are_more():
    frontier = [(0.9 - 0.01 * k, 100 - k) for k in range(SHORT_LIST + 4)]
    found = short_list(candidates(*frontier[::-1]))
    assert [(c.score, c.macs) for c in found] == frontier[:SHORT_LIST]


def test_few_are_all_in_it_and_none_is_none():
    assert len(short_list(candidates((0.5, 1)))) == 1
    assert short_list([]) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=20))
def test_what_is_left_out_is_beaten_or_had_no_room(numbers):
    every = candidates(*((score / 10, macs) for score, macs in numbers))
    found = short_list(every)
    assert len(found) <= SHORT_LIST and len({c.tap for c in found}) == len(found)
    for c in every:
        if c not in found and len(found) < SHORT_LIST:
            assert any(o.score >= c.score and o.macs <= c.macs for o in found)
