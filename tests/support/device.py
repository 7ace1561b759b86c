"""A GPU that is not there and computes all the same.

Its tensors hold their numbers in the processor's memory and say that they are on a GPU: they refuse
to meet tensors of the processor, to become arrays, and, as on some devices, to be of float64.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)


class Elsewhere(torch.Tensor):
    """A tensor on the pretended GPU; ``held`` has its numbers.

    To PyTorch's own machinery, which would look for a GPU to work on, it is the processor's.
    """

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held):
        self.held = held.detach()

    def __repr__(self):
        return f"Elsewhere({self.held})"

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and isinstance(args[1], Elsewhere):  # x.to(other)
            args = (args[0], GPU, args[1].dtype, *args[2:])
            if isinstance(args[0], Elsewhere):
                args = (args[0], *args[2:])
        return super().__torch_function__(func, types, args, kwargs)

    def cpu(self):
        return self.to("cpu")

    def to(self, *args, **kwargs):
        told = [a for a in (*args, kwargs.get("device")) if isinstance(a, (str, torch.device))]
        if told and torch.device(told[0]).type == "cpu":
            found = _Home.apply(self)
            dtypes = [a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)]
            return found.to(*dtypes) if dtypes else found
        return super().to(*args, **kwargs)

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *, force=False):
        raise TypeError("can't convert a tensor of the GPU to numpy: use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Home(torch.autograd.Function):
    """To the processor, and the gradient back."""

    @staticmethod
    def forward(ctx, x):
        return x.held.clone()

    @staticmethod
    def backward(ctx, grad):
        return Elsewhere(grad)


_MOVE = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEX = ("aten::index", "aten::index_put", "aten::index_put_")  # by indices of any device


def run(func, args, kwargs):
    """What ``func`` does, on the device of the tensors that it is given, or that it is told."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = [t for t in given if isinstance(t, Elsewhere)]
    indices = tree_leaves(args[1]) if func.name().split(".")[0] in _INDEX else []
    here = [t for t in given if not isinstance(t, Elsewhere) and t.ndim and not t.is_meta]
    here = [t for t in here if not any(t is index for index in indices)]
    if away and here and func not in _MOVE:
        raise RuntimeError(f"{func}: tensors on {away[0].device} and on {here[0].device}")
    there, told = bool(away), kwargs.get("device")
    if told is not None and (not away or func in _MOVE or told.type == "meta"):
        there = told.type == GPU.type
    if there and told is not None:  # with tensors from there, by PyTorch: it takes them for ours
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare = [t.held if isinstance(t, Elsewhere) else t for t in given]
    held = dict(zip(map(id, bare), given))  # in-place work gives what it was given

    def outside(t):
        if not isinstance(t, torch.Tensor):
            return t
        return held[id(t)] if id(t) in held else Elsewhere(t) if there else t

    inner = tree_map(lambda t: t.held if isinstance(t, Elsewhere) else t, (args, kwargs))
    return tree_map(outside, func(*inner[0], **inner[1]))


class _Mode(TorchDispatchMode):
    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # then CUDA is not looked for

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextmanager
def pretended_gpu():
    """Within it tensors can be made on ``cuda`` and sent there."""
    torch._C._ensureCUDADeviceGuardSet()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is seen too
    try:
        with _Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(before)
