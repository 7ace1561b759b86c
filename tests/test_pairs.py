"""Every kind of network into every other, with every promise checked (examples/coverage/pair.py)."""

import pytest

from examples.coverage.pair import run_pair
from examples.coverage.small import Small, save_network

NETWORKS = {
    "resnet": Small("test_resnet", 32),
    "vit with registers": Small("test_vit4", 64),
    "deit distilled": Small("deit_tiny_distilled_patch16_224", 32, {"depth": 3, "embed_dim": 48}),
    "levit": Small(
        "levit_128s", 64, {"embed_dim": [32, 48, 64], "key_dim": 8, "num_heads": [2, 3, 4]}
    ),
    "swin": Small("swin_tiny_patch4_window7_224", 56, {"embed_dim": 24, "depths": [1, 1, 2, 1]}),
    "convnext": Small("test_convnext", 32),
    "efficientnet": Small("test_efficientnet", 32),
    "mambaout": Small("test_mambaout", 32),
    "maxvit": Small("test_maxvit", 64),
    "mixer": Small("mixer_s32_224", 64, {"mlp_ratio": [0.5, 0.5]}),
    "densenet": Small("densenet121", 32, {"growth_rate": 8, "block_config": [2, 2, 2, 2]}),
    "efficientvim": Small("efficientvim_m1", 64),
}
FEW = [
    ("swin", "resnet"),
    ("densenet", "vit with registers"),
    ("resnet", "deit distilled"),
    ("mambaout", "mixer"),
    ("deit distilled", "efficientvim"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Each network's checkpoint, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("networks"), {}

    def checkpoint(kind):
        if kind not in made:
            path = folder / f"{kind.replace(' ', '-')}.safetensors"
            made[kind] = save_network(NETWORKS[kind], path, seed=len(made))
        return made[kind]

    return checkpoint


@pytest.mark.parametrize("source, target", FEW, ids=str)
def test_a_clone_from_one_kind_of_network_into_another_keeps_every_promise(
    checkpoints, tmp_path, source, target
):
    made = run_pair(checkpoints(source), checkpoints(target), tmp_path)
    assert made.taps > 3 and made.tap != "input" and made.cut != "input"


@pytest.mark.slow
@pytest.mark.parametrize("target", NETWORKS)
@pytest.mark.parametrize("source", NETWORKS)
def test_the_matrix_of_all_kinds(checkpoints, tmp_path, source, target):
    share = 0.6 if source == target else 1.0  # pruning once for each kind
    made = run_pair(checkpoints(source), checkpoints(target), tmp_path, share=share)
    assert 0 <= made.pruned < 1
