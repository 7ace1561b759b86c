"""A copied part on a coarser map: --resolution, its cost, and what the search makes of it."""

import pytest
import torch
from support.command import pnc_forked
from support.networks import draw_folder, make_network, save_checkpoint

from pnc_cli import load
from pnc_cli.branch.adapter import resampled
from pnc_cli.branch.classes import parse_classes
from pnc_cli.branch.cost import module_macs
from pnc_cli.branch.task import gather
from pnc_cli.data import open_images
from pnc_cli.errors import Incompatible
from pnc_cli.manifest import Layout
from pnc_cli.network.graph import trace
from pnc_cli.network.load import load_network
from pnc_cli.placement import search as searching
from pnc_cli.placement.grid import make_grid
from pnc_cli.plan import NOTHING, Place

CLONE = ["--limit-per-class", "6", "--epochs", "1", "--json"]


@pytest.mark.parametrize(
    "kind, shape, expected",
    [
        ("NCHW", (4, 9, 6), (4, 6, 4)),
        ("NHWC", (9, 6, 4), (6, 4, 4)),
        ("NCHW", (4, 1, 1), (4, 1, 1)),
    ],
)
def test_a_map_has_other_resolutions(kind, shape, expected):
    grid = shape[1:] if kind == "NCHW" else shape[:2]
    layout = Layout(kind, shape, grid)
    coarse = layout.at(0.67)
    assert coarse.shape == expected and coarse.channels == layout.channels
    assert layout.at(1.0) is layout
    features = torch.randn(2, *shape)
    assert resampled(features, layout, coarse).shape == (2, *expected)
    assert resampled(features, layout, layout) is features


@pytest.mark.parametrize("layout", [Layout("NLC", (17, 4), (4, 4), 1), Layout("NC", (4,), (1, 1))])
def test_tokens_and_vectors_have_none(layout):
    assert layout.at(0.5) is None


@pytest.mark.parametrize("position", ["input", "layer2"])
def test_macs_are_those_of_a_network_that_reads_so_small_an_image(pair, position):
    source = load_network(pair.source)
    grid = make_grid(source, load_network(pair.target))
    cut = grid.source.position(position)
    module, _ = grid.part(position, [1, 2])
    half = trace(source.model, (3, 16, 16))
    rows = source.model.fc.weight.numel() // 3  # the module has two of three
    found = module_macs(grid, Place("input", position, resolution=0.5), [1, 2], module)
    assert found == half.macs_after(half.position(position)) - rows
    found = module_macs(grid, Place("input", position), [1, 2], module)
    assert found == grid.source.macs_after(cut) - rows


def test_the_command_clones_at_a_resolution_and_the_clone_says_so(made, tmp_path):
    ran = pnc_forked(
        "clone",
        made.source,
        made.target,
        "--data",
        made.train,
        "--tap",
        "layer1",
        "--cut",
        "layer1",
        "--resolution",
        "0.5",
        "-o",
        "c.safetensors",
        *CLONE,
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    m = ran.json["manifest"]
    assert m["cut"]["shape"] == [8, 4, 4] and m["cut"]["grid"] == [4, 4]
    assert "resolution 0.5" in ran.err
    source = trace(load_network(made.source).model, (3, 32, 32))
    whole = source.macs_after(source.position("layer1"))
    assert m["cost"]["macs"] < whole / 2
    ran = pnc_forked(
        "eval", made.target, "--clone", "c.safetensors", "--data", made.test, "--json", cwd=tmp_path
    )
    assert ran.code == 0 and ran.json["images"] == 100
    x = torch.randn(2, 3, 32, 32)
    assert load(made.target, [tmp_path / "c.safetensors"])(x).shape == (2, 5)


def test_a_search_tries_resolutions_and_says_which(made, tmp_path):
    asked = [
        "search",
        made.source,
        made.target,
        "--data",
        made.train,
        "--limit-per-class",
        "10",
        "--json",
    ]
    found = pnc_forked(*asked, "--cut", "maxpool", "--max-macs", "0.3", cwd=tmp_path).json["plan"]
    tried = {c["resolution"] for c in found["candidates"]}
    assert {1.0, 0.5} <= tried
    assert all(c["macs"] <= 0.3 * found["target_macs"] for c in found["candidates"])
    found = pnc_forked(*asked, "--share", "0.5", cwd=tmp_path).json["plan"]
    assert {c["resolution"] for c in found["candidates"]} == {1.0}
    coarse = ("--cut", "maxpool", "--share", "0.5", "--resolution", "0.67")
    found = pnc_forked(*asked, *coarse, cwd=tmp_path).json["plan"]
    copied = [c for c in found["candidates"] if c["tap"] != NOTHING]
    assert {(c["share"], c["resolution"]) for c in copied} == {(0.5, 0.67)}


def test_the_pairs_that_can_be_read_at_a_resolution_are_found_whatever_is_better(pair, monkeypatch):
    """The map after layer4 is one cell; that of maxpool has 8 by 8, and 7 by 7 at 0.9."""
    source, target = load_network(pair.source), load_network(pair.target)
    classes = parse_classes(pair.new, source, target)
    images = open_images(str(pair.train))
    task = gather(source, target, classes, images, limit=6, originals=True, seed=0)
    grid = make_grid(source, target, ["maxpool"], ["maxpool", "layer4"])

    def short(candidates):
        return [c for c in candidates if c.cut == "layer4"] or list(candidates)

    monkeypatch.setattr(searching, "short_list", short)
    found = searching.search(task, grid, seed=0, resolutions=[0.9])
    copied = [c.place for c in found.candidates if c.tap != NOTHING]
    assert copied == [Place("maxpool", "maxpool", resolution=0.9)]
    found = searching.search(task, grid, seed=0, resolutions=[0.9, 1.0])
    assert {c.cut for c in found.candidates if c.tap != NOTHING} == {"layer4"}


def test_a_resolution_that_nothing_has_is_refused_before_an_image_is_looked_at(pair, monkeypatch):
    source, target = load_network(pair.source), load_network(pair.target)
    task = gather(
        source,
        target,
        parse_classes(pair.new, source, target),
        None,
        limit=None,
        originals=False,
        seed=0,
    )
    monkeypatch.setattr(searching.Study, "of", None)
    grid = make_grid(source, target, ["maxpool"], ["layer4", "layer2"])
    with pytest.raises(Incompatible, match="no cut has another map at resolution 0.9, 0.95"):
        searching.search(task, grid, seed=0, resolutions=[0.9, 0.95])


def test_tokens_are_refused(made, tmp_path):
    model = make_network("test_vit", 2, size=32, img_size=32)
    save_checkpoint(
        tmp_path / "vit.safetensors", model, "test_vit", ["yellow", "purple"], img_size=32
    )
    draw_folder(tmp_path / "data", ["red", "yellow", "purple"], 5)
    ran = pnc_forked(
        "search",
        "vit.safetensors",
        made.target,
        "--data",
        "data",
        "--tap",
        "layer1",
        "--cut",
        "blocks.0",
        "--resolution",
        "0.5",
        cwd=tmp_path,
    )
    assert ran.code == 4 and "at resolution 0.5" in ran.err and "--resolution" in ran.err
    grid = make_grid(load_network(tmp_path / "vit.safetensors"), load_network(made.target))
    with pytest.raises(Incompatible, match="NLC"):
        grid.source.position("blocks.0").at(0.5)
