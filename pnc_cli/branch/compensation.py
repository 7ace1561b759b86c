"""Compensation: a module put right, layer after layer, in one pass and in closed form.

The whole part of the source and the module run side by side, node by node.  Where the module reads
pruned channels, its layer gets a mixing (``mixing.py``); where a normalisation layer puts out
channels, each gets a scale and a shift (``modulation.py``), both fitted to what the whole part
reads and puts out there while all the layers before are right already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..channels.layers import channel_axis, layer_of
from ..manifest import ModuleTensor
from ..network.nodes import given_first
from ..network.part import Module
from . import mixing as mixings
from . import modulation as modulations
from .mixing import fold_mixing, mixed, mixed_layers, mixing_of, shapes_of
from .modulation import (
    FUNCTION_AXES,
    affine,
    fold,
    identity,
    modulated,
    modulated_layers,
    norm_of,
    plain,
    rows_of,
)

ROWS = 20_000  # of a layer that its scales and shifts, or its mixing, are fitted to
ROWS_AN_INPUT = 6  # of a mixing, where those are fewer,
FEWEST_ROWS = 4_000  # but so many at least


@dataclass
class Compensation:
    """What puts a module right: tensors by name, folded into its layers when a branch is built."""

    modulation: dict[str, Tensor] = field(default_factory=dict)
    mixing: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """As an adapter's."""
        kinds = ((modulations.PREFIX, self.modulation), (mixings.PREFIX, self.mixing))
        return {prefix + n: t for prefix, own in kinds for n, t in own.items()}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor]) -> Compensation:
        """Out of an adapter's ``tensors``, which are left without them."""
        found = cls()
        for prefix, own in (
            (modulations.PREFIX, found.modulation),
            (mixings.PREFIX, found.mixing),
        ):
            for name in [n for n in tensors if n.startswith(prefix)]:
                own[name.removeprefix(prefix)] = tensors.pop(name)
        return found

    def changed(self, part: nn.Module) -> dict[str, Tensor]:
        """The parameters of ``part`` that it changes, by name; differentiable in it."""
        return {**modulated(part, self.modulation), **mixed(part, self.mixing)}

    def fold_into(self, part: fx.GraphModule) -> None:
        """Changes ``part`` in place.  Raises ``ValueError`` where the two do not fit."""
        fold(part, self.modulation)
        fold_mixing(part, self.mixing)


@torch.no_grad()
def compensate(
    dense: Module,
    module: Module,
    kept: Mapping[str, ModuleTensor],
    features: Tensor,
    student: Tensor,
) -> Compensation:
    """What puts ``module`` right, a copy of ``dense`` with the channels ``kept``.

    ``features`` (N, ...) are the source's at the cut; ``student`` what the adapter makes of the
    target's for the same images.
    """
    found = Compensation(identity(module.part))
    readers = mixed_layers(module.part, shapes_of(dense.part))
    if not found.modulation and not readers:
        return found
    norms = modulated_layers(module.part)
    right, ours = _Run(dense.part, features), _Run(module.part, student)
    for n, m in zip(dense.part.graph.nodes, module.part.graph.nodes):
        if layer := readers.get(m.name):
            axis = channel_axis(layer_of(module.part, f"{layer}.weight"))
            moments, cross = _second_moments(right.given(n), ours.given(m), axis)
            weight = layer_of(dense.part, f"{layer}.weight").weight
            own = mixing_of(weight, kept[f"{layer}.weight"], moments, cross)
            own = {f"{layer}.{kind}": t.to(student.device) for kind, t in own.items()}
            found.mixing |= own
            ours.changed[m.name] = mixed(module.part, own)
        elif layer := norms.get(m.name):
            wanted, rows = right.puts_out(n, layer), ours.puts_out(m, layer)
            if wanted is not None and rows is not None:
                indices = next((k.indices for k in kept[f"{layer}.weight"].kept), None)
                if indices is not None:
                    wanted = wanted[:, torch.tensor(indices, device=wanted.device)]
                own = dict(zip(("scale", "shift"), affine(rows, wanted)))
                own = {f"{layer}.{kind}": t for kind, t in own.items()}
                found.modulation |= own
                ours.changed[m.name] = modulated(module.part, own)
        right.step(n)
        ours.step(m)
    return found


def _second_moments(x: Tensor, own: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """E[x~ x~'] (k, k) and E[x x~'] (C, k) of what a layer reads in the module, ``own``, and in the
    whole, ``x``, along ``axis``."""
    most = min(ROWS, max(FEWEST_ROWS, ROWS_AN_INPUT * own.shape[axis]))
    whole, kept = (rows_of(t, axis, most) for t in (x, own))
    return kept.T @ kept / len(kept), whole.T @ kept / len(kept)


class _Run(fx.Interpreter):
    """A part that runs node by node, with other parameters where ``changed`` has some for a node."""

    def __init__(self, part: fx.GraphModule, x: Tensor) -> None:
        super().__init__(part)
        self.args_iter = iter([x.clone()])
        self.changed: dict[str, dict[str, Tensor]] = {}

    def step(self, n: fx.Node) -> None:
        self.env[n] = self.run_node(n)
        for gone in self.user_to_last_uses.get(n, []):
            del self.env[gone]

    def given(self, n: fx.Node) -> Tensor:
        """What ``n`` reads."""
        first = given_first(n)
        if first is None:
            raise ValueError(f"'{n.name}' reads nothing")
        return self.env[first]

    def puts_out(self, n: fx.Node, layer: str) -> Tensor | None:
        """Rows (n, C) of what the norm ``layer`` puts out at ``n``, before its activation."""
        if n.op == "call_function":
            return rows_of(super().run_node(n), FUNCTION_AXES[n.target], ROWS)
        found = plain(norm_of(self.module, layer), self.given(n))
        return None if found is None else rows_of(*found, ROWS)

    def run_node(self, n: fx.Node) -> object:
        if n.name not in self.changed:
            return super().run_node(n)
        changed = self.changed[n.name]
        if n.op == "call_module":
            own = {name.rpartition(".")[2]: t for name, t in changed.items()}
            args, _ = self.fetch_args_kwargs_from_env(n)
            return functional_call(self.module.get_submodule(str(n.target)), own, args)
        # a norm whose weight and bias are nodes of their own
        with_these = {
            a: changed.get(str(a.target)) for a in n.all_input_nodes if a.op == "get_attr"
        }
        before = {a: self.env[a] for a in with_these}
        self.env |= {a: t for a, t in with_these.items() if t is not None}
        out = super().run_node(n)
        self.env |= before
        return out
