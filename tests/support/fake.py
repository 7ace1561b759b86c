"""A GPU that is not there: tensors without data that know their device, and refuse to meet others."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = "cuda"


@contextmanager
def fake_gpu():
    """Within it all new tensors are fake, on whatever device they are said to be."""
    with pytest.MonkeyPatch.context() as patch:
        # copies of tensors stay in their mode
        patch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
        with FakeTensorMode(allow_non_fake_inputs=False):
            yield


def there(tensor):
    """A stand-in for ``tensor`` on the GPU.  To be called within :func:`fake_gpu`."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def moved(module):
    """What ``module.to(GPU)`` would be: parameters and buffers go, other tensors stay behind."""
    memo = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            memo |= {id(t): there(t) for t in own.values() if t is not None}
        for t in vars(part).values():
            if isinstance(t, torch.Tensor):
                memo[id(t)] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
    return copy.deepcopy(module, memo)
