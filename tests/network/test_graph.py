"""network/graph.py: positions, and the part after a cut that gives the logits bit for bit."""

import hashlib

import pytest
import torch
from support.networks import RESNET, make_network
from support.traced import ARCHITECTURES, POSITIONS, SIZE, traced
from torch import nn

from pnc_cli.errors import Incompatible
from pnc_cli.network.graph import part_after, trace
from pnc_cli.network.head import classifier_names, cuts, find_head
from pnc_cli.network.record import recording

LARGE = [
    "swin_tiny_patch4_window7_224",
    "levit_128s",
    "densenet121",
    "mixer_s16_224",
    "regnetx_002",
    "efficientformer_l1",
    "hrnet_w18_small",
    "mobilenetv3_small_100",
    "deit_tiny_distilled_patch16_224",
]


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def check_every_part(model, tr, size, step=1):
    """Feeds every part after a cut what was recorded there, and compares the logits' bytes."""
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    classifier = classifier_names(model)
    head = find_head(tr, classifier)
    positions = cuts(tr, head)[::step]
    assert len(positions) > 3
    with torch.no_grad():
        logits = model(x)
        with recording(model, [p.name for p in positions], classifier) as seen:
            assert digest(model(x)) == digest(logits)
        for position in positions:
            pre, found = part_after(tr, position, [head.pre, head.logits])(
                seen[position.name].clone()
            )
            assert digest(found) == digest(logits), position.name
            if len(classifier) == 1:
                assert digest(pre) == digest(seen[f"{classifier[0]}:input"]), position.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_part_after_every_cut_gives_the_logits_bit_for_bit(architecture):
    model, tr = traced(architecture, **ARCHITECTURES[architecture])
    check_every_part(model, tr, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", LARGE)
def test_the_same_for_families_that_timm_has_no_test_model_of(architecture):
    model = make_network(architecture, 5, size=224)
    check_every_part(model, trace(model, (3, 224, 224)), (3, 224, 224), step=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture, size, cut, model_args",
    [
        ("gemma4_vit_167m", 96, "encoder.blocks.1", {"depth": 3}),
        ("davit_tiny", 64, "stages.2.blocks.1.0.cpe2", {"embed_dims": [48, 96, 192, 384]}),
        ("mvitv2_tiny", 64, "stages.1.blocks.0", {}),
        ("pvt_v2_b0", 64, "stages.1.blocks.0", {}),
    ],
)
def test_the_same_for_networks_that_carry_sizes_along(architecture, size, cut, model_args):
    model = make_network(architecture, 5, size=size, **model_args)
    tr = trace(model, (3, size, size))
    assert tr.position(cut).name
    check_every_part(model, tr, (3, size, size), step=2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_position_has_the_layout_of_what_is_recorded_there(architecture):
    model, tr = traced(architecture, **ARCHITECTURES[architecture])
    names = [p.name for p in tr.positions]
    assert names[0] == "input" and len(set(names)) == len(names)
    with torch.no_grad(), recording(model, names) as seen:
        model(torch.randn(2, *SIZE))
    for p in tr.positions:
        assert tuple(seen[p.name].shape) == (2, *p.layout.shape), p.name
        assert p.layout.elements == p.layout.channels * (
            p.layout.prefix + p.layout.grid[0] * p.layout.grid[1]
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_aliases_name_modules_that_give_the_very_same_features(architecture):
    model, tr = traced(architecture, **ARCHITECTURES[architecture])
    aliased = [p for p in tr.positions if p.aliases]
    with recording(model, [n for p in aliased for n in (p.name, *p.aliases)]) as seen:
        model(torch.randn(2, *SIZE))
    assert aliased
    for p in aliased:
        assert {digest(seen[n]) for n in p.aliases} == {digest(seen[p.name])}
        assert all(tr.position(n) is p for n in p.aliases)


@pytest.mark.parametrize("architecture", POSITIONS)
def test_positions_have_readable_names_in_topological_order(architecture):
    _, tr = traced(architecture, **ARCHITECTURES[architecture])
    assert [p.name for p in tr.positions] == POSITIONS[architecture]
    depths = [p.depth for p in tr.positions]
    assert depths == sorted(depths) and depths[0] == 0 and depths[-1] == 1


@pytest.mark.parametrize(
    "architecture, position, kind, channels, grid, prefix",
    [
        ("resnet18", "layer2", "NCHW", 8, (4, 4), 0),
        ("resnet18", "global_pool.pool", "NCHW", 16, (1, 1), 0),
        ("resnet18", "global_pool", "NC", 16, (1, 1), 0),
        ("test_mambaout", "stages.1", "NHWC", 32, (4, 4), 0),
        ("test_maxvit", "stages.0.blocks.0.attn_block", "NHWC", 32, (8, 8), 0),
        ("test_convnext", "head.norm", "NCHW", 64, (1, 1), 0),
        ("test_vit", "blocks.2", "NLC", 64, (2, 2), 1),
        ("test_vit_relpos", "blocks.2", "NLC", 96, (2, 2), 0),
    ],
)
def test_layouts_are_told_without_a_table_of_architectures(
    architecture, position, kind, channels, grid, prefix
):
    _, tr = traced(architecture, **ARCHITECTURES[architecture])
    layout = tr.position(position).layout
    assert (layout.kind, layout.channels, layout.grid, layout.prefix) == (
        kind,
        channels,
        grid,
        prefix,
    )


def test_an_unknown_position_lists_those_there_are():
    _, tr = traced("resnet18", **RESNET)
    with pytest.raises(Incompatible, match="'layer9' is not a position") as e:
        tr.position("layer9")
    assert "layer1, layer2.0" in e.value.hint


class TwoLayers(nn.Module):
    """10 x 10 images: 3 * 4 * 9 * 100 MACs, then 4 * 2 after pooling."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def test_macs_are_counted_per_image():
    tr = trace(TwoLayers().eval(), (3, 10, 10))
    assert sum(tr.macs.values()) == 10_800 + 8
    assert tr.macs_after(tr.position("conv")) == 8
    assert tr.macs_after(tr.position("input")) == 10_808


class Skip(TwoLayers):
    def forward(self, x):
        y = self.conv(x)
        return self.fc(y.mean((2, 3))) + x.mean()


def test_a_place_where_the_image_is_still_needed_is_no_position():
    assert [p.name for p in trace(Skip().eval(), (3, 10, 10)).positions] == ["input"]


class Branches(TwoLayers):
    def forward(self, x):
        return self.fc(x.mean((2, 3))) if x.sum() > 0 else self.fc(x.amax((2, 3)))


def test_a_network_that_cannot_be_traced_is_incompatible():
    with pytest.raises(Incompatible, match="Branches cannot be traced"):
        trace(Branches().eval(), (3, 10, 10))


class Table(TwoLayers):
    """Has a constant that is computed from a buffer which no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)) * self.table.flip(0))


