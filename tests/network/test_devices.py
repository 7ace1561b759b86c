"""Networks, parts of them and what is fitted stay on one device: under a GPU that is not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fake import GPU, fake_gpu, moved, there
from support.networks import make_network, save_checkpoint

import pnc_cli
from pnc_cli.branch import join
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
