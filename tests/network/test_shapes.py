"""network/shapes.py: networks of shapes alone."""

import timm
import torch
from support.networks import RESNET, make_network
from torch import nn

from pnc_cli.network.blank import without_memory
from pnc_cli.network.shapes import on_shapes, twin


def shapes(model):
    return {n: (tuple(t.shape), t.dtype) for n, t in model.state_dict().items()}


def test_a_network_built_unfilled_has_every_shape_and_no_data():
    for name in ("test_vit", "test_efficientnet", "test_nfnet"):
        with without_memory():
            model = timm.create_model(name, num_classes=3)
        assert shapes(model) == shapes(timm.create_model(name, num_classes=3))
        assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert torch.zeros(1).device.type == "cpu"


def test_a_twin_has_the_shapes_and_leaves_the_network_as_it_is():
    model = make_network("resnet18", 3, **RESNET)
    copied = twin(model)
    assert shapes(copied) == shapes(model)
    assert {t.device.type for t in copied.state_dict().values()} == {"meta"}
    assert {t.device.type for t in model.state_dict().values()} == {"cpu"}


class LooksAtItsTensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return x * self.scale.item()


def test_a_network_that_looks_at_its_tensors_is_run_itself():
    model = LooksAtItsTensors()
    x = torch.ones(2)
    assert on_shapes(model, lambda m: (m is model, m(x).tolist())) == (True, [2.0, 2.0])
