"""network/registry.py: bare files of timm's architectures are recognised by their tensors."""

import pytest
import timm
import torch

from pnc_cli.files.architectures import Index, cache_file, loads
from pnc_cli.files.forms import common_prefix, own_names
from pnc_cli.network import registry
from pnc_cli.network.registry import (
    current_index,
    describe,
    distinguish,
    extend,
    on_meta,
    recognise,
    shapes_of,
)

EVERY = timm.list_models()


def check_found(name, **args):
    """A file of ``name`` is taken for it or for the same network, or it is among those listed."""
    shapes = shapes_of(on_meta(name, **args))
    match = current_index().find(shapes)
    assert name in match.names
    assert match.chosen in (None, *match.names)
    if match.chosen not in (None, name):
        assert distinguish([match.chosen, name]) == {match.chosen: {}, name: {}}
    if match.chosen is None:
        traits = [tuple(sorted(match.traits[n].items())) for n in match.names]
        assert len(set(traits)) > 1
    assert common_prefix(shapes) == "" and own_names("x", shapes) == {n: n for n in shapes}


@pytest.mark.parametrize("name", EVERY[::45])
def test_a_sample_of_the_registry_is_recognised_whatever_the_classes(name):
    if name in current_index().unbuilt:
        pytest.skip("timm cannot build it without memory")
    check_found(name, num_classes=37)


@pytest.mark.slow
def test_the_whole_registry_is_recognised():
    index = current_index()
    assert index.names == set(EVERY)
    for name in EVERY:
        if name not in index.unbuilt:
            check_found(name, num_classes=37)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "test_vit", "mixer_s32_224"])
def test_images_may_have_one_channel(name):
    check_found(name, num_classes=5, in_chans=1)


@pytest.mark.parametrize(
    "names, what, values",
    [
        (["efficientnet_b0", "tf_efficientnet_b0"], "conv_stem", {"Conv2d", "Conv2dSame"}),
        (
            ["vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"],
            "mlp.act",
            {"GELU", "QuickGELU"},
        ),
    ],
)
def test_what_tells_networks_with_equal_tensors_apart_is_found_by_comparing_them(
    names, what, values
):
    shapes = [shapes_of(on_meta(name, num_classes=5)) for name in names]
    assert shapes[0] == shapes[1]
    traits = distinguish(names)
    [key] = traits[names[0]]
    assert what in key and {t[key] for t in traits.values()} == values
    assert current_index().find(shapes[0]).chosen is None


def test_a_head_of_two_classifiers_is_free_in_both():
    _, free = describe("deit_tiny_distilled_patch16_224")
    assert {
        ("head.weight", 0),
        ("head.bias", 0),
        ("head_dist.weight", 0),
        ("head_dist.bias", 0),
    } <= free


def test_an_architecture_that_cannot_be_built_is_listed_with_the_reason():
    index = Index("1.0")
    extend(index, ["no_such_architecture"])
    assert index.names == {"no_such_architecture"}
    assert "no_such_architecture" in index.unbuilt["no_such_architecture"]


def test_for_another_timm_only_the_new_names_are_built_and_kept(tmp_path, monkeypatch):
    old, built = Index("0.1"), []
    extend(old, ["resnet18", "efficientnet_b0"])
    old.add("gone", {"a": (1,)}, frozenset())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "installed_index", lambda: old)
    monkeypatch.setattr(
        timm, "list_models", lambda: ["resnet18", "efficientnet_b0", "tf_efficientnet_b0"]
    )
    monkeypatch.setattr(registry, "describe", lambda name: built.append(name) or describe(name))
    index = current_index.__wrapped__()
    assert built == ["tf_efficientnet_b0"] and index.names == set(timm.list_models())
    match = index.find(shapes_of(on_meta("efficientnet_b0", num_classes=3)))
    assert match.names == ("efficientnet_b0", "tf_efficientnet_b0") and match.chosen is None
    assert loads(cache_file(index.timm).read_text()).dumps() == index.dumps()
    assert old.names == {"resnet18", "efficientnet_b0", "gone"}


def same_networks():
    """Pairs of names that the index takes for the same network."""
    index = current_index()
    for names in index.ambiguous():
        for one in names[1:]:
            if index.traits[one] == index.traits[names[0]]:
                yield names[0], one


def test_networks_that_nothing_tells_apart_give_the_same_logits_bit_for_bit():
    def size(pair):
        return sum(torch.Size(s).numel() for s in shapes_of(on_meta(pair[0])).values())

    smallest = sorted(same_networks(), key=size)[:2]
    assert smallest
    for one, other in smallest:
        shape = on_meta(one).pretrained_cfg["input_size"]
        first = timm.create_model(one, num_classes=3).eval()
        second = timm.create_model(other, num_classes=3).eval()
        second.load_state_dict(first.state_dict())
        x = torch.randn(1, *shape)
        with torch.no_grad():
            assert first(x).numpy().tobytes() == second(x).numpy().tobytes(), (one, other)


def test_the_nearest_architecture_comes_first_with_what_differs():
    name = "vit_small_patch16_224"
    shapes = shapes_of(on_meta(name, num_classes=4, img_size=64))
    match = recognise(shapes)
    assert match.names == () and match.near[0] in (name, "deit_small_patch16_224")
    assert match.difference == (
        f"tensor 'pos_embed' has [1, 17, 384], that of {match.near[0]} [1, 197, 384]"
    )
    found = shapes_of(on_meta(name, num_classes=4))
    assert recognise(found) == current_index().find(found)
