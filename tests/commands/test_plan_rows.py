"""pnc clone --plan: options are applied to the plan's rows, and a row can be chosen."""

import json

import pytest
from support.command import clone_forked, pnc_forked


@pytest.fixture(scope="module")
def planned(made, tmp_path_factory):
    """A folder with plan.json, and the plan."""
    folder = tmp_path_factory.mktemp("planned")
    ran = pnc_forked(
        *("search", made.source, made.target, "--data", made.train, "--limit-per-class", "8"),
        *("--tap", "layer1", "--tap", "layer2", "--cut", "layer2", "--share", "1"),
        *("--share", "0.5", "-o", "plan.json"),
        cwd=folder,
    )
    assert ran.code == 0, ran.err
    plan = json.loads((folder / "plan.json").read_text())
    for number, row in enumerate(plan["candidates"], start=1):  # as they are printed
        assert any(
            line.split()[:2] in ([str(number), row["tap"]], ["*", str(number)])
            for line in ran.out.splitlines()
        )
    return folder, plan


def clone(made, planned, *more):
    fast = ("--plan", "plan.json", "--epochs", "0", "--limit-per-class", "8", "--force", "--json")
    return clone_forked(made, *fast, *more, cwd=planned[0])


def place(ran):
    assert ran.code == 0, ran.err
    m = ran.json["manifest"]
    return (m["tap"] or {}).get("position", "-"), m["method"]["share"]


def test_a_row_can_be_chosen(made, planned):
    for number, row in enumerate(planned[1]["candidates"], start=1):
        assert place(clone(made, planned, "--row", number)) == (row["tap"], row["share"])


@pytest.mark.parametrize(
    "options, like",
    [
        (("--tap", "layer1"), lambda c, p: c["tap"] == "layer1"),
        (("--share", "0.5"), lambda c, p: c["share"] == 0.5),
        (("--tap", "layer2", "--share", "1"), lambda c, p: (c["tap"], c["share"]) == ("layer2", 1)),
    ],
    ids=lambda v: None if callable(v) else str(v),
)
def test_options_choose_the_best_row_that_is_so(made, planned, options, like):
    _, plan = planned
    best = next(c for c in plan["candidates"] if c["tap"] != "-" and like(c, plan))
    assert place(clone(made, planned, *options)) == (best["tap"], best["share"])


def test_a_budget_holds_for_a_plan(made, planned):
    _, plan = planned
    copying = [c for c in plan["candidates"] if c["tap"] != "-"]
    least = min(c["macs"] for c in copying)
    budget = least / plan["target_macs"] + 1e-6
    expected = next(c for c in copying if c["macs"] <= least)
    assert place(clone(made, planned, "--max-macs", budget)) == (expected["tap"], expected["share"])


@pytest.mark.parametrize(
    "options, said",
    [
        (("--max-macs", "0.000001"), "of the target's MACs, wanted 1e-06 at most"),
        (("--max-params", "0.000001"), "of the target's parameters"),
        (("--max-bytes", "10"), "bytes, wanted 10 at most"),
        (("--cut", "layer3"), "its cut is 'layer2', wanted layer3"),
        (("--share", "0.3"), "wanted 0.3"),
        (("--resolution", "0.5"), "its resolution is 1, wanted 0.5"),
    ],
    ids=str,
)
def test_what_no_row_fits_is_refused_with_the_nearest(made, planned, options, said):
    ran = clone(made, planned, *options)
    assert ran.code == 4 and said in ran.err and "is nearest" in ran.err


@pytest.mark.parametrize(
    "options, said",
    [
        (("--row", "99"), "the plan has the rows 1 to"),
        (("--row", "1", "--share", "0.5"), "--row and --share do not go together"),
        (("--row", "1", "--max-macs", "0.5"), "--row and --max-macs do not go together"),
        (("--whole",), "--whole and --plan do not go together"),
        (("--head-only",), "--head-only and --plan do not go together"),
    ],
    ids=str,
)
def test_what_contradicts_a_plan_is_refused(made, planned, options, said):
    ran = clone(made, planned, *options)
    assert ran.code == 2 and said in ran.err


@pytest.mark.parametrize(
    "options, said",
    [
        (("--row", "1"), "no --plan is given"),
        (("--head-only", "--epochs", "3"), "--head-only and --epochs do not go together"),
    ],
    ids=str,
)
def test_what_says_nothing_is_refused(made, tmp_path, options, said):
    ran = clone_forked(made, *options, cwd=tmp_path)
    assert ran.code == 2 and said in ran.err


def test_a_plan_of_other_classes_is_said(made, planned):
    ran = clone(made, planned, "-c", "purple")
    assert ran.code == 0 and "was made for other classes: yellow, purple" in ran.err
