"""branch/modulation.py: channels' levels and spreads put right."""

import copy

import pytest
import torch
from support.modules import whole
from support.networks import RESNET

from pnc_cli.branch.compensation import compensate
from pnc_cli.branch.modulation import fold, identity, layers_of, modulated
from pnc_cli.channels.groups import weight_cells
from pnc_cli.channels.prune import prune, rank_channels, select

NETWORKS = {"resnet18": RESNET, "test_efficientnet": {}, "test_convnext": {}, "test_vit": {}}


def answers(module, features):
    with torch.no_grad():
        return torch.cat(module(features.clone()), 1)


def error(module, features, expected):
    return (answers(module, features) - expected).square().mean().item()


@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_identity_changes_nothing(architecture):
    _, module, _, features = whole(architecture, **NETWORKS[architecture])
    folded = copy.deepcopy(module)
    modulation = identity(module.part)
    assert modulation
    fold(folded.part, modulation)
    assert torch.equal(answers(folded, features), answers(module, features))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_scales_and_shifts_that_were_lost_are_found_again(architecture):
    _, module, slices, features = whole(architecture, **NETWORKS[architecture])
    torch.manual_seed(0)
    lost = {n: t + 0.2 * torch.rand_like(t) for n, t in identity(module.part).items()}
    damaged, mended = copy.deepcopy(module), copy.deepcopy(module)
    fold(damaged.part, lost)
    fold(mended.part, lost)
    fold(mended.part, compensate(module, damaged, slices, features, features).modulation)
    expected = answers(module, features)
    assert error(mended, features, expected) < 1e-3 * error(damaged, features, expected)


@pytest.mark.parametrize("architecture", ["resnet18", "test_efficientnet"])
def test_a_pruned_module_comes_nearer_to_the_whole_one(architecture):
    _, module, slices, features = whole(architecture, **NETWORKS[architecture])
    chosen = select(
        module, rank_channels(module, features), 0.4, weight_cells(module.part, features[:1])
    )
    pruned, kept = prune(module, slices, chosen, features[:2])
    mended = copy.deepcopy(pruned)
    compensate(module, pruned, kept, features, features).fold_into(mended.part)
    expected = answers(module, features)
    assert error(mended, features, expected) < 0.9 * error(pruned, features, expected)


def test_what_is_folded_is_what_was_learned():
    """The differentiable parameters of refining are those that loading folds in."""
    _, module, _, features = whole("resnet18", **RESNET)
    modulation = {n: t + 0.1 for n, t in identity(module.part).items()}
    learned = {f"part.{n}": t for n, t in modulated(module.part, modulation).items()}
    with torch.no_grad():
        seen = torch.cat(torch.func.functional_call(module, learned, (features,)), 1)
    fold(module.part, modulation)
    assert torch.equal(answers(module, features), seen)
    assert len(layers_of(modulation)) == len(modulation) // 2


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: m.update({"bn1.scale": torch.ones(1)}),
            r"'modulation.bn1.scale' has shape \[1\], expected \[64\]",
        ),
        (lambda m: m.pop("bn1.shift"), "'modulation.bn1.shift' is missing"),
        (
            lambda m: m.update({"conv1.scale": torch.ones(8)}),
            "no channels for 'modulation.conv1.scale'",
        ),
    ],
)
def test_a_modulation_that_does_not_fit_is_refused(change, message):
    _, module, _, _ = whole("resnet18", **RESNET)
    modulation = identity(module.part)
    change(modulation)
    with pytest.raises(ValueError, match=message):
        fold(module.part, modulation)
