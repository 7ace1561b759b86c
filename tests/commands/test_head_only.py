"""pnc clone --head-only and --whole: no copied part, and all of one."""

import json

import pytest
import torch
from support.command import clone_forked, pnc_forked
from support.handmade import sha256

import pnc_cli

FEW = ("--limit-per-class", "10")


@pytest.fixture(scope="module")
def head(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    ran = clone_forked(made, "--head-only", *FEW, cwd=folder)
    assert ran.code == 0, ran.err
    assert "no copied part" in ran.out
    return folder / "c.safetensors"


def test_it_is_a_join_of_a_few_kilobytes_and_costs_next_to_nothing(made, head):
    m = json.loads(head.with_suffix(".json").read_text())
    assert (m["tap"], m["cut"], m["adapter"], m["module"], m["columns"]) == (None,) * 3 + ({}, [])
    assert m["cost"]["macs"] < 0.01 * m["cost"]["target_macs"]
    assert m["cost"]["bytes"] < 50_000
    ran = pnc_forked("info", head, cwd=head.parent)
    assert ran.code == 0 and "no copied part" in ran.out


def test_it_goes_in_answers_and_comes_out_like_any_clone(made, head, tmp_path):
    for code, *args in (
        (4, "inject", made.target, made.clone, head, "-o", "both.safetensors"),  # labels twice
        (0, "inject", made.target, head, "-o", "patched.safetensors"),
        (0, "eject", "patched.safetensors", "-o", "back.safetensors"),
    ):
        ran = pnc_forked(*args, cwd=tmp_path)
        assert ran.code == code, ran.err
    assert sha256(tmp_path / "back.safetensors") == sha256(made.target)
    model = pnc_cli.load(tmp_path / "patched.safetensors")
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, alone = model(x), pnc_cli.load(made.target)(x)
    assert torch.equal(found[:, : alone.shape[1]], alone)
    assert found.shape[1] == alone.shape[1] + 2 and found.isfinite().all()
    ran = pnc_forked("eval", "patched.safetensors", "--data", made.test, "--json", cwd=tmp_path)
    assert ran.code == 0 and ran.json["average_accuracy"] > 0.4, (
        "better than chance on five classes"
    )


def test_it_needs_images_of_original_classes(made, tmp_path):
    ran = clone_forked(made, "--head-only", "--no-originals", *FEW, cwd=tmp_path)
    assert ran.code == 2 and "original classes" in ran.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "asked",
    [
        ("--head-only", "--share", "0.5"),
        ("--head-only", "--whole"),
        ("--whole", "--share", "0.5"),
        ("--head-only", "--max-macs", "0.5"),
        ("--head-only", "--cut", "layer1"),
    ],
    ids=" ".join,
)
def test_what_leaves_nothing_to_say_goes_with_nothing_else(made, tmp_path, asked):
    ran = clone_forked(made, *asked, cwd=tmp_path)
    assert ran.code == 2 and "do not go together" in ran.err


def test_every_search_with_originals_scores_it_and_whole_takes_all(made, tmp_path):
    ran = pnc_forked(
        "search",
        made.source,
        made.target,
        "--data",
        made.train,
        "--whole",
        "--json",
        *FEW,
        cwd=tmp_path,
    )
    plan = ran.json["plan"]
    floor = [c for c in plan["candidates"] if c["tap"] == "-"]
    assert len(floor) == 1 and floor[0]["macs"] < 0.01 * plan["target_macs"]
    assert plan["candidates"][plan["chosen"]]["share"] == 1.0
    assert {c["share"] for c in plan["candidates"]} == {0.0, 1.0}
