"""channels/prune.py: channels that go together, and which of them go."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.modules import SIZE, whole
from support.networks import RESNET, make_network

from examples.benchmark import pruning
from pnc_cli.branch.patched import rebuild_module
from pnc_cli.channels.groups import prunable_groups, weight_cells
from pnc_cli.channels.localised import Neighbours
from pnc_cli.channels.prune import (
    FEWEST,
    MASKED,
    SAMPLES,
    Work,
    greedy_order,
    masked,
    prune,
    rank_channels,
    rank_groups,
    select,
)
from pnc_cli.manifest import ModuleTensor

NETWORKS = {
    "resnet18": RESNET,
    "test_convnext": {},
    "test_vit": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "mixer_s16_224": {"img_size": 32},
}


def numbers(module):
    return sum(t.numel() for t in module.part.state_dict().values())


@pytest.mark.parametrize("architecture", NETWORKS)
def test_every_group_removed_equals_the_module_with_the_group_masked(architecture):
    _, module, slices, features = whole(architecture, **NETWORKS[architecture])
    groups = prunable_groups(module.part, features[:2])
    assert groups
    rng = np.random.default_rng(0)
    for group in groups[:: max(1, len(groups) // 8)]:
        stay = rng.random(group.size) < 0.5
        stay[0], stay[-1] = True, False
        pruned, _ = prune(module, slices, [(group, stay)], features[:2])
        assert numbers(pruned) < numbers(module), group.name  # it was not left whole
        with torch.no_grad(), masked(module.part, [(group, stay)]):
            expected = torch.cat(module(features[:2].clone()), 1)
        with torch.no_grad():
            found = torch.cat(pruned(features[:2].clone()), 1)
        torch.testing.assert_close(
            found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()
        )


@pytest.mark.parametrize("architecture", ["resnet18", "test_efficientnet"])
def test_a_pruned_tensor_is_the_source_slice_that_its_indices_say(architecture):
    model, module, slices, features = whole(architecture, **NETWORKS[architecture])
    ranked = rank_channels(module, features)
    chosen = select(module, ranked, 0.5, weight_cells(module.part, features[:1]))
    pruned, kept = prune(module, slices, chosen, features[:2])
    source = model.state_dict()
    assert any(len(k.kept) == 2 for k in kept.values())  # rows and columns of the same tensor
    for name, tensor in pruned.part.state_dict().items():
        expected = source[name].numpy()
        for k in kept[name].kept:
            expected = np.take(expected, k.indices, axis=k.axis)
        assert expected.tobytes() == tensor.numpy().tobytes(), name


def test_the_share_asked_for_is_about_the_share_kept():
    _, module, _, features = whole("resnet18", **RESNET)
    cells = weight_cells(module.part, features[:1])
    ranked = rank_channels(module, features)
    kept = [
        sum(stay.sum() for _, stay in select(module, ranked, s, cells)) for s in (1.0, 0.7, 0.4)
    ]
    assert kept[0] == sum(r.group.size for r in ranked)
    assert kept[0] > kept[1] > kept[2]


def test_one_class_alone_says_which_layers_matter_as_two_do():
    matters = []
    for classes in ((1,), (1, 3)):
        _, module, _, features = whole("resnet18", classes=classes, **RESNET)
        matters.append([r.sensitivity > 0 for r in rank_channels(module, features)])
    assert any(matters[0]) and matters[0] == matters[1]


def test_channels_that_nothing_reads_loudly_go_first():
    _, module, _, features = whole("resnet18", **RESNET)
    conv = module.part.get_submodule("layer2.1.conv2")
    with torch.no_grad():
        conv.weight[:, 4:] *= 1e-3  # the second half of layer2.1's inner channels is nearly silent
    ranked = {r.group.name: r for r in rank_channels(module, features)}
    order = next(r.order for n, r in ranked.items() if n.startswith("layer2.1.bn1"))
    assert set(order[:4].tolist()) == {4, 5, 6, 7}


def test_greedy_removal_takes_channels_that_cancel_together():
    contributions = np.array([[3.0, 0], [-3.0, 0], [0, 1.0], [0, 2.0]])  # the first two cancel
    order, missing = greedy_order(contributions @ contributions.T)
    assert order.tolist() in ([2, 3, 0, 1], [2, 3, 1, 0])
    # 1, then |(0, 3)|^2, then 9 more, and nothing for the one that cancels it: it never falls
    assert missing.tolist() == pytest.approx([0, 1, 9, 18, 18])


def test_heads_and_hidden_units_of_a_transformer_go_and_its_residual_stream_stays():
    _, module, _, features = whole("test_vit", classes=(0, 1))
    groups = prunable_groups(module.part, features[:2])
    sites = {site for g in groups for site in g.sites}
    assert {("blocks.0.attn.qkv.weight", 0), ("blocks.0.attn.proj.weight", 1)} <= sites
    assert {("blocks.0.mlp.fc1.weight", 0), ("blocks.0.mlp.fc2.weight", 1)} <= sites
    assert not any("norm" in t or "embed" in t for t, _ in sites)
    assert ("blocks.0.attn.proj.weight", 0) not in sites


def test_a_network_of_shapes_that_depend_on_its_heads_is_rebuilt_from_the_kept_indices():
    model, module, slices, features = whole("test_vit", classes=(0, 1))
    groups = prunable_groups(module.part, features[:2])
    chosen = [(g, np.arange(g.size) % 2 == 1) for g in groups]
    pruned, kept = prune(module, slices, chosen, features[:2])
    assert numbers(pruned) < 0.75 * numbers(module)
    source = SimpleNamespace(
        preprocessing=SimpleNamespace(input_size=SIZE), architecture="test_vit"
    )
    cut = SimpleNamespace(position="input", shape=SIZE)
    manifest = SimpleNamespace(name="c", source=source, module=kept, columns=[0, 1])
    network, tensors = make_network("test_vit", 5, seed=9), pruned.part.state_dict()
    again = rebuild_module(network, manifest, cut, tensors)
    for found, expected in zip(again(features), pruned(features)):
        assert torch.equal(found, expected)


def test_the_classifiers_rows_and_the_pre_logits_are_never_removed():
    _, module, slices, features = whole("resnet18", **RESNET)
    groups = prunable_groups(module.part, features[:2])
    assert not any(t.startswith("fc.") for g in groups for t, _ in g.sites)
    assert slices["fc.weight"] == ModuleTensor(kept=slices["fc.bias"].kept)
    assert slices["fc.weight"].kept[0].indices == [1, 3]


def test_rivals_are_pruned_to_the_same_size():
    _, module, _, features = whole("resnet18", **RESNET)
    ranked = rank_channels(module, features)
    groups = [r.group for r in ranked]
    weight = [pruning.magnitude(module, g) for g in groups]
    left = pruning.size_of(module, {})
    ours = select(module, ranked, 0.5, {})
    for chosen in (
        ours,
        pruning.over_all(groups, weight, 0.5, left),
        pruning.of_each(groups, weight, 0.5, left),
    ):
        assert 0.45 < left(chosen) <= 0.5
    for (_, mine), (_, theirs) in zip(ours, pruning.as_many(weight, ours)):
        assert mine.sum() == theirs.sum()


def test_a_neighbour_moves_and_masks_the_same_things_at_any_size():
    small = torch.zeros(8, 1, 32, 32)
    small[:, :, 8:16, 8:24] = 1.0
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    drawn = Neighbours.drawn(8, torch.Generator().manual_seed(1))
    of_small, of_large = drawn(small), drawn(large)
    again = of_small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (again != of_large).double().mean() < 0.08  # but for a shift of half a small pixel
    assert not torch.equal(of_small, small)


def test_neighbours_of_some_are_those_of_all():
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = Neighbours.drawn(8, torch.Generator().manual_seed(1))
    index = torch.tensor([5, 0, 3])
    assert torch.equal(drawn.of(index)(x[index]), drawn(x)[index])
    assert torch.equal(drawn(x), drawn(x))


def test_how_many_samples_a_ranking_looks_at_follows_from_its_work():
    """Some whatever it is, and never more than say something."""
    assert Work().samples() == SAMPLES and Work().masked(10) == MASKED
    little = Work(runs=1)
    assert little.samples() == little.looked_at() == FEWEST
    assert 0 < little.masked(10) <= FEWEST
    more = [Work(runs=r) for r in (100, 1_000, 10_000, 100_000)]
    for amounts in zip(*((w.samples(), w.looked_at(), w.masked(20)) for w in more)):
        assert list(amounts) == sorted(amounts)


def test_a_ranking_is_the_same_however_many_samples_run_together():
    _, module, _, features = whole("resnet18", **RESNET)
    groups = prunable_groups(module.part, features[:2])
    one, other = (
        rank_groups(module, features, groups, work)
        for work in (Work(), Work(together=3, with_gradients=2))
    )
    for mine, theirs in zip(one, other):
        np.testing.assert_allclose(mine.missing, theirs.missing, rtol=1e-3, atol=1e-5)
        assert mine.sensitivity == pytest.approx(theirs.sensitivity, rel=1e-2, abs=1e-6)
