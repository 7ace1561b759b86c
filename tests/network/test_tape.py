"""network/tape.py: what can be tapped, found without tracing."""

import pytest
import torch
from support.networks import make_network
from support.traced import ARCHITECTURES, POSITIONS, SIZE, traced
from torch import nn

from pnc_cli.errors import Incompatible
from pnc_cli.network.record import recording
from pnc_cli.network.tape import observe
from pnc_cli.placement.grid import block_positions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_traced_position_can_be_tapped_under_its_name_and_layout(architecture):
    model, tr = traced(architecture, **ARCHITECTURES[architecture])
    seen = observe(model, SIZE)
    tapped = {p.name: p for p in seen.positions}
    assert [n for n in (p.name for p in tr.positions) if n not in tapped] == []
    for p in tr.positions:
        assert tapped[p.name].layout == p.layout, p.name
        assert set(tapped[p.name].aliases) == set(p.aliases), p.name
        # the tape leaves out what a layer computes from its weights alone, the graph cannot
        assert tapped[p.name].depth == pytest.approx(p.depth, abs=0.01)
    assert sum(seen.macs.values()) == pytest.approx(sum(tr.macs.values()), rel=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tap_records_one_tensor_of_the_layout_it_says(architecture):
    model, _ = traced(architecture, **ARCHITECTURES[architecture])
    positions = observe(model, SIZE).positions
    with torch.no_grad(), recording(model, [p.name for p in positions]) as seen:
        model(torch.randn(2, *SIZE))
    assert {n: tuple(t.shape) for n, t in seen.items()} == {
        p.name: (2, *p.layout.shape) for p in positions
    }


@pytest.mark.parametrize("architecture", POSITIONS)
def test_the_taps_of_plain_networks_are_their_positions(architecture):
    model, _ = traced(architecture, **ARCHITECTURES[architecture])
    assert [p.name for p in observe(model, SIZE).positions] == POSITIONS[architecture]


@pytest.mark.parametrize(
    "architecture, size, expected",
    [
        ("crossvit_tiny_240", 240, {"patch_embed.1": "NLC", "blocks.1.blocks.0": "NLC"}),
        ("mvitv2_tiny", 64, {"patch_embed": "NLC", "stages.1.blocks.0": "NLC", "stages.3": "NLC"}),
        ("davit_tiny", 64, {"stem": "NCHW", "stages.1": "NCHW"}),
    ],
)
def test_networks_with_several_tensors_alive_have_taps_at_their_blocks(
    architecture, size, expected
):
    seen = observe(make_network(architecture, 3, size=size), (3, size, size))
    kinds = {p.name: p.layout.kind for p in seen.positions}
    assert kinds.items() >= expected.items()


class Small(nn.Module):
    """10 x 10 images."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


class DependsOnTheImage(Small):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class NeedsTheImage(Small):
    def forward(self, x):
        return super().forward(x) + x.mean()


class Twice(Small):
    def forward(self, x):
        return self.fc(self.act(self.act(self.conv(x))).mean((2, 3)))


class ReturnsAPair(Small):
    def __init__(self):
        super().__init__()
        self.both = Both()

    def forward(self, x):
        x, size = self.both(self.conv(x))
        return self.fc(x.mean((2, 3))) / size


class Both(nn.Module):
    def forward(self, x):
        return x + 1, x.shape[-1]


class WritesIntoABuffer(Small):
    def forward(self, x):
        y = self.conv(x)
        out = torch.zeros(len(x), 4)
        out[:, :2], out[:, 2:] = y.mean((2, 3))[:, :2], y.amax((2, 3))[:, 2:]
        return self.fc(out)


@pytest.mark.parametrize(
    "network, taps",
    [
        (Small, ["input", "conv", "act", "fc"]),
        (DependsOnTheImage, ["input", "conv", "act", "fc"]),
        (NeedsTheImage, ["input", "conv", "act"]),
        (Twice, ["input", "conv", "fc"]),
        (ReturnsAPair, ["input", "conv", "both", "fc"]),
        (WritesIntoABuffer, ["input", "conv", "fc"]),
    ],
)
def test_a_tap_is_a_module_that_is_called_once_and_returns_one_tensor(network, taps):
    model = network().eval()
    positions = observe(model, (3, 10, 10)).positions
    assert [p.name for p in positions] == taps
    x = torch.rand(2, 3, 10, 10)
    with torch.no_grad(), recording(model, taps) as seen:
        expected = model(x)
    assert torch.isfinite(expected).all()
    assert {n: tuple(t.shape[1:]) for n, t in seen.items()} == {
        p.name: p.layout.shape for p in positions
    }


def test_what_a_layer_overwrites_in_place_is_recorded_before():
    model = Small().eval()
    with torch.no_grad(), recording(model, ["conv", "act"]) as seen:
        model(torch.rand(2, 3, 10, 10))
    assert seen["conv"].min() < 0 and torch.equal(seen["conv"].relu(), seen["act"])


def test_a_network_that_does_not_run_on_its_images_is_refused():
    with pytest.raises(Incompatible, match=r"Small does not run .* \(1, 10, 10\)") as e:
        observe(Small().eval(), (1, 10, 10))
    assert "input_size" in e.value.hint


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x).relu()


class Encoder(nn.Module):
    """Nearly all of a network, in one module of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.encoder, self.fc = nn.Conv2d(3, 4, 1), Encoder(), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.encoder(self.stem(x)).mean((2, 3)))


def test_blocks_are_searched_inside_a_module_that_is_nearly_the_whole_network():
    seen = observe(Wrapped().eval(), (3, 10, 10))
    inside = ["encoder.blocks.0.conv", "encoder.blocks.0", "encoder.blocks.1.conv"]
    assert [p.name for p in seen.positions] == ["input", "stem", *inside, "encoder", "fc"]
    assert seen.position("encoder.blocks.1").name == "encoder"
    searched = [p.name for p in block_positions(seen)]
    assert searched == ["input", "stem", "encoder.blocks.0", "encoder", "fc"]


def test_an_lstm_costs_its_weights_times_its_steps():
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Flatten(1, 3), lstm).eval()
    weights = sum(w.numel() for n, w in lstm.named_parameters() if n.startswith("weight"))
    assert sum(observe(model, (3, 10, 6)).macs.values()) == 30 * weights
