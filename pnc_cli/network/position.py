"""Positions of a network: places with a name where its features can be read, in order of depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from timm.layers import get_notrace_modules
from torch import Tensor, nn

from ..errors import Incompatible
from ..manifest import Layout

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
INPUT = "input"  # the position before the first layer: the preprocessed image itself


@dataclass(frozen=True)
class Position:
    """A place in a network whose features have a name and a layout."""

    name: str  # the module that outputs the features, or "input"
    aliases: tuple[str, ...]  # other modules that output the same features (layer1.1 for layer1)
    layout: Layout
    depth: float  # share of the network's MACs spent up to here, 0 to 1
    spent: int = 0  # the MACs themselves
    node: str = ""  # the FX node, in a traced network

    def at(self, resolution: float) -> Position:
        """The same place with its map at another resolution.  Raises ``Incompatible``."""
        layout = self.layout.at(resolution)
        if layout is None:
            raise Incompatible(
                f"the features at '{self.name}' are {self.layout.kind}, which has one resolution only",
                hint="leave --resolution out, or name a cut whose features are a map",
            )
        return replace(self, layout=layout)


@dataclass(frozen=True)
class Outline:
    """A network, its positions in order of depth, and what it costs."""

    root: nn.Module
    positions: tuple[Position, ...]
    macs: dict[str, int]  # multiply-accumulates per image, by the module that spends them

    def position(self, name: str) -> Position:
        """The position with this name or alias.  Raises ``Incompatible``."""
        for p in self.positions:
            if name == p.name or name in p.aliases:
                return p
        raise Incompatible(
            f"'{name}' is not a position of this network",
            hint="positions are: " + ", ".join(p.name for p in self.positions),
        )

    def macs_after(self, position: Position) -> int:
        """MACs per image of what comes after ``position``."""
        return sum(self.macs.values()) - position.spent


def is_layer(module: nn.Module) -> bool:
    """Whether ``module`` is a layer, not a network of layers: PyTorch's own and timm's leaves."""
    own = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    leaves = (*get_notrace_modules(), nn.Linear)  # timm has a Linear of its own
    return isinstance(module, leaves) or (own and not isinstance(module, CONTAINERS))


def leaves_of(value: object) -> list[object]:
    """What a module returned, or the things in it if it is a tuple, list or dictionary."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return [t for v in value for t in leaves_of(v)] if isinstance(value, (tuple, list)) else [value]


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in what a module returned."""
    return [v for v in leaves_of(value) if isinstance(v, Tensor)]
