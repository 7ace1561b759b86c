"""Networks, parts of them and what is fitted stay on one device: under a GPU that is not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.device import Elsewhere, pretended_gpu
from support.fake import GPU, fake_gpu, moved, there
from support.networks import make_network, save_checkpoint

import pnc_cli
from pnc_cli.branch import join
from pnc_cli.branch.adapter import Regression
from pnc_cli.branch.patched import answer
from pnc_cli.channels import contributions, prune
from pnc_cli.channels.groups import prunable_groups
from pnc_cli.channels.localised import localised_features
from pnc_cli.data import Images
from pnc_cli.manifest import Kept, ModuleTensor
from pnc_cli.network.features import glancing, prepared, watching
from pnc_cli.network.graph import trace
from pnc_cli.network.head import find_head
from pnc_cli.network.load import load_network
from pnc_cli.network.part import module_after, slice_tensor

NETWORKS = {
    "test_resnet": {},
    "test_vit": {"img_size": 64},
    "test_convnext": {},
    "test_efficientnet": {},
}


def test_the_fake_gpu_refuses_tensors_of_the_processor():
    with fake_gpu():
        with pytest.raises(RuntimeError, match="same device"):
            torch.zeros(2, device=GPU).index_select(0, torch.tensor([0]))


def test_a_patched_model_answers_on_its_device(made):
    model = pnc_cli.load(made.patched)
    with fake_gpu():
        there_too = moved(model)
        images = Images([torch.zeros(4, 3, 32, 32, dtype=torch.uint8)], ["red"] * 4)
        assert there_too(there(torch.zeros(2, 3, 32, 32))).device.type == GPU
        logits, labels = answer(there_too, replace(images, labels=[model.label_names[0]] * 4))
        assert logits.shape == (4, 5) and logits.device.type == labels.device.type == "cpu"


@pytest.fixture(scope="module", params=NETWORKS, ids=str)
def network(request, tmp_path_factory):
    name, args = request.param, NETWORKS[request.param]
    path = tmp_path_factory.mktemp(name) / "net.safetensors"
    model = make_network(name, 4, size=64, **args)
    save_checkpoint(path, model, name, "abcd", size=64, **args)
    return load_network(path)


def test_features_and_modules_are_where_the_network_is(network):
    traced = trace(network.model, network.input_size)
    at = traced.positions[len(traced.positions) // 2]
    with fake_gpu():
        gone = replace(network, model=moved(network.model))
        images = torch.zeros(6, *network.input_size, dtype=torch.uint8)
        x = prepared(gone, images)
        with watching(gone, [at.name]) as look:
            seen = look(x)
        with glancing(gone, [at.name]) as glance:
            glimpsed = glance(x)
        near = localised_features(gone, images, at, seed=0)
        answers = seen.answers
        found = [answers.pre, answers.logits, seen.features[at.name], glimpsed[at.name], near]
        assert {t.device.type for t in found} == {GPU}
        there_too = replace(traced, root=gone.model)
        module, _ = module_after(there_too, find_head(traced, network.classifier), at, [2, 0])
        out = module(near)
        assert {t.device.type for t in [*out, *module.state_dict().values()]} == {GPU}


def test_channels_are_weighed_where_the_module_is(network):
    traced = trace(network.model, network.input_size)
    at = traced.positions[len(traced.positions) // 2]
    module, _ = module_after(traced, find_head(traced, network.classifier), at, [2, 0])
    groups = prunable_groups(module.part, torch.zeros(2, *at.layout.shape))
    assert groups
    with fake_gpu():
        gone, features = moved(module), there(torch.zeros(6, *at.layout.shape))
        readers = sorted({r for g in groups for r in g.readers})
        grams = contributions.moments_of(gone, features, groups)
        assert {g.device.type for g in grams.values()} == {"cpu"}
        answers, inputs = contributions._watched(gone, readers, features)
        assert answers.device.type == GPU  # back from there needs a real one
        given = {r: inputs[r][0].flatten(1)[:, : g.shape[0]] for r, g in grams.items()}
        for group in groups:
            stay = np.ones(group.size, dtype=bool)
            stay[0] = False
            assert contributions._of_group(given, group).device.type == GPU
            with prune.masked(gone.part, [(group, stay)]):
                assert gone(features)[1].device.type == GPU


def test_slices_are_where_the_tensor_is():
    how = ModuleTensor(kept=[Kept(axis=0, indices=[2, 0]), Kept(axis=1, indices=[1])])
    with fake_gpu():
        assert slice_tensor(there(torch.zeros(3, 4)), how).device.type == GPU


def test_joins_answer_on_their_device():
    with fake_gpu():
        pre, z_t, z_b = (there(torch.zeros(8, n)) for n in (6, 3, 2))
        for kind in (join.Mixture(6, 6, 3, 2), join.GaussianGate(12, 3, 2), join.OneSidedGate(6)):
            assert moved(kind)(pre, pre, z_t, z_b).device.type == GPU


# All of it, with numbers, on a device that refuses other devices' tensors and float64 ---------------


def test_the_pretended_gpu_computes_and_refuses():
    with pretended_gpu():
        x, y = torch.ones(2, 3, device=GPU), torch.arange(6.0).view(3, 2)
        assert (x @ y.to(GPU)).cpu().tolist() == [[6, 9], [6, 9]] and x.sum().item() == 6
        x[0] += 1
        assert x.add_(1) is x and x.tolist() == [[3, 3, 3], [2, 2, 2]]
        assert torch.tensor([1.0], device=GPU).device.type == GPU
        for mixed in (lambda: x @ y, lambda: x.index_select(0, torch.tensor([0]))):
            with pytest.raises(RuntimeError, match="tensors on cuda:0 and on cpu"):
                mixed()
        with pytest.raises(TypeError, match="no float64"):
            x.double()
        with pytest.raises(TypeError, match="cannot|can't convert"):
            np.asarray(x)
        layer = torch.nn.Conv2d(3, 4, 1).to(GPU)
        layer(torch.ones(1, 3, 2, 2, device=GPU)).sum().backward()
        assert isinstance(layer.weight, torch.nn.Parameter)
        assert isinstance(layer.weight.grad, Elsewhere)


WAYS = {
    "a share, refined": {"tap": "layer1", "cut": "layer2", "share": 0.5, "epochs": 1},
    "a coarser map": {"tap": "layer1", "cut": "layer2", "resolution": 0.5, "epochs": 0},
    "from the image": {"tap": "input", "cut": "input", "share": 1.0, "epochs": 0},
    "without a copied part": {"head_only": True},
    "without originals": {"tap": "layer1", "cut": "layer2", "epochs": 0, "no_originals": True},
}


@pytest.mark.parametrize("how", WAYS)
def test_a_clone_is_made_and_measured_there_as_here(pair, tmp_path, how):
    few = {"data": pair.train, "limit_per_class": 6, **WAYS[how]}
    here = pnc_cli.clone(pair.source, pair.target, **few)
    with pretended_gpu():
        path = tmp_path / "c.safetensors"
        made = pnc_cli.clone(pair.source, pair.target, output=path, device=GPU, **few)
        model = pnc_cli.load(pair.target, path, device=GPU)
        assert {t.device.type for t in model.state_dict().values()} == {GPU}
        assert model(torch.zeros(2, 3, 32, 32, device=GPU)).device.type == GPU
        kept = {"data": pair.test, "limit_per_class": 4}
        found = pnc_cli.evaluate(pair.target, clone=path, device=GPU, tta="mirror", **kept)
    assert (made.tap, made.cut, made.cost) == (here.tap, here.cut, here.cost)
    again = pnc_cli.evaluate(pair.target, clone=path, tta="mirror", **kept)
    assert found.joint_accuracy == pytest.approx(again.joint_accuracy, abs=0.05)
    assert found.locality == pytest.approx(again.locality, abs=0.1)


@pytest.mark.parametrize("data", [True, False], ids=["images", "generated images"])
def test_a_search_ranks_there_as_here(pair, data):
    some = {"tap": ["layer1", "layer2"], "cut": ["layer2", "layer3"], "share": [1.0, 0.5]}
    some |= {"data": pair.train, "limit_per_class": 6} if data else {}
    here = pnc_cli.search(pair.source, pair.target, **some)
    with pretended_gpu():
        plan = pnc_cli.search(pair.source, pair.target, device=GPU, **some)
    assert {c.place_in_words for c in plan.candidates} == {
        c.place_in_words for c in here.candidates
    }


@pytest.mark.slow
def test_a_search_of_everything_and_its_clone_are_made_there(pair, tmp_path):
    few = {"data": pair.train, "limit_per_class": 6, "device": GPU}
    with pretended_gpu():
        plan = pnc_cli.search(pair.source, pair.target, **few)
        path = tmp_path / "c.safetensors"
        pnc_cli.clone(pair.source, pair.target, plan=plan, output=path, **few)
        model = pnc_cli.load(pair.target, path, device=GPU)
        assert pnc_cli.evaluate(model, data=pair.test, limit_per_class=2).locality is not None


def test_sums_of_parts_are_added_there():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randn(40, 2)

    def merged(device):
        parts = []
        for rows in (slice(0, 15), slice(15, 40)):
            parts.append(Regression(3, 2, device))
            parts[-1].add(x[rows].to(device), y[rows].to(device))
        parts[0].merge(parts[1])
        return parts[0]

    with pretended_gpu():
        found = merged(GPU)
        assert found.xx.device.type == GPU
        torch.testing.assert_close(found.xy.cpu(), merged("cpu").xy)
