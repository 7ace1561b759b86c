"""The side branch of a clone: adapter, module, and where the module reads and what it answers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..errors import BadInput, Incompatible
from ..manifest import Features, Kept, Manifest, ModuleTensor
from .channels import prunable_groups, removable, shrink_graph, what_stays
from .graph import Position, Trace, part_after, trace
from .layout import Layout
from .record import as_vector


@dataclass(frozen=True)
class Head:
    """Where a traced network ends: its pre-logits and its logits."""

    pre: str
    logits: str
    weight: str | None  # the classifier's weight, when its rows are the classes


def find_head(tr: Trace, classifier: tuple[str, ...]) -> Head:
    """The nodes of the pre-logits and the logits.

    Networks without one linear classifier at their end have their logits for pre-logits.
    """
    out = next(n for n in tr.graph.nodes if n.op == "output").args[0]
    if not isinstance(out, fx.Node):
        raise Incompatible("the source does not return one tensor of logits",
                           hint="use a plain classifier as the source")  # fmt: skip
    if len(classifier) == 1 and out.op == "call_module" and out.target == classifier[0]:
        linear = isinstance(tr.root.get_submodule(out.target), nn.Linear)
        return Head(out.args[0].name, out.name, f"{out.target}.weight" if linear else None)
    for n in tr.graph.nodes:
        if len(classifier) == 1 and n.op == "call_module" and n.target == classifier[0]:
            return Head(n.args[0].name, out.name, None)
    return Head(out.name, out.name, None)


def cuts(tr: Trace, head: Head) -> list[Position]:
    """Positions at which the source can be cut: not after its pre-logits."""
    order = {n.name: i for i, n in enumerate(tr.graph.nodes)}
    return [p for p in tr.positions if order[p.node] < order[head.pre] or p.node == head.pre]


class Module(nn.Module):
    """The copied part of the source: cut features -> (pre-logits (B, D), logits (B, C))."""

    def __init__(self, part: fx.GraphModule, columns: list[int]) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        pre, logits = self.part(features)
        return as_vector(pre), logits[:, self.columns]


def _part(tr: Trace, cut: Position, head: Head) -> fx.GraphModule:
    """The graph after ``cut``; what the source's own state does not hold, this one's does not."""
    part = part_after(tr, cut, [head.pre, head.logits])
    for name in sorted(part.state_dict().keys() - tr.root.state_dict().keys()):
        owner, _, leaf = name.rpartition(".")  # a constant of the trace, or a mask
        module = part.get_submodule(owner)
        buffer = getattr(module, leaf)
        delattr(module, leaf)
        module.register_buffer(leaf, buffer, persistent=False)
    return part


def module_after(
    tr: Trace, head: Head, cut: Position, class_indices: list[int]
) -> tuple[Module, dict[str, ModuleTensor]]:
    """The part of the source after ``cut`` for some classes, and how its tensors were sliced.

    A linear classifier keeps the rows of the clone classes only; its order is that of
    ``class_indices``.
    """
    part = copy.deepcopy(_part(tr, cut, head))
    kept: dict[str, ModuleTensor] = {n: ModuleTensor(kept=[]) for n in part.state_dict()}
    columns = list(class_indices)
    if head.weight in kept:
        rows = ModuleTensor(kept=[Kept(axis=0, indices=list(class_indices))])
        kept[head.weight] = rows
        bias = head.weight.removesuffix("weight") + "bias"
        if bias in kept:
            kept[bias] = rows
        columns = list(range(len(class_indices)))
    resize(part, {n: slice_tensor(t, kept[n]) for n, t in part.state_dict().items()})
    return Module(part, columns), kept


def prunable_share(tr: Trace, cut: Position) -> float:
    """The share of the parameters after ``cut`` that stand in removable channels, 0 to 1."""
    head = find_head(tr, classifier_names(tr.root))
    part = _part(tr, cut, head)
    parameters = dict(part.named_parameters())
    groups = prunable_groups(part, torch.zeros(2, *cut.layout.shape))
    return removable(groups, parameters) / max(sum(p.numel() for p in parameters.values()), 1)


def mean_logit(tr: Trace, head: Head) -> tuple[Tensor, Tensor] | None:
    """Weight (D,) and bias () that give the mean of the network's logits from its pre-logits."""
    if head.weight is None:
        return None
    linear = tr.root.get_submodule(head.weight.removesuffix(".weight"))
    bias = torch.zeros(1) if linear.bias is None else linear.bias
    return linear.weight.mean(0).cpu(), bias.mean().cpu()


def slice_tensor(tensor: Tensor, how: ModuleTensor) -> Tensor:
    """The copied slice of a source tensor."""
    for k in how.kept:
        tensor = tensor.index_select(k.axis, torch.tensor(k.indices))
    return tensor.clone()


def rebuild_module(source: nn.Module, manifest: Manifest, tensors: dict[str, Tensor]) -> Module:
    """The module of a clone file on the untrained architecture ``source``.

    Raises ``BadInput`` when the tensors are not those the cut architecture needs.
    """
    tr = trace(source, manifest.source.preprocessing.input_size)
    head = find_head(tr, classifier_names(source))
    part = _part(tr, tr.position(manifest.cut.position), head)
    needed = set(part.state_dict())
    if needed != set(tensors):
        odd = min(needed ^ set(tensors))
        raise BadInput(f"clone '{manifest.name}': its module does not fit the part of a "
                       f"{manifest.source.architecture} after '{manifest.cut.position}': "
                       f"tensor '{odd}' is {'missing' if odd in needed else 'unexpected'}")  # fmt: skip
    kept = {(n, k.axis): k.indices for n, t in manifest.module.items() for k in t.kept}
    if any(name.rpartition(".")[0] not in classifier_names(source) for name, _ in kept):
        groups = prunable_groups(part, torch.zeros(2, *manifest.cut.shape))
        shrink_graph(part, what_stays(groups, kept))
    resize(part, tensors)
    return Module(part, list(manifest.columns))


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier module(s): those with weights that ``get_classifier`` returns."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = head if isinstance(head, (tuple, list)) else [head]
    by_id = {id(m): n for n, m in model.named_modules()}
    return tuple(
        by_id[id(h)]
        for h in heads
        if isinstance(h, nn.Module) and id(h) in by_id and any(True for _ in h.parameters())
    )


def features_of(position: Position) -> Features:
    at = position.layout
    return Features(
        position=position.name, kind=at.kind, shape=list(at.shape), grid=at.grid, prefix=at.prefix
    )


def layout_of(features: Features) -> Layout:
    return Layout(features.kind, tuple(features.shape), tuple(features.grid), features.prefix)


def resize(part: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Sets parameters and buffers to ``tensors``, whatever their shapes; frozen."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = part.get_submodule(owner)
        old = getattr(module, leaf)
        tensor = tensor.to(old.dtype) if old.is_floating_point() else tensor
        if leaf == "weight" and isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = module.groups * len(tensor) // len(old)
        if isinstance(old, nn.Parameter):
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            setattr(module, leaf, tensor)
