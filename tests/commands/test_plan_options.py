"""pnc search --plot and budgets: what they accept, what they draw, what they keep to."""

import pytest
from support.command import pnc_forked

from pnc_cli.commands.options import size
from pnc_cli.placement.ranking import frontier
from pnc_cli.plan import Candidate


@pytest.fixture(scope="module")
def searched(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot")
    ran = pnc_forked(
        "search",
        made.source,
        made.target,
        "--data",
        made.train,
        "--limit-per-class",
        "10",
        "--plot",
        "plan.png",
        "--max-bytes",
        "100kB",
        "--json",
        cwd=folder,
    )
    assert ran.code == 0, ran.err
    return folder, ran


def test_a_picture_is_drawn(searched):
    folder, ran = searched
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "drawn in plan.png" in ran.err


def test_no_candidate_is_over_the_bytes(searched, made):
    candidates = searched[1].json["plan"]["candidates"]
    assert candidates and all(c["bytes"] <= 100_000 for c in candidates)


def test_the_clone_is_as_large_as_its_candidate_said(searched, made):
    folder, ran = searched
    chosen = ran.json["plan"]["candidates"][ran.json["plan"]["chosen"]]
    clone = pnc_forked(
        "clone",
        made.source,
        made.target,
        "--data",
        made.train,
        "--limit-per-class",
        "10",
        "--max-bytes",
        "100kB",
        "--epochs",
        "0",
        "-o",
        "c.safetensors",
        "--json",
        cwd=folder,
    )
    assert clone.code == 0, clone.err
    cost = clone.json["manifest"]["cost"]
    assert cost["bytes"] <= 100_000
    assert cost["bytes"] == pytest.approx(chosen["bytes"], rel=0.02)
    assert cost["macs"] == pytest.approx(chosen["macs"], rel=0.02)
    assert cost["parameters"] == pytest.approx(chosen["parameters"], rel=0.02)


def test_other_endings_are_refused_before_any_work(made, tmp_path):
    ran = pnc_forked("search", made.source, made.target, "--plot", "plan.txt", cwd=tmp_path)
    assert ran.code == 2 and "plan.txt" in ran.err and ".png" in ran.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, value",
    [
        ("3000000", 3_000_000),
        ("3MB", 3_000_000),
        ("2.5 MiB", 2_621_440),
        ("10kb", 10_000),
        ("1g", 10**9),
    ],
)
def test_sizes(text, value):
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-3", "3 parsecs", "1e6"])
def test_what_is_no_size_is_refused(made, tmp_path, text):
    ran = pnc_forked("search", made.source, made.target, f"--max-bytes={text}", cwd=tmp_path)
    assert ran.code == 2 and "3MB" in ran.err


def candidate(macs, average):
    return Candidate(
        tap="a",
        cut="b",
        share=1.0,
        score=0.0,
        branch_accuracy=1.0,
        joint_accuracy=None,
        average_accuracy=average,
        locality=None,
        fit=1.0,
        parameters=1,
        macs=macs,
        bytes=1,
    )


def test_the_frontier_is_what_nothing_as_cheap_beats():
    given = [
        candidate(3, 0.7),
        candidate(1, 0.5),
        candidate(2, 0.4),
        candidate(3, 0.6),
        candidate(9, 0.7),
    ]
    assert [(c.macs, c.average_accuracy) for c in frontier(given)] == [(1, 0.5), (3, 0.7)]
