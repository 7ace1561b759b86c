"""Mixing: what a layer reads of a pruned module, brought nearer to what it read of the whole one.

Channels that stay tell much of those that went.  For a layer that reads pruned channels x~ where
the whole network reads x, B = E[x x~'] E[x~ x~']^-1 is the best linear estimate of x, and W B,
with the whole layer's weight W, is what the weight on x~ should be.  The file holds exact slices
of W, so it is approached by a square matrix M over the kept inputs: A M for A = W[:, kept].  M is
an adapter's tensor; it is folded into the weight when a branch is built and costs nothing per
image.  Where a square matrix would be large beside the weight itself (pointwise convolutions, linear
layers) M is the identity and a product of low rank.

After GRAIL (arXiv 2602.23795) and FSKD (arXiv 1812.01839), which change the weights themselves; that
copied weights stay apart from what adapts them is Structured Pruning Adapters' (arXiv 2211.10155).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn

from ..channels.restored import RIDGE, estimate, ridged
from ..manifest import ModuleTensor
from .modulation import layers_of

PREFIX = "mixing."  # of these tensors among the adapter's
MATRIX, LEFT, RIGHT = "matrix", "left", "right"  # M (k, k), or M = I + left (k, r) right (r, k)
PART = 0.25  # of the numbers of a layer's own weight, that its mixing may have
RIDGE_OF_WEIGHTS = 1e-3  # of the mean of the diagonal


def mixed_layers(part: fx.GraphModule, whole: Mapping[str, torch.Size]) -> dict[str, str]:
    """Layers of a pruned ``part`` that have fewer inputs than in the ``whole`` (shapes by tensor), by
    the node that runs them: convolutions of one group and linear layers, run once."""
    runs = [str(n.target) for n in part.graph.nodes if n.op == "call_module"]
    found = {}
    for n in part.graph.nodes:
        name = str(n.target)
        if n.op != "call_module" or runs.count(name) != 1:
            continue
        layer = part.get_submodule(name)
        if type(layer) is nn.Linear or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            weight = cast(nn.Linear, layer).weight
            before = whole.get(f"{name}.weight", weight.shape)
            if before[1] > weight.shape[1] and rank_of(weight.shape) != 0:
                found[n.name] = name
    return found


def rank_of(shape: torch.Size) -> int | None:
    """The rank of the mixing of a layer whose weight has this shape; None: a square matrix."""
    inputs, numbers = shape[1], math.prod(shape)
    rank = int(PART * numbers / (2 * inputs))
    return None if 2 * rank >= inputs else rank


def numbers_of(part: fx.GraphModule, whole: Mapping[str, torch.Size]) -> int:
    """How many numbers the mixing of a pruned ``part`` has."""
    total = 0
    for name in mixed_layers(part, whole).values():
        shape = _layer(part, name).weight.shape
        rank = rank_of(shape)
        total += shape[1] ** 2 if rank is None else 2 * rank * shape[1]
    return total


def shapes_of(part: nn.Module) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in part.state_dict().items()}


def mixing_of(
    weight: Tensor, kept: ModuleTensor, moments: Tensor, cross: Tensor
) -> dict[str, Tensor]:
    """The mixing of a layer with the whole ``weight`` (out, C, ...) of which ``kept`` stays.

    ``moments`` are E[x~ x~'] (k, k), ``cross`` E[x x~'] (C, k) of what it reads.
    """
    w, g = weight.detach().cpu().double(), moments.cpu().double()
    for axis, indices in ((k.axis, k.indices) for k in kept.kept if k.axis == 0):
        w = w.index_select(axis, torch.tensor(indices))
    inputs = next(torch.tensor(k.indices) for k in kept.kept if k.axis == 1)
    told = estimate(g, cross.cpu().double())  # B (C, k)
    rows = w.movedim(1, -1).flatten(0, -2)  # (out ..., C)
    own = rows[:, inputs]  # A
    square = ridged(own.T @ own, RIDGE_OF_WEIGHTS)
    change = torch.linalg.solve(square, own.T @ (rows @ told - own))  # M - I
    rank = rank_of(torch.Size((len(w), len(inputs), *w.shape[2:])))
    if rank is None:
        return {MATRIX: (torch.eye(len(change)).double() + change).float()}
    # nearest in what comes out: |A (change - left right) x~|
    out, into = (torch.linalg.cholesky(m) for m in (square, ridged(g, RIDGE)))
    u, s, v = torch.linalg.svd(out.T @ change @ into)
    root = s[:rank].clamp(min=0).sqrt()
    left = torch.linalg.solve_triangular(out.T, u[:, :rank] * root, upper=True)
    right = torch.linalg.solve_triangular(into, (root[:, None] * v[:rank]), upper=False, left=False)
    return {LEFT: left.float().contiguous(), RIGHT: right.float().contiguous()}


def mixed(part: nn.Module, mixing: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``part`` that ``mixing`` changes, by name; differentiable in it."""
    return {
        f"{name}.weight": mixed_weight(_layer(part, name).weight, of_layer(mixing, name))
        for name in layers_of(mixing)
    }


def mixed_weight(weight: Tensor, mixing: Mapping[str, Tensor]) -> Tensor:
    """``weight`` (out, k, ...) times M along its inputs."""
    rows = weight.movedim(1, -1)
    if MATRIX in mixing:
        rows = rows @ mixing[MATRIX]
    else:
        rows = rows + (rows @ mixing[LEFT]) @ mixing[RIGHT]
    return rows.movedim(-1, 1)


@torch.no_grad()
def fold_mixing(part: nn.Module, mixing: Mapping[str, Tensor]) -> None:
    """Folds ``mixing`` into the weights of ``part``, in place.

    Raises ``ValueError`` where the two do not fit.
    """
    for name in layers_of(mixing):
        own = of_layer(mixing, name)
        try:
            layer = part.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or getattr(layer, "groups", 1) != 1:
            raise ValueError(f"the module has no inputs to mix for '{PREFIX}{name}'")
        if set(own) not in ({MATRIX}, {LEFT, RIGHT}):
            found = ", ".join(sorted(own))
            raise ValueError(f"'{PREFIX}{name}' has {found}, expected matrix, or left and right")
        inputs, inner = layer.weight.shape[1], own[LEFT].shape[-1] if LEFT in own else 0
        expected = {MATRIX: (inputs, inputs), LEFT: (inputs, inner), RIGHT: (inner, inputs)}
        for kind, t in own.items():
            if tuple(t.shape) != expected[kind]:
                raise ValueError(
                    f"'{PREFIX}{name}.{kind}' has shape {list(t.shape)}, "
                    f"expected {list(expected[kind])}"
                )
        weight = mixed_weight(layer.weight, own).contiguous()
        layer.weight = nn.Parameter(weight, requires_grad=False)


def of_layer(mixing: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The tensors of one layer, by kind."""
    found = {n.rpartition(".")[::2]: t for n, t in mixing.items()}
    return {kind: t for (owner, kind), t in found.items() if owner == layer}


def _layer(part: nn.Module, name: str) -> nn.Linear:
    """The layer called ``name``, of either kind."""
    return cast(nn.Linear, part.get_submodule(name))
