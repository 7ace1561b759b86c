"""Where a network ends: its classifier, the pre-logits that it reads, and the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from ..errors import Incompatible
from .graph import Trace
from .nodes import given_first
from .position import Position


@dataclass(frozen=True)
class Head:
    """Where a traced network ends."""

    pre: str  # the node of the pre-logits
    logits: str  # the node of the logits
    weight: str | None  # the classifier's weight, when its rows are the classes


def find_head(tr: Trace, classifier: tuple[str, ...]) -> Head:
    """Where a traced network with these ``classifier`` modules ends.

    Pre-logits are what the classifier reads; networks without one single classifier have their
    logits for pre-logits.  Raises ``Incompatible`` where the network returns more than one tensor.
    """
    out = next(n for n in tr.graph.nodes if n.op == "output").args[0]
    if not isinstance(out, fx.Node):
        raise Incompatible(
            "the source does not return one tensor of logits",
            hint="use a plain classifier as the source",
        )
    if len(classifier) != 1:
        return Head(out.name, out.name, None)
    [name] = classifier
    calls = [n for n in tr.graph.nodes if n.op == "call_module" and n.target == name]
    call = out if out in calls else next(iter(calls), None)
    pre = None if call is None else given_first(call)
    if pre is None:
        return Head(out.name, out.name, None)
    linear = call is out and isinstance(tr.root.get_submodule(name), nn.Linear)
    return Head(pre.name, out.name, f"{name}.weight" if linear else None)


def cuts(tr: Trace, head: Head) -> list[Position]:
    """Positions at which the source can be cut: not after its pre-logits."""
    order = {n.name: i for i, n in enumerate(tr.graph.nodes)}
    return [p for p in tr.positions if order[p.node] < order[head.pre] or p.node == head.pre]


def mean_logit(tr: Trace, head: Head) -> tuple[Tensor, Tensor] | None:
    """Weight (D,) and bias () that give the mean of the network's logits from its pre-logits.

    None where the logits are not linear in the pre-logits.
    """
    if head.weight is None:
        return None
    linear = cast(nn.Linear, tr.root.get_submodule(head.weight.removesuffix(".weight")))
    bias = torch.zeros(1) if linear.bias is None else linear.bias
    return linear.weight.mean(0).cpu(), bias.mean().cpu()


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier module(s): those with weights that ``get_classifier`` returns."""
    get_classifier: Callable[[], object] = getattr(model, "get_classifier", lambda: None)
    head = get_classifier()
    heads = head if isinstance(head, (tuple, list)) else [head]
    by_id = {id(m): n for n, m in model.named_modules()}
    return tuple(
        by_id[id(h)]
        for h in heads
        if isinstance(h, nn.Module) and id(h) in by_id and any(True for _ in h.parameters())
    )


def target_pre_logits(seen: dict[str, Tensor], classifier: tuple[str, ...], z_t: Tensor) -> Tensor:
    """What the target's classifier read, (B, D); its logits ``z_t`` where none can be named.

    ``seen`` is what :func:`~pnc_cli.network.record.recording` filled, with the classifier's input.
    """
    vectors = [as_vector(seen[f"{n}:input"]) for n in classifier if f"{n}:input" in seen]
    return torch.cat(vectors, dim=1) if vectors else z_t


def as_vector(x: Tensor) -> Tensor:
    """Pre-logits as (B, D), whatever the classifier reads: maps and tokens are averaged."""
    if x.ndim == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.ndim == 3 else x
