"""Numbers that are none, in either network: refused where they arise, by the real command."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import pnc_forked
from support.networks import RESNET, draw_folder, make_network, save_checkpoint

INF, NAN = float("inf"), float("nan")
QUICK = ["--tap", "layer2", "--cut", "layer2", "--epochs", "0", "--whole"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Untrained ``source`` and ``target``, and images of their classes."""
    folder = tmp_path_factory.mktemp("numbers")
    for name, labels, seed in (
        ("source", ["yellow", "purple"], 1),
        ("target", ["red", "green"], 2),
    ):
        model = make_network("resnet18", 2, seed=seed, **RESNET)
        save_checkpoint(folder / f"{name}.safetensors", model, "resnet18", labels, **RESNET)
    draw_folder(folder / "data", ["red", "green", "yellow", "purple"], 6)
    return folder


def spoil(folder, to, which, tensor, change):
    """Copies of the networks in ``to``, with ``change`` made to a tensor of one of them."""
    for name in ("source", "target"):
        tensors = load_file(folder / f"{name}.safetensors")
        if name == which:
            tensors[tensor] = change(tensors[tensor]).contiguous()
        save_file(tensors, to / f"{name}.safetensors")
        (to / f"{name}.json").write_text((folder / f"{name}.json").read_text())
    (to / "data").symlink_to(folder / "data")


def one(value):
    def change(tensor):
        flat = tensor.clone().reshape(-1)
        flat[0] = value
        return flat.reshape(tensor.shape)

    return change


WEIGHTS = {
    "NaN": ("conv1.weight", one(NAN), "has 1 numbers that are not finite"),
    "infinity": ("fc.bias", one(INF), "has 1 numbers that are not finite"),
    "minus infinity": ("layer3.0.bn1.bias", one(-INF), "has 1 numbers that are not finite"),
    "NaN as a mean": ("bn1.running_mean", one(NAN), "has 1 numbers that are not finite"),
    "beyond float32": ("fc.weight", lambda t: t.double() * 1e300, "not finite"),
    "NaN in half precision": ("fc.weight", lambda t: one(NAN)(t.half()), "not finite"),
    "a negative variance": ("bn1.running_var", one(-0.5), "has negative variances, the least -0.5"),
    "no variance at all": (
        "layer1.0.bn1.running_var",
        torch.zeros_like,
        "has no variance but zero",
    ),
}


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("tensor, change, said", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_are_no_numbers_are_refused_at_load(
    networks, tmp_path, which, tensor, change, said
):
    spoil(networks, tmp_path, which, tensor, change)
    ran = pnc_forked("eval", f"{which}.safetensors", "--data", "data", "--json", cwd=tmp_path)
    assert ran.code == 3, ran.err
    assert f"{which}.safetensors: tensor '{tensor}'" in ran.json["error"]["message"]
    assert said in ran.json["error"]["message"]


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("command", ["clone", "search", "eval"])
def test_features_that_overflow_are_refused_with_their_position(networks, tmp_path, which, command):
    spoil(networks, tmp_path, which, "layer1.0.bn2.weight", lambda t: t * 0 + 3e38)
    args = ["source.safetensors", "target.safetensors", "--data", "data"]
    if command == "eval":
        args = [f"{which}.safetensors", "--data", "data"]
    more = ["-o", "c.safetensors", *QUICK] if command == "clone" else []
    ran = pnc_forked(command, *args, *more, "--json", cwd=tmp_path)
    assert ran.code == 3, ran.err
    message = ran.json["error"]["message"]
    called = "the target" if command == "eval" else f"{which}.safetensors"
    assert f"{called}: on these images its features at 'layer1.0.bn2' are not finite" in message
    assert not (tmp_path / "c.safetensors").exists()


def test_a_single_dead_channel_is_no_fault(networks, tmp_path):
    """Its variance is zero in half precision; with epsilon all is well."""
    spoil(networks, tmp_path, "target", "bn1.running_var", one(0.0))
    ran = pnc_forked("eval", "target.safetensors", "--data", "data", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