def test_a_part_holds_no_tensor_that_the_checkpoint_has_not():
    model, x = Table().eval(), torch.rand(2, 3, 10, 10)
    for _ in range(2):  # tracing leaves nothing behind that changes the next trace
        tr = trace(model, (3, 10, 10))
        out = next(reversed(tr.graph.nodes)).args[0].name
        part = part_after(tr, tr.position("conv"), [out])
        assert set(part.state_dict()) == {"fc.weight", "fc.bias"}
        assert torch.equal(part(model.conv(x))[0], model(x))


class Grows(TwoLayers):
    """Makes a table from the batch's size and its device before the cut, and uses it after."""

    def forward(self, x):
        ones = self.fc.weight.new_ones(x.shape[0], 4) * (2 * x.shape[0])
        return self.fc(self.conv(x).mean((2, 3)) * ones.to(x.device))


def test_what_follows_from_the_batch_size_need_not_be_alive_at_a_cut():
    model = Grows().eval()
    tr = trace(model, (3, 10, 10))
    out = next(reversed(tr.graph.nodes)).args[0].name
    part = part_after(tr, tr.position("conv"), [out])
    for count in (1, 5):
        x = torch.rand(count, 3, 10, 10)
        assert torch.equal(part(model.conv(x))[0], model(x))


class Fills(TwoLayers):
    """Writes what it has seen into a table made from the batch's size."""

    def forward(self, x):
        table = self.fc.weight.new_zeros(x.shape[0], 4)
        table.select(1, 0).copy_(x.mean((1, 2, 3)))
        return self.fc(self.conv(x).mean((2, 3)) + table)


def test_what_the_image_is_written_into_is_alive():
    assert [p.name for p in trace(Fills().eval(), (3, 10, 10)).positions] == ["input", "fc"]


class AsksForSizes(TwoLayers):
    def forward(self, x):
        if x.ndim != 4 or x.shape[0] == 0:
            raise ValueError("expected a batch of images")
        ones = torch.ones(x.shape[0], 4, device=x.device)
        return self.fc(self.conv(x).mean((2, 3)) * ones)


def test_a_network_may_ask_for_the_sizes_of_its_images():
    model, x = AsksForSizes().eval(), torch.rand(2, 3, 10, 10)
    tr = trace(model, (3, 10, 10))
    out = next(reversed(tr.graph.nodes)).args[0].name
    assert torch.equal(part_after(tr, tr.position("conv"), [out])(model.conv(x))[0], model(x))
