"""channels/groups.py: whatever is removed, the module is the masked dense one, and smaller."""

import numpy as np
import pytest
import torch
from support.networks import RESNET, make_network
from support.removable import prunable_share, removable

from pnc_cli.channels.groups import prunable_groups
from pnc_cli.channels.prune import masked, prune
from pnc_cli.network.graph import trace
from pnc_cli.network.head import classifier_names, find_head
from pnc_cli.network.part import module_after

SWIN = {"img_size": 56, "embed_dim": 24, "depths": (1, 2, 1, 1)}
DENSENET = {"block_config": (2, 2, 2, 2)}
DINO = {"img_size": 32, "depth": 1, "embed_dim": 64, "num_heads": 2}
# architecture, arguments, and an axis of a tensor that must be removable
PATTERNS = {
    "heads of a fused qkv": ("test_vit", {}, ("blocks.1.attn.qkv.weight", 0)),
    "heads after a norm of each head": ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "qk_norm": True},
                                        ("blocks.1.attn.proj.weight", 1)),
    "heads with rotated queries": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2}, ("blocks.1.attn.qkv.weight", 0)),
    "gated MLP, two layers": ("vit_small_plus_patch16_dinov3", DINO, ("blocks.0.mlp.fc1_g.weight", 0)),
    "gated MLP, halves of one": ("mambaout_femto", {"depths": (1, 1, 1, 1)}, ("stages.2.blocks.0.fc1.weight", 0)),
    "windows, a bias for each head": ("swin_tiny_patch4_window7_224", SWIN,
                                      ("layers.1.blocks.1.attn.relative_position_bias_table", 1)),
    "heads that talk": ("cait_xxs24_224", {"img_size": 32, "depth": 2}, ("blocks.1.attn.proj_w.weight", 0)),
    "heads with attention over channels": ("xcit_nano_12_p8_224", {"img_size": 32, "depth": 2}, ("blocks.1.attn.temperature", 0)),
    "groups of a convolution": ("regnetx_002", {}, ("s4.b2.conv2.conv.weight", 0)),
    "depthwise convolution": ("test_efficientnet", {}, ("blocks.3.0.conv_dw.weight", 0)),
    "squeeze and excite": ("mobilenetv3_small_050", {}, ("blocks.2.0.se.conv_expand.weight", 0)),
    "dense concatenation": ("densenet121", DENSENET, ("features.denseblock2.denselayer2.conv1.weight", 1)),
    "one concatenation of all": ("ese_vovnet19b_slim_dw", {}, ("stages.1.blocks.0.conv_concat.conv.weight", 1)),
    "tokens mixed, then channels": ("resmlp_12_224", {"img_size": 32}, ("blocks.1.mlp_channels.fc1.weight", 0)),
    "residual stream under batch norm": ("resnet18", RESNET, ("layer2.0.downsample.0.weight", 0)),
}  # fmt: skip


def module_of(architecture, at=0.0, size=None, **model_args):
    """The part of a network after about the share ``at`` of its MACs, and how it was sliced."""
    size = size or model_args.get("img_size", 32)
    model = make_network(architecture, 5, size=size, **model_args)
    with torch.no_grad():
        for p in model.parameters():  # gates and scales that begin as nothing
            p.add_(0.05 * torch.randn_like(p))
    tr = trace(model, (3, size, size))
    cut = min(tr.positions, key=lambda p: abs(p.depth - at))
    module, slices = module_after(tr, find_head(tr, classifier_names(model)), cut, [1, 3])
    return model, tr, cut, module, slices


def check_random_removal(model, cut, module, slices, groups):
    """Removes a random share of every group; in double precision nothing is left to tolerance."""
    rng = np.random.default_rng(0)
    chosen = []
    for g in groups:
        stay = rng.random(g.size) < 0.6
        stay[rng.integers(g.size)] = True
        chosen.append((g, stay))
    features = torch.randn(3, *cut.layout.shape, dtype=torch.double)
    source = {n: t.double() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    module = module.double()
    pruned, kept = prune(module, slices, chosen, features[:2])
    with torch.no_grad(), masked(module.part, chosen):
        expected = torch.cat(module(features.clone()), 1)
    with torch.no_grad():
        dense = torch.cat(module(features.clone()), 1)
        found = torch.cat(pruned(features.clone()), 1)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * scale)
    assert not torch.allclose(found, dense, rtol=0, atol=1e-8 * scale)  # something did go
    dense_state = dict(module.part.state_dict())
    gone = 0
    for name, tensor in pruned.part.state_dict().items():
        expected = source[name].numpy()
        for k in kept[name].kept:
            expected = np.take(expected, k.indices, axis=k.axis)
        assert np.array_equal(expected, tensor.numpy()), name
        gone += dense_state[name].numel() - tensor.numel()
    announced = {}
    for group, stay in chosen:
        for (tensor, axis), indices in group.sites.items():
            shape = dense_state[tensor].shape
            announced.setdefault(tensor, [np.ones(n) for n in shape])[axis][indices[~stay]] = 0
    left = {n: int(np.prod([axis.sum() for axis in axes])) for n, axes in announced.items()}
    assert gone == sum(dense_state[n].numel() - count for n, count in left.items())
    assert 0 < gone <= removable(groups, dense_state)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_random_share_of_every_group_goes_exactly(pattern):
    architecture, model_args, site = PATTERNS[pattern]
    model, _, cut, module, slices = module_of(architecture, **model_args)
    groups = prunable_groups(module.part, torch.zeros(2, *cut.layout.shape))
    assert any(site in g.sites for g in groups)
    check_random_removal(model, cut, module, slices, groups)


# What stays whole after the middle cut, and why: as much of a network as is said can go.
STAYS = {
    "convit_tiny": (0.75, "gated positional attention is one leaf of timm's"),
    "mobilevit_xxs": (0.03, "its blocks are leaves of timm's"),
    "tiny_vit_5m_224": (0.03, "its blocks are leaves of timm's"),
    "nf_regnet_b0": (0.0, "weights are standardised over all that they read"),
    "gmlp_ti16_224": (0.0, "a layer norm over the gate's half"),
    "test_convnext2": (0.7, "the residual stream is under layer norm"),
    "swin_tiny_patch4_window7_224": (0.9, "the residual stream is under layer norm"),
    "vgg11": (0.99, ""),
    "levit_128s": (0.99, ""),
    "hrnet_w18_small": (0.99, ""),
    "dla46x_c": (0.95, ""),
    "cs3darknet_focus_s": (0.99, ""),
    "xcit_nano_12_p8_224": (0.97, ""),
    "gcvit_xxtiny": (0.7, "global queries mix their channels with their cells"),
    "mobileone_s1": (
        0.0,
        "one residual stream from the cut to the pre-logits, which the join reads",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", STAYS)
def test_as_much_as_is_said_can_go_after_the_middle_cut(architecture):
    size = 224 if architecture != "test_convnext2" else 64
    model, tr, cut, module, slices = module_of(architecture, at=0.5, size=size)
    least, _ = STAYS[architecture]
    assert least <= prunable_share(tr, cut) <= least + 0.12
    groups = prunable_groups(module.part, torch.zeros(2, *cut.layout.shape))
    if groups:
        check_random_removal(model, cut, module, slices, groups)
