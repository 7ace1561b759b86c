"""network/record.py: what is recorded is what the module gave, whatever happens to it later."""

import pytest
import torch
from support.networks import RESNET, make_network
from torch import nn

from pnc_cli.network.head import as_vector
from pnc_cli.network.record import recording


def test_a_copy_is_recorded_before_later_layers_work_in_place():
    model = make_network("resnet18", 3, **RESNET)
    assert model.act1.inplace
    x = torch.randn(2, 3, 32, 32)
    with recording(model, ["bn1", "act1"]) as seen:
        model(x)
    expected = model.bn1(model.conv1(x))
    assert (expected < 0).any()
    assert torch.equal(seen["bn1"], expected)
    assert torch.equal(seen["act1"], expected.relu())


def test_the_input_is_a_copy_too():
    model = nn.Sequential(nn.ReLU(inplace=True))
    x = -torch.ones(1, 3)
    with recording(model, ["input"], ["0"]) as seen:
        model(x)
    assert torch.equal(seen["input"], -torch.ones(1, 3))
    assert torch.equal(seen["0:input"], -torch.ones(1, 3))


@pytest.mark.parametrize("names", [["0"], ["0", "no.such.module"]], ids=["run", "fail"])
def test_no_hook_stays_behind(names):
    model = nn.Sequential(nn.ReLU())
    try:
        with recording(model, names, ["0"]):
            model(torch.zeros(1))
    except AttributeError:
        assert len(names) == 2
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 5, 3, 3), (2, 4, 5)])
def test_pre_logits_become_vectors(shape):
    x = torch.randn(shape)
    expected = {2: x, 3: x.mean(1), 4: x.flatten(2).mean(2) if x.ndim > 2 else x}[x.ndim]
    assert torch.allclose(as_vector(x), expected)
    assert as_vector(x).shape == (2, 5)
