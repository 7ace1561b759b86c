"""A few words of ``model_args`` that ask for a network of any size."""

import json
import time

import pytest
from support.command import clone_forked, pnc_within
from support.handmade import rewrite_manifest
from support.networks import RESNET, make_network, save_checkpoint

SECONDS = 120
GIB = 1 << 30


def loads(path, folder):
    """Loads what is in ``path``, as ``pnc eval`` begins; and how much memory that took."""
    (folder / "data" / "red").mkdir(parents=True, exist_ok=True)
    ran, peak = pnc_within(SECONDS, "eval", path, "--data", "data", cwd=folder)
    return ran, peak


ARGS = {
    "wide": ({"channels": [3500] * 4}, "shape"),
    "deep": ({**RESNET, "layers": [30_000, 1, 1, 1]}, "ask for a network of more than"),
    "deep everywhere": ({"layers": [30_000] * 4}, "ask for a network of more than"),
    "wide and deep": ({"channels": [3500] * 4, "layers": [30_000]}, ""),
}


@pytest.mark.parametrize("args, said", ARGS.values(), ids=ARGS)
def test_a_target_that_asks_for_more_than_its_file_holds(tmp_path, args, said):
    path = save_checkpoint(
        tmp_path / "t.safetensors",
        make_network("resnet18", 2, **RESNET),
        "resnet18",
        ["red", "green"],
        **RESNET,
    )
    document = json.loads(path.with_suffix(".json").read_text())
    document["model_args"] = args
    path.with_suffix(".json").write_text(json.dumps(document))
    began = time.monotonic()
    ran, peak = loads(path, tmp_path)
    assert ran.code == 3 and said in ran.err, ran.err
    assert "t.safetensors" in ran.err
    assert peak < GIB, f"{peak:,} bytes in {time.monotonic() - began:.0f} s"


@pytest.fixture(scope="module")
def pruned(made, tmp_path_factory):
    """A clone of some channels of the source's last layers."""
    folder = tmp_path_factory.mktemp("pruned")
    place = ["--tap", "layer2", "--cut", "layer3", "--share", "0.5", "--epochs", "0"]
    ran = clone_forked(made, *place, "--limit-per-class", "6", cwd=folder)
    assert ran.code == 0, ran.err
    return folder / "c.safetensors"


@pytest.fixture(scope="module")
def last(made, tmp_path_factory):
    """A clone of the source's classifier alone."""
    folder = tmp_path_factory.mktemp("last")
    place = ["--tap", "layer4", "--cut", "layer4", "--whole", "--epochs", "0"]
    ran = clone_forked(made, *place, "--limit-per-class", "6", cwd=folder)
    assert ran.code == 0, ran.err
    return folder / "c.safetensors"


def wide(m):
    m["source"]["model_args"] = {"channels": [3500] * 4}


def deep(m):
    m["source"]["model_args"] = {**RESNET, "layers": [30_000, 1, 1, 1]}


CLAIMS = {
    "wide": ("pruned", wide, "is no slice of its source's"),
    "deep": ("pruned", deep, "more than 10,000 tensors: pnc's limit"),
    "deep, of a classifier alone": ("last", deep, "more than 10,000 tensors: pnc's limit"),
    "wide, of a classifier alone": ("last", wide, "is no slice of its source's"),
}


@pytest.mark.parametrize("which, change, said", CLAIMS.values(), ids=CLAIMS)
def test_a_clone_that_claims_a_source_out_of_proportion(
    made, tmp_path, request, which, change, said
):
    path = tmp_path / "c.safetensors"
    path.write_bytes(request.getfixturevalue(which).read_bytes())
    rewrite_manifest(path, change)
    args = ["eval", made.target, "--clone", path, "--data", made.test, "--limit-per-class", "2"]
    ran, peak = pnc_within(SECONDS, *args, cwd=tmp_path)
    assert ran.code == 3 and said in ran.err, (ran.err, f"{peak:,}")
    assert peak < GIB, f"{peak:,} bytes"
