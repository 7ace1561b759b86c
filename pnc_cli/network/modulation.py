"""Modulation: a scale and a shift for every channel that the module's normalisation layers put out.

A module that lost channels, or that looks through an adapter, sees features that are not quite the
source's, a little more so with each layer.  The modulation puts each channel's level and spread
right again.  It belongs to the adapter: the module's own tensors stay exact slices of the source's,
and scale and shift are folded into the normalisation layers when a branch is built, so they cost
nothing per image.  :mod:`pnc_cli.method.modulation` fits them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

PREFIX = "modulation."  # of these tensors among the adapter's
FUNCTIONS = {F.layer_norm: -1, F.group_norm: 1}  # and the axis of their channels


def modulated_layers(part: fx.GraphModule) -> dict[str, str]:
    """Layers that can be modulated, by the node that runs them: norms with an affine map, run once.

    A norm is a node that calls the layer, or (in layers that FX traces through) one that calls
    PyTorch's function with the layer's weight.
    """
    found = {}
    for n in part.graph.nodes:
        layer = None
        if n.op == "call_module" and "Norm" in type(part.get_submodule(n.target)).__name__:
            layer = n.target
        elif n.op == "call_function" and n.target in FUNCTIONS:
            weights = [a.target for a in n.all_input_nodes if a.op == "get_attr"]
            layer = next(
                (w.removesuffix(".weight") for w in weights if w.endswith(".weight")), None
            )
        if layer is not None and _is_affine(part.get_submodule(layer)):
            found[n.name] = layer
    runs = list(found.values())
    return {node: layer for node, layer in found.items() if runs.count(layer) == 1}


def identity(part: fx.GraphModule) -> dict[str, Tensor]:
    """The modulation that changes nothing: ``<layer>.scale`` and ``<layer>.shift``, (C,) each."""
    tensors = {}
    for layer in modulated_layers(part).values():
        weight = part.get_submodule(layer).weight
        tensors[f"{layer}.scale"] = torch.ones_like(weight, requires_grad=False)
        tensors[f"{layer}.shift"] = torch.zeros_like(weight, requires_grad=False)
    return tensors


def modulated(part: nn.Module, modulation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of ``part`` that ``modulation`` changes, by name; differentiable in it."""
    parameters = {}
    for layer in layers_of(modulation):
        m, scale = part.get_submodule(layer), modulation[f"{layer}.scale"]
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
            raise ValueError(f"'{PREFIX}{name}' has shape {list(t.shape)}, expected {list(expected[name])}")  # fmt: skip
    pairs = [f"{layer}.{kind}" for layer in layers for kind in ("scale", "shift")]
    if missing := [name for name in pairs if name not in modulation]:
        raise ValueError(f"'{PREFIX}{missing[0]}' is missing")
    for name, value in modulated(part, modulation).items():
        part.get_parameter(name).data = value


def layers_of(modulation: Iterable[str]) -> list[str]:
    """The layers that a modulation's tensors belong to, each once."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in modulation))


def _is_affine(layer: nn.Module) -> bool:
    affine = [getattr(layer, name, None) for name in ("weight", "bias")]
    return all(isinstance(p, nn.Parameter) and p.ndim == 1 for p in affine)
