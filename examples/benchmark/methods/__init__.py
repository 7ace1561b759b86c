"""The methods, a row of the tables each."""

from __future__ import annotations

from ..scenario import Scenario
from . import bound, cloning, light, probe, reference, tuning
from .base import Made, Method

__all__ = ["Made", "Method", "methods_of"]


def methods_of(scenario: Scenario, *, upper_bound: bool = False) -> list[Method]:
    """The rows of ``scenario``: references first, pnc last."""
    every = [*reference.METHODS, *probe.METHODS, *tuning.METHODS, *light.METHODS]
    every += bound.METHODS if upper_bound else []
    if scenario.methods is not None:
        names = [m.name for m in every]
        if unknown := set(scenario.methods) - set(names):
            raise SystemExit(
                f"{scenario.name}: no method '{min(unknown)}'; there are: {', '.join(names)}"
            )
        every = [m for m in every if m.name in scenario.methods]
    return [*every, *cloning.methods(scenario.pnc)]
