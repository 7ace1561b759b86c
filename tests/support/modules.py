"""Copied parts of small networks, for tests that prune or modulate them."""

import torch

from pnc_cli.network.graph import trace
from pnc_cli.network.head import classifier_names, find_head
from pnc_cli.network.part import module_after

from .networks import make_network

SIZE = (3, 32, 32)


def whole(architecture, classes=(1, 3), **model_args):
    """The part after the image of a network, with how its tensors are sliced, and some features."""
    model = make_network(architecture, 5, **model_args)
    tr = trace(model, SIZE)
    head = find_head(tr, classifier_names(model))
    module, slices = module_after(tr, head, tr.positions[0], list(classes))
    features = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(0))
    return model, module, slices, features
