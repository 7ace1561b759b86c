"""remarks.py: what is said of a choice."""

import io

import msgspec
import pytest
from support.plans import plan_of

from pnc_cli.commands.search import _text
from pnc_cli.plot import draw_plan
from pnc_cli.remarks import head_only_of, remarks


def test_the_cheaper_choice_is_said_with_both_figures_and_what_the_best_costs():
    plan = plan_of(
        ("a", "b", 1.0, 0.80, 100),
        ("a", "b", 0.5, 0.79, 40),
        chosen=1,
        best=0,
        error=0.012,
        target_macs=100,
    )
    [line] = remarks(plan)
    for part in ("0.790 for 0.40", "0.800 for 1.00", "0.012", "--whole"):
        assert part in line


def test_the_best_is_the_one_that_the_choice_was_held_against_whatever_its_score():
    """A cheaper candidate has the higher score, of which its cost is a part, and another average."""
    plan = plan_of(
        ("a", "b", 0.7, 0.795, 70),
        ("a", "b", 1.0, 0.80, 100),
        ("a", "b", 0.5, 0.79, 40),
        chosen=2,
        best=1,
        error=0.012,
        target_macs=100,
    )
    cheaper = msgspec.structs.replace(plan.candidates[0], score=0.85)
    plan = msgspec.structs.replace(plan, candidates=[cheaper, *plan.candidates[1:]])
    [line] = remarks(plan)
    assert "0.790 for 0.40" in line and "0.800 for 1.00" in line and "0.795" not in line
    [_, _, *shown, _] = _text(plan, 1).splitlines()  # whatever their rank
    assert [row.split()[-1] for row in shown] == ["0.70", "0.40", "1.00"]
    drawn = io.BytesIO()
    draw_plan(plan, drawn, ".svg")
    assert b"<svg" in drawn.getvalue()


def test_nothing_is_said_of_the_best():
    assert remarks(plan_of(("a", "b", 1.0, 0.80, 100), chosen=0, target_macs=100)) == []


@pytest.mark.parametrize(("floor", "said"), [(0.795, True), (0.70, False)])
def test_a_copied_part_that_does_not_earn_its_place_is_said(floor, said):
    plan = plan_of(
        ("a", "b", 1.0, 0.80, 100),
        ("-", "-", 0.0, floor, 1),
        chosen=0,
        floor_error=0.01,
        target_macs=100,
    )
    assert head_only_of(plan) is plan.candidates[1]
    lines = remarks(plan)
    assert bool(lines) == said
    if said:
        assert "0.800" in lines[0] and "0.795" in lines[0] and "--head-only" in lines[0]
