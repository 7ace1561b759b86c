"""Modulation: a scale and a shift for every channel that the module's normalisation layers put out.

A module that lost channels, or that looks through an adapter, sees features that are not quite the
source's, a little more so with each layer.  The modulation puts each channel's level and spread
right again.  It belongs to the adapter: the module's own tensors stay exact slices of the source's,
and scale and shift are folded into the normalisation layers when a branch is built, so they cost
nothing per image.

It is fitted in closed form (``compensation.py``): layer after layer, each channel's scale and shift
are the least-squares map from what the module puts out, behind its adapter and with the layers
before already put right, to what the whole part of the source puts out there.  That wins back most
of what pruning costs (examples/benchmark/NOTES.md), so a search can compare pruned modules without
any training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

PREFIX = "modulation."  # of these tensors among the adapter's
FUNCTION_AXES: dict[object, int] = {F.layer_norm: -1, F.group_norm: 1}  # of their channels


def modulated_layers(part: fx.GraphModule) -> dict[str, str]:
    """Layers that can be modulated, by the node that runs them: norms with an affine map, run once.

    A norm is a node that calls the layer, or (in layers that FX traces through) one that calls
    PyTorch's function with the layer's weight.
    """
    found = {}
    for n in part.graph.nodes:
        layer = None
        if n.op == "call_module" and "Norm" in type(part.get_submodule(str(n.target))).__name__:
            layer = str(n.target)
        elif n.op == "call_function" and n.target in FUNCTION_AXES:
            given = [str(a.target) for a in n.all_input_nodes if a.op == "get_attr"]
            weights = [name for name in given if name.endswith(".weight")]
            layer = weights[0].removesuffix(".weight") if weights else None
        if layer is not None and _is_affine(part.get_submodule(layer)):
            found[n.name] = layer
    runs = list(found.values())
    return {node: layer for node, layer in found.items() if runs.count(layer) == 1}


def identity(part: fx.GraphModule) -> dict[str, Tensor]:
    """The modulation that changes nothing: ``<layer>.scale`` and ``<layer>.shift``, (C,) each."""
    tensors = {}
    for layer in modulated_layers(part).values():
        weight = norm_of(part, layer).weight
        tensors[f"{layer}.scale"] = torch.ones_like(weight, requires_grad=False)
        tensors[f"{layer}.shift"] = torch.zeros_like(weight, requires_grad=False)
    return tensors


def modulated(part: nn.Module, modulation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of ``part`` that ``modulation`` changes, by name; differentiable in it."""
    parameters = {}
    for layer in layers_of(modulation):
        m, scale = norm_of(part, layer), modulation[f"{layer}.scale"]
        parameters[f"{layer}.weight"] = m.weight * scale
        parameters[f"{layer}.bias"] = m.bias * scale + modulation[f"{layer}.shift"]
    return parameters


@torch.no_grad()
def fold(part: fx.GraphModule, modulation: Mapping[str, Tensor]) -> None:
    """Folds ``modulation`` into the layers of ``part``, in place.

    Raises ``ValueError`` where the two do not fit.
    """
    layers = layers_of(modulation)
    expected = {name: t.shape for name, t in identity(part).items()}
    for name, t in modulation.items():
        if name not in expected:
            raise ValueError(f"the module has no channels for '{PREFIX}{name}'")
        if t.shape != expected[name]:
            raise ValueError(
                f"'{PREFIX}{name}' has shape {list(t.shape)}, expected {list(expected[name])}"
            )
    pairs = [f"{layer}.{kind}" for layer in layers for kind in ("scale", "shift")]
    if missing := [name for name in pairs if name not in modulation]:
        raise ValueError(f"'{PREFIX}{missing[0]}' is missing")
    for name, value in modulated(part, modulation).items():
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def layers_of(modulation: Iterable[str]) -> list[str]:
    """The layers that a modulation's, or a mixing's, tensors belong to, each once."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in modulation))


def norm_of(part: nn.Module, name: str) -> nn.GroupNorm:
    """The norm called ``name``, of whatever kind: all have a weight and a bias, as GroupNorm has."""
    return cast(nn.GroupNorm, part.get_submodule(name))


def _is_affine(layer: nn.Module) -> bool:
    affine = [getattr(layer, name, None) for name in ("weight", "bias")]
    return all(isinstance(p, nn.Parameter) and p.ndim == 1 for p in affine)


RIDGE = 0.05  # of the wanted variance: pulls scales towards one


def affine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) that bring rows x (n, C) nearest to rows y."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x_rest, y_rest = x - x_mean, y - y_mean
    pull = RIDGE * y_rest.square().mean(0) + 1e-12
    scale = ((x_rest * y_rest).mean(0) + pull) / (x_rest.square().mean(0) + pull)
    return scale, y_mean - scale * x_mean


def plain(layer: nn.Module, x: Tensor) -> tuple[Tensor, int] | None:
    """What a norm puts out before its activation, if it has one, and the axis of the channels."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        mean, variance = layer.running_mean, layer.running_var
        return F.batch_norm(x, mean, variance, layer.weight, layer.bias, eps=layer.eps), 1
    if type(layer).__name__.endswith("Act"):
        return None
    if isinstance(layer, nn.GroupNorm):
        return layer(x), 1
    if isinstance(layer, nn.LayerNorm):
        return layer(x), 1 if "2d" in type(layer).__name__ else -1
    return None


def rows_of(x: Tensor, axis: int, most: int) -> Tensor:
    """Rows (n, C) of ``x`` along ``axis``, ``most`` or a few more, evenly drawn, so that all images
    have as many."""
    rows = x.movedim(axis, -1).flatten(0, -2)
    return rows[:: max(1, len(rows) // most)]
