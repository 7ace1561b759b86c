"""Small networks of many kinds with their traces, each made once."""

from pnc_cli.network.graph import trace

from .networks import RESNET, make_network

SIZE = (3, 32, 32)
ARCHITECTURES = {
    "resnet18": RESNET, "test_resnet": {}, "test_vit": {}, "test_vit3": {}, "test_vit_relpos": {},
    "test_convnext": {}, "test_efficientnet": {}, "test_mambaout": {}, "test_nfnet": {}, "test_maxvit": {},
    "test_coatnet": {}, "test_byobnet": {}, "mobilenetv3_small_050": {},
}  # fmt: skip
_TRACES = {}


def traced(architecture, size=SIZE, **model_args):
    """A network and its trace, made once."""
    if architecture not in _TRACES:
        model = make_network(architecture, 5, size=size[1], **model_args)
        _TRACES[architecture] = model, trace(model, size)
    return _TRACES[architecture]


POSITIONS = {
    "resnet18": ["input", "conv1", "bn1", "act1", "maxpool", "layer1.0", "layer1", "layer2.0", "layer2",
                 "layer3.0", "layer3", "layer4.0", "layer4", "global_pool.pool", "global_pool", "fc"],
    "test_vit": ["input", "patch_embed.proj", "patch_embed", "pos_drop", "patch_drop", "norm_pre",
                 *(f"blocks.{i}" for i in range(5)), "blocks", "norm", "fc_norm", "head_drop", "head"],
}  # fmt: skip
