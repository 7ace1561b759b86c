"""branch/mixing.py: what a layer reads of a pruned module, brought nearer to what it read of the whole."""

import copy

import pytest
import torch
from support.modules import whole
from support.networks import RESNET
from torch import nn

from pnc_cli.branch.compensation import Compensation, compensate
from pnc_cli.branch.mixing import (
    fold_mixing,
    mixed,
    mixed_layers,
    mixing_of,
    numbers_of,
    rank_of,
    shapes_of,
)
from pnc_cli.channels.groups import weight_cells
from pnc_cli.channels.prune import prune, rank_channels, select
from pnc_cli.manifest import Kept, ModuleTensor

NETWORKS = {"resnet18": RESNET, "test_efficientnet": {}, "test_convnext": {}, "test_vit": {}}


def halved(architecture):
    """A whole module, half of it, how that was sliced, and features."""
    _, module, slices, features = whole(architecture, **NETWORKS[architecture])
    cells = weight_cells(module.part, features[:1])
    chosen = select(module, rank_channels(module, features), 0.5, cells)
    pruned, kept = prune(module, slices, chosen, features[:2])
    return module, pruned, kept, features


@torch.no_grad()
def error(module, features, dense):
    found, expected = (torch.cat(m(features.clone()), 1) for m in (module, dense))
    return (found - expected).square().mean().item()


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_mixed_module_is_nearer_to_the_whole_one_than_one_with_levels_alone(architecture):
    dense, pruned, kept, features = halved(architecture)
    found = compensate(dense, pruned, kept, features, features)
    levels, both = copy.deepcopy(pruned), copy.deepcopy(pruned)
    Compensation(found.modulation).fold_into(levels.part)
    found.fold_into(both.part)
    assert mixed_layers(pruned.part, shapes_of(dense.part)) and found.mixing
    assert error(both, features, dense) < error(pruned, features, dense)
    assert error(both, features, dense) < 1.02 * error(levels, features, dense)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_as_many_numbers_are_learned_as_were_counted_on(architecture):
    dense, pruned, kept, features = halved(architecture)
    found = compensate(dense, pruned, kept, features, features)
    counted = numbers_of(pruned.part, shapes_of(dense.part))
    assert counted == sum(t.numel() for t in found.mixing.values())
    assert numbers_of(dense.part, shapes_of(dense.part)) == 0
    assert not compensate(dense, dense, kept_whole(dense), features, features).mixing


def kept_whole(dense):
    return {n: ModuleTensor(kept=[]) for n in dense.part.state_dict()}


def test_channels_that_can_be_had_from_the_others_are_not_missed():
    """Half of the inputs are copies of the other half, and what is made of them is a mixture of what
    is made of those: the weights go where the copies are."""
    torch.manual_seed(0)
    x = torch.randn(500, 4)
    both = torch.cat([x, x], 1)
    own = torch.randn(6, 4, 3, 3)
    weight = torch.cat([own, torch.einsum("oihw,ij->ojhw", own, torch.randn(4, 4))], 1)
    kept = ModuleTensor(kept=[Kept(axis=1, indices=[0, 1, 2, 3])])
    own = mixing_of(weight, kept, x.T @ x / 500, both.T @ x / 500)
    layer = nn.Conv2d(4, 6, 3)
    layer.weight.data = weight[:, :4].clone()
    part = nn.ModuleDict({"a": layer})
    fold_mixing(part, {f"a.{kind}": t for kind, t in own.items()})
    wanted = weight[:, :4] + weight[:, 4:]
    before = (weight[:, :4] - wanted).square().mean()
    assert (layer.weight - wanted).square().mean() < 0.01 * before


def test_a_large_square_is_a_product_of_low_rank():
    assert rank_of(torch.Size((64, 64, 3, 3))) is None  # 9 times as many numbers as the square
    assert rank_of(torch.Size((64, 64, 1, 1))) == 8  # a quarter of the layer's own numbers
    assert rank_of(torch.Size((4, 64))) == 0  # not worth it


def test_what_is_folded_is_what_was_learned():
    dense, pruned, kept, features = halved("resnet18")
    found = compensate(dense, pruned, kept, features, features)
    learned = {f"part.{n}": t for n, t in found.changed(pruned.part).items()}
    with torch.no_grad():
        seen = torch.cat(torch.func.functional_call(pruned, learned, (features,)), 1)
    folded = copy.deepcopy(pruned)
    found.fold_into(folded.part)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(folded(features.clone()), 1), seen)
    assert set(mixed(pruned.part, found.mixing)) <= {n for n, _ in pruned.part.named_parameters()}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("nowhere.matrix", (2, 2), "no inputs to mix"),
        ("bn1.matrix", (2, 2), "no inputs to mix"),
        ("a.matrix", (3, 3), "expected \\[4, 4\\]"),
        ("a.left", (4, 2), "expected matrix, or left and right"),
        ("a.other", (4, 4), "expected matrix, or left and right"),
    ],
)
def test_a_mixing_that_does_not_fit_is_refused(name, shape, message):
    part = nn.ModuleDict({"a": nn.Linear(4, 3), "bn1": nn.BatchNorm2d(2)})
    with pytest.raises(ValueError, match=message):
        fold_mixing(part, {name: torch.zeros(shape)})


def test_tensors_of_an_adapter_are_told_apart():
    tensors = {
        "weight": torch.zeros(1),
        "mixing.a.left": torch.ones(2),
        "modulation.b.scale": torch.ones(3),
    }
    found = Compensation.taken_from(dict(tensors))
    assert set(found.mixing) == {"a.left"} and set(found.modulation) == {"b.scale"}
    assert found.tensors.keys() == tensors.keys() - {"weight"}
