"""How much of a network stands in channels that can be removed."""

import numpy as np
import torch

from pnc_cli.channels.groups import prunable_groups
from pnc_cli.network.head import classifier_names, find_head
from pnc_cli.network.part import _part


def prunable_share(tr, cut):
    """The share of the parameters after ``cut`` that stand in removable channels, 0 to 1."""
    part = _part(tr, cut, find_head(tr, classifier_names(tr.root)))
    parameters = dict(part.named_parameters())
    groups = prunable_groups(part, torch.zeros(2, *cut.layout.shape))
    return removable(groups, parameters) / max(sum(p.numel() for p in parameters.values()), 1)


def removable(groups, tensors):
    """How many numbers of ``tensors`` stand in channels that can be removed."""
    stays = {n: [np.ones(size) for size in t.shape] for n, t in tensors.items()}
    for group in groups:
        for (tensor, axis), indices in group.sites.items():
            if tensor in stays:
                stays[tensor][axis][indices] = 0
    return sum(
        t.numel() - int(np.prod([axis.sum() for axis in stays[n]])) for n, t in tensors.items()
    )
