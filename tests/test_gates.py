"""gates.py: a gate fails when things get worse, never when they get better, and can fail."""

import pytest

from pnc_cli import gates
from pnc_cli.errors import UsageError
from pnc_cli.evaluation import METRICS, CloneCost, Evaluation, Latency

EVALUATION = Evaluation(
    images=100,
    skipped=0,
    original_accuracy=0.9,
    clone_accuracy=0.8,
    average_accuracy=0.85,
    joint_accuracy=0.86,
    branch_accuracy=0.95,
    target_accuracy=0.92,
    locality=0.97,
    right_to_wrong=0.02,
    calibration_error=0.05,
    per_class={},
    clones=[
        CloneCost("a", ["cat"], 100, 0.10, 1000, 0.2, 400),
        CloneCost("b", ["dog"], 200, 0.25, 2000, 0.3, 800),
    ],
    latency_ms=Latency(target=2.0, patched=3.0, ratio=1.5),
)


def failing(under=(), over=()):
    return gates.faults(gates.parse(under, over), EVALUATION.metric)


def test_every_share_that_is_measured_has_a_direction():
    assert sorted(METRICS) == sorted((*gates.HIGHER, *gates.LOWER))


@pytest.mark.parametrize("name", METRICS)
def test_a_share_fails_on_its_worse_side_alone(name):
    value = EVALUATION.metric(name)
    option = "over" if name in gates.LOWER else "under"
    worse, better = (
        (value - 0.01, value + 0.01) if option == "over" else (value + 0.01, value - 0.01)
    )
    assert failing(**{option: [f"{name}={value}"]}) == []
    assert failing(**{option: [f"{name}={better}"]}) == []
    [fault] = failing(**{option: [f"{name}={worse}"]})
    assert fault.startswith(
        f"{name} is {value:.6g}, {'at most' if option == 'over' else 'required'}"
    )


@pytest.mark.parametrize(
    "bound, fault",
    [
        ("macs=0.5", None),
        ("macs=0.49", "macs is 0.5 of the target's, at most 0.49"),
        ("parameters=0.34", "parameters is 0.35 of the target's, at most 0.34"),
        ("bytes=1200", None),
        ("bytes=1KB", "bytes is 1200 bytes, at most 1000"),
        ("latency=1.5", None),
        ("latency=1.4", "latency is 1.5 times the target's, at most 1.4"),
        ("latency=3ms", None),
        ("latency=2.9ms", "latency is 3 ms an image, at most 2.9"),
    ],
)
def test_costs_are_those_of_all_clones_together(bound, fault):
    assert failing(over=[bound]) == ([] if fault is None else [fault])


def test_what_cannot_be_told_does_not_pass():
    nothing = gates.parse(["clone_accuracy=0.0"], ["calibration_error=1", "latency=9"])
    found = gates.faults(nothing, lambda name: None)
    assert [f.split()[0] for f in found] == ["clone_accuracy", "calibration_error", "latency"]
    assert all("cannot be told" in f for f in found)


@pytest.mark.parametrize("name", [*METRICS, *gates.COSTS])
def test_the_other_direction_is_refused_with_the_one_to_give(name):
    wrong, right = (
        ("under", "--fail-over") if name not in gates.HIGHER else ("over", "--fail-under")
    )
    with pytest.raises(UsageError, match="would fail when it gets better") as e:
        gates.parse(**{"under": (), "over": (), wrong: [f"{name}=0.5"]})
    assert e.value.hint == f"{right} {name}=0.5"


@pytest.mark.parametrize(
    "under, over, message",
    [
        (["locality=85"], [], "'85' is not a share from 0 to 1"),
        (["locality=1.01"], [], "'1.01' is not a share from 0 to 1"),
        (["locality=-0.1"], [], "is not a share"),
        (["locality=nan"], [], "is not a share"),
        (["locality=0,85"], [], "is not a share"),
        (["locality=85%"], [], "is not a share"),
        (["locality="], [], "is not a share"),
        (["locality"], [], "expected name=number"),
        (["speed=0.5"], [], "no figure 'speed'"),
        ([], ["right_to_wrong=5"], "is not a share from 0 to 1"),
        ([], ["macs=2e8"], "a share of the target's"),
        ([], ["parameters=-1"], "a share of the target's"),
        ([], ["bytes=lots"], "is not a size such as"),
        ([], ["latency=5s"], "a time such as 5ms"),
        ([], ["latency=inf"], "a time such as 5ms"),
        (["locality=0.9", "locality=0.5"], [], "locality is given twice"),
        ([], ["macs=0.9", "macs=0.5"], "macs is given twice"),
    ],
)
def test_bounds_that_nothing_can_cross_and_what_is_none_are_refused(under, over, message):
    with pytest.raises(UsageError, match=message) as e:
        gates.parse(under, over)
    assert e.value.hint


def test_in_python_too():
    assert EVALUATION.above({"calibration_error": 0.04, "macs": 0.5}) == ["calibration_error"]
    assert EVALUATION.below({"locality": 0.98}) == ["locality"]
