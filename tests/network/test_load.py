"""network/load.py: networks are built from their file alone, and loaded strictly."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.networks import RESNET, make_network, save_checkpoint

from pnc_cli.errors import BadInput, UsageError
from pnc_cli.network.load import check_device, load_network

LABELS = ["a", "b", "c"]


@pytest.fixture
def path(tmp_path):
    model = make_network("resnet18", 3, **RESNET)
    return save_checkpoint(tmp_path / "net.safetensors", model, "resnet18", LABELS, **RESNET)


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def document(path, **changes):
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **changes}))


def test_the_network_is_that_of_the_file_bit_for_bit(path):
    network = load_network(path)
    expected = make_network("resnet18", 3, **RESNET)
    x = torch.randn(4, 3, 32, 32)
    assert network.model(x).numpy().tobytes() == expected(x).numpy().tobytes()
    assert not network.model.training and not any(
        p.requires_grad for p in network.model.parameters()
    )
    assert (network.labels, network.input_size, network.classifier) == (
        LABELS,
        (3, 32, 32),
        ("fc",),
    )


def test_class_count_and_channels_come_from_the_tensors(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=7, in_chans=1, **RESNET).eval()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(
        json.dumps({"architecture": "resnet18", "model_args": RESNET})
    )
    network = load_network(tmp_path / "net.safetensors")
    assert network.ref.num_classes == 7 and network.input_size[0] == 1
    assert len(network.ref.preprocessing.mean) == 1
    assert network.labels == [str(i) for i in range(7)]


def test_half_precision_files_are_loaded_into_their_architecture(path):
    edit(path, lambda t: t.update({n: v.bfloat16() for n, v in t.items() if v.is_floating_point()}))
    expected = {n: v.float() for n, v in load_file(path).items()}
    state = load_network(path).model.state_dict()
    assert all(torch.equal(state[n].float(), expected[n]) for n in expected)


def test_a_transformer_with_an_image_size_of_its_own(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, img_size=64)
    path = save_checkpoint(
        tmp_path / "vit.safetensors", model, "test_vit", LABELS, size=64, img_size=64
    )
    document(path, pretrained_cfg={})
    assert load_network(path).input_size == (3, 64, 64)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.pop("layer1.0.conv1.weight"),
            "1 tensor missing, such as 'layer1.0.conv1.weight'",
        ),
        (
            lambda t: t.update(extra=torch.zeros(1)),
            "holds a resnet18, and besides 1 tensor unexpected, with no part in it: 'extra'",
        ),
        (
            lambda t: t.update({"bn1.weight": torch.zeros(9)}),
            r"tensor 'bn1.weight' has shape \[9\], expected \[64\]",
        ),
        (
            lambda t: t.update({"fc.weight": torch.zeros(4, 16), "fc.bias": torch.zeros(4)}),
            "classifier 'fc' has 4 classes, but num_classes says 3",
        ),
        (lambda t: t.pop("fc.weight"), "missing, such as 'fc.weight'"),
    ],
    ids=["missing", "unexpected", "shape", "classes", "classifier"],
)
def test_a_file_that_does_not_hold_what_it_says_is_refused(path, change, message):
    edit(path, change)
    with pytest.raises(BadInput, match=message):
        load_network(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"architecture": "resnet34"},
            "does not hold a resnet34 .as net.json says.: .* tensors missing",
        ),
        ({"architecture": "resnet19"}, "has no architecture 'resnet19'"),
        ({"model_args": {}}, "does not hold a resnet18"),
        ({"model_args": {"nonsense": 1}}, "timm cannot build 'resnet18' with model_args"),
        ({"model_args": {"channels": "many"}}, "timm cannot build 'resnet18' with model_args"),
        ({"label_names": ["a"]}, "classifier 'fc' has 3 classes, but label_names says 1"),
    ],
    ids=str,
)
def test_a_document_that_contradicts_the_file_is_refused(path, changes, message):
    document(path, **changes)
    with pytest.raises(BadInput, match=message):
        load_network(path)


def test_a_misspelt_architecture_gets_suggestions(path):
    document(path, architecture="resnet18x")
    with pytest.raises(BadInput) as e:
        load_network(path)
    assert "resnet18" in e.value.hint


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_a_usage_error(device):
    with pytest.raises(UsageError, match=f"--device {device}"):
        check_device(device)
