"""network/features.py: what a network says of images, running no further than it has to."""

from types import SimpleNamespace

import pytest
import torch
from support.networks import RESNET, draw, make_network
from torch import nn

from pnc_cli.network.features import answers_of, channels_last, glancing, prepared, watching
from pnc_cli.network.load import load_network

SPOTS = ["input", "maxpool", "layer2.0", "layer3"]


@pytest.fixture(scope="module")
def network(pair):
    return load_network(pair.target)


@pytest.fixture(scope="module")
def images(pair):
    drawn = [torch.from_numpy(draw(label, i)) for label in pair.old for i in range(9)]
    return torch.stack(drawn).permute(0, 3, 1, 2).contiguous()


def ran(network, names):
    """Which of the modules ``names`` have run so far, and a function that takes the hooks off."""
    seen = []
    handles = [
        network.model.get_submodule(n).register_forward_pre_hook(lambda m, x, n=n: seen.append(n))
        for n in names
    ]
    return seen, lambda: [h.remove() for h in handles]


def test_a_glance_sees_what_a_whole_pass_sees(network, images):
    x = prepared(network, images)
    with watching(network, SPOTS) as look:
        whole = look(x).features
    with glancing(network, SPOTS) as glance:
        some = glance(x)
    assert some.keys() == whole.keys() == set(SPOTS)
    assert all(torch.equal(some[p], whole[p]) for p in SPOTS)


@pytest.mark.parametrize(
    "spots, last, never",
    [
        (["maxpool"], "maxpool", ["layer1", "layer4", "fc"]),
        (["layer3", "maxpool"], "layer3", ["layer4", "global_pool", "fc"]),
        (["layer2.0"], "layer2.0", ["layer2.1", "fc"]),
        (["input", "layer1"], "layer1", ["layer2", "fc"]),
        (["input"], None, ["conv1", "fc"]),
    ],
    ids=str,
)
def test_a_glance_runs_no_further_than_the_last_position(network, images, spots, last, never):
    seen, off = ran(network, [*never, *([last] if last else [])])
    try:
        with glancing(network, spots) as glance:
            for _ in range(2):
                seen.clear()
                assert glance(prepared(network, images[:2])).keys() == set(spots)
                assert seen == ([last] if last else [])
    finally:
        off()


def test_what_one_glance_saw_stays_when_the_next_is_taken(network, images):
    x, y = prepared(network, images[:3]), prepared(network, images[-3:])
    with glancing(network, ["layer1"]) as glance:
        one = glance(x)["layer1"]
        before = one.clone()
        other = glance(y)["layer1"]
    assert torch.equal(one, before) and not torch.equal(one, other)


def test_after_a_glance_the_network_runs_to_its_end_again(network, images):
    x = prepared(network, images)
    with torch.no_grad():
        before = network.model(x)
        with glancing(network, ["layer1"]) as glance:
            glance(x)
        assert torch.equal(network.model(x), before)
    assert not any(m._forward_hooks for m in network.model.modules())


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_answers_are_the_same_in_batches_of_any_size(network, images, batch):
    found, whole = answers_of(network, images, batch), answers_of(network, images)
    assert found.pre.shape == (len(images), RESNET["channels"][-1])
    assert found.logits.shape == (len(images), 3)
    for mine, other in zip((found.pre, found.logits), (whole.pre, whole.logits)):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits = network.model(prepared(network, images))
    torch.testing.assert_close(whole.logits, logits, rtol=1e-5, atol=1e-5)
    expected = network.model.get_classifier()(whole.pre)
    torch.testing.assert_close(whole.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_vit"])
def test_channels_last_changes_no_number_of_a_network(architecture):
    model = make_network(architecture, 3, size=160)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    x = torch.randn(2, 3, 160, 160)
    answers = model(x)
    channels_last(SimpleNamespace(model=model, input_size=(3, 160, 160)))
    assert any(not t.is_contiguous() for t in model.state_dict().values())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    torch.testing.assert_close(model(x), answers)


def test_a_network_that_does_not_run_with_channels_last_is_left_as_it_was():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).view(len(x), -1)

    model = Flat().requires_grad_(False)
    channels_last(SimpleNamespace(model=model, input_size=(3, 8, 8)))
    assert model.conv.weight.is_contiguous() and model(torch.zeros(2, 3, 8, 8)).shape == (2, 144)
