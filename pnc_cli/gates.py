"""Gates: figures of an evaluation that have to be at least, or at most, so much.

Each figure has a direction: an accuracy is better when it is higher, a calibration error when it is
lower.  A gate in the other direction would pass just when things got worse, and one whose bound no
figure can cross would never fail; both are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import UsageError
from .limits import size

HIGHER = (
    "original_accuracy",
    "clone_accuracy",
    "average_accuracy",
    "joint_accuracy",
    "branch_accuracy",
    "target_accuracy",
    "locality",
)  # shares, better when higher
LOWER = ("right_to_wrong", "calibration_error")  # shares, better when lower
COSTS = ("macs", "parameters", "bytes", "latency")  # what all clones together add, or take
UNITS = {"macs": "of the target's", "parameters": "of the target's", "bytes": "bytes"}
MOST = 100.0  # times the target's: more is an absolute number where a share was asked for


@dataclass(frozen=True)
class Gate:
    """The figure ``name`` must not be under the ``bound``, or over it."""

    name: str
    bound: float
    over: bool
    milliseconds: bool = False  # of latency: an image, not times the target's

    @property
    def figure(self) -> str:
        """What the figure is called in an evaluation."""
        return "latency_ms_an_image" if self.milliseconds else self.name

    def fault(self, value: float | None) -> str | None:
        """What is wrong with the figure, if anything is; one that cannot be told does not pass."""
        wanted = f"{'at most' if self.over else 'required'} {self.bound:.6g}"
        if value is None:
            return f"{self.name} cannot be told, there is nothing to measure it on; {wanted}"
        if not (value > self.bound if self.over else value < self.bound):
            return None
        unit = UNITS.get(self.name, "")
        if self.name == "latency":
            unit = "ms an image" if self.milliseconds else "times the target's"
        return f"{self.name} is {value:.6g}{' ' + unit if unit else ''}, {wanted}"


def parse(under: Iterable[str] = (), over: Iterable[str] = ()) -> list[Gate]:
    """The gates of ``--fail-under`` and ``--fail-over`` options, ``name=bound`` each.

    Raises ``UsageError`` for a figure that there is not, a direction or a bound without sense, and
    a figure that is given twice.
    """
    gates = [_gate(item, False) for item in under] + [_gate(item, True) for item in over]
    for i, gate in enumerate(gates):
        if (gate.name, gate.milliseconds) in {(g.name, g.milliseconds) for g in gates[:i]}:
            raise UsageError(
                f"{_option(gate.over)}: {gate.name} is given twice", hint="leave one of them out"
            )
    return gates


def faults(gates: Iterable[Gate], figure: Callable[[str], float | None]) -> list[str]:
    """What is wrong with the figures, a sentence for each gate that does not hold."""
    return [text for g in gates if (text := g.fault(figure(g.figure))) is not None]


def _option(over: bool) -> str:
    return "--fail-over" if over else "--fail-under"


def _gate(item: str, over: bool) -> Gate:
    option = _option(over)
    example = "macs=0.5" if over else "joint_accuracy=0.7"
    name, equals, text = item.partition("=")
    if not equals:
        raise UsageError(f"{option} '{item}': expected name=number", hint=f"{option} {example}")
    if name not in (*HIGHER, *LOWER, *COSTS):
        fitting = (*LOWER, *COSTS) if over else HIGHER
        raise UsageError(f"{option}: no figure '{name}'", hint="figures: " + ", ".join(fitting))
    if over == (name in HIGHER):
        better = "higher" if over else "lower"
        raise UsageError(
            f"{option} {item}: {name} is better when it is {better}: this gate would fail when it "
            "gets better, and pass however bad it is",
            hint=f"{_option(not over)} {item}",
        )
    milliseconds = name == "latency" and text.endswith("ms")
    bound = _number(name, text.removesuffix("ms") if milliseconds else text)
    if bound is None:
        raise UsageError(
            f"{option} '{item}': '{text}' is not {_kind(name)}",
            hint=f"{option} {name}={_example(name)}",
        )
    return Gate(name, bound, over, milliseconds)


def _number(name: str, text: str) -> float | None:
    """The bound, if ``text`` is one that a figure of that ``name`` could be under and over."""
    try:
        value = float(size(text) if name == "bytes" else text)
    except ValueError:
        return None
    most = 1.0 if name in (*HIGHER, *LOWER) else math.inf
    if name in ("macs", "parameters"):
        most = MOST
    return value if math.isfinite(value) and 0 <= value <= most else None


def _kind(name: str) -> str:
    if name in (*HIGHER, *LOWER):
        return "a share from 0 to 1"
    if name == "bytes":
        return "a size such as 3000000, 3MB or 2.5MiB"
    if name == "latency":
        return "a multiple of the target's, 0 or more, or a time such as 5ms"
    return f"a share of the target's, 0 to {MOST:g}"


def _example(name: str) -> str:
    return {"bytes": "3MB", "latency": "1.5"}.get(name, "0.1" if name in LOWER else "0.5")
