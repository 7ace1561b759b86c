"""Which channels of a module can be removed together, read from its FX graph.

Every tensor's channels are followed through the graph (``flow.py``).  Channels that meet are
tied, and a *unit* is what is tied together: one channel of a convolution, a head with its queries,
keys and values, a pair of gate and value, a group of a grouped convolution.  A unit can go where
it is a slice of every tensor it stands in; any other stays whole.  So any architecture works, and
some shrink less.  The idea of grouping by dependency is DepGraph's (Fang et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..network.nodes import given_first
from .flow import Flow, Site
from .layers import Layer
from .numbers import BufferAxis, ChannelCount, Fixed, count_in, shrink
from .ties import WHOLE, Seen, compact

Where = Site | ChannelCount | BufferAxis  # where channels stand: an axis of a tensor, or a number
Stands = dict[Where, list[int]]  # the indices at which one unit stands there


@dataclass(frozen=True)
class Group:
    """Channels of equal rank: each can be removed alone, by cutting its index out of every site.

    ``sites`` maps (tensor, axis) to an (n, m) array: the m indices that channel i of n has there.
    ``readers`` are the weights (convolutions, linear layers) that read the channels on axis 1.
    ``counts`` are numbers in the graph that count the channels, and buffers that no checkpoint
    holds, with their indices likewise.
    """

    sites: dict[Site, np.ndarray]
    readers: tuple[str, ...]
    counts: dict[ChannelCount | BufferAxis, np.ndarray]

    @property
    def size(self) -> int:
        return len(next(iter(self.sites.values())))

    @property
    def name(self) -> str:
        """The first of the tensors that write the channels."""
        return min(t for t, axis in self.sites if axis == 0)


Chosen = Sequence[tuple[Group, np.ndarray]]  # groups, and which of their channels stay, (n,) bool


def prunable_groups(part: fx.GraphModule, example: Tensor) -> list[Group]:
    """The groups of channels of ``part`` that can be removed, in the order of the graph.

    ``example`` is a batch of features that ``part`` takes.
    """
    flow = Flow(part)
    with torch.no_grad():
        flow.run(example)
    return _groups(flow)


def kept_indices(
    group: Group, kept: np.ndarray, lengths: Mapping[Site, int]
) -> dict[Site, np.ndarray]:
    """Per site, the indices that stay when only the channels ``kept`` (n,) bool of a group do."""
    out = {}
    for site, indices in group.sites.items():
        stay = np.ones(lengths[site], dtype=bool)
        stay[indices[~kept].ravel()] = False
        out[site] = np.flatnonzero(stay)
    return out


def shrink_graph(part: fx.GraphModule, chosen: Chosen) -> None:
    """Changes the numbers in ``part``'s graph for the channels that stay (its weights: ``resize``)."""
    gone: dict[ChannelCount | BufferAxis, list[int]] = {}
    for group, stay in chosen:
        for where, indices in group.counts.items():
            gone.setdefault(where, []).extend(indices[~stay].ravel().tolist())
    if gone:
        shrink(part, {where: np.array(indices, dtype=int) for where, indices in gone.items()})


def what_stays(
    groups: Sequence[Group], kept: Mapping[Site, Sequence[int]]
) -> list[tuple[Group, np.ndarray]]:
    """Which channels of each group stay, from the indices kept along axes of tensors."""
    chosen = []
    for group in groups:
        site = next((site for site in group.sites if site in kept), None)
        if site is not None:  # any will do: a channel goes from all of its sites
            chosen.append((group, np.isin(group.sites[site][:, 0], kept[site])))
    return chosen


def weight_cells(part: nn.Module, example: Tensor) -> dict[str, int]:
    """How often an image uses each weight of ``part``: cells of a convolution's output, tokens of
    a linear layer's.  MACs are numbers in the weight times this.

    ``example`` is a batch of features that ``part`` takes.
    """
    cells: dict[str, int] = {}

    def count(weight: str, layer: Layer, args: tuple, out: Tensor) -> None:
        per_image = out.numel() // len(example) // len(layer.weight)
        cells[weight] = cells.get(weight, 0) + per_image

    handles = [
        m.register_forward_hook(partial(count, f"{name}.weight"))
        for name, m in part.named_modules()
        if isinstance(m, Layer)
    ]
    try:
        with torch.no_grad():
            part(example)
    finally:
        for handle in handles:
            handle.remove()
    return cells


def _groups(flow: Flow) -> list[Group]:
    """Units that stand in the same axes and numbers, at equally many indices of each."""
    unit = _settle(flow)
    alike: dict[frozenset[tuple[Where, int]], list[Stands]] = {}
    for stands in _units(flow, unit):
        key = frozenset((where, len(indices)) for where, indices in stands.items())
        alike.setdefault(key, []).append(stands)
    groups = (_group(members, flow.readers) for members in alike.values())
    return [g for g in groups if g is not None]


def _group(units: list[Stands], readers: set[str]) -> Group | None:
    """The units as the channels of a group; None unless there are several, written and read."""
    sites: dict[Site, np.ndarray] = {}
    counts: dict[ChannelCount | BufferAxis, np.ndarray] = {}
    for where in units[0]:
        indices = np.array([stands[where] for stands in units])  # (n, m)
        if isinstance(where, tuple):
            sites[where] = indices
        else:
            counts[where] = indices
    read_by = tuple(t for t, axis in sorted(sites) if axis == 1 and t in readers)
    written = any(axis == 0 for _, axis in sites)
    if not read_by or not written or len(units) < 2:
        return None
    return Group(dict(sorted(sites.items())), read_by, counts)


def _units(flow: Flow, unit: Tensor) -> Iterable[Stands]:
    """Where each unit stands, in the order of the graph; without what stays whole."""
    standing: dict[int, Stands] = {}
    for where, roots in _axes(flow, unit).items():
        for index, root in enumerate(roots.tolist()):
            if root != WHOLE:
                standing.setdefault(root, {}).setdefault(where, []).append(index)
    return standing.values()


def _axes(flow: Flow, unit: Tensor) -> dict[Where, Tensor]:
    """The unit of each index, (length,), along every axis and in every number that may shrink."""
    axes: dict[Where, Tensor] = {site: unit[ids] for site, ids in flow.sites.items()}
    bare: dict[Where, Tensor] = {}
    for n, before in _reshaped(flow):
        if (found := count_in(n, unit[before.full], _after(flow, n, unit))) is not None:
            where, along = found
            bare[where] = along
    for name, ids in flow.parameters.items():
        roots = compact(unit[ids])
        if not (varying := _varying(roots)):
            continue
        axis, along = varying[0], roots.flatten()
        if name in flow.stored:
            axes[name, axis] = along
        else:
            bare[BufferAxis(name, axis, len(along))] = along
    return axes | bare


def _settle(flow: Flow) -> Tensor:
    """(count,) the unit of each id: a slice along one axis of every tensor that it stands in."""
    unit = flow.ties.components()
    while unfit := list(_crossing(flow, unit)) or list(_fixed(flow, unit)):
        for ids, with_ids in unfit:
            flow.ties.tie(ids, with_ids)
        unit = flow.ties.components()
    return unit


def _crossing(flow: Flow, unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What has to be tied where units vary along several axes of a tensor: queries, keys and values
    that each have their heads.  The shortest of the axes does not shrink then."""
    tensors = {id(s.ids): s.ids for s in _tensors(flow)}
    tensors |= {id(ids): ids for ids in flow.parameters.values()}
    for ids in tensors.values():
        roots = compact(unit[ids])
        axes = _varying(roots)
        if len(axes) > 1:
            axis = min(axes, key=lambda a: roots.shape[a])
            yield roots, roots.narrow(axis, 0, 1)


def _fixed(flow: Flow, unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What has to be kept because a number in the graph that counts it cannot be changed."""
    for n, before in _reshaped(flow):
        try:
            count_in(n, unit[before.full], _after(flow, n, unit))
        except Fixed:
            yield unit[before.ids], torch.tensor(WHOLE)


def _varying(roots: Tensor) -> list[int]:
    """The axes that compact ids vary along."""
    return [axis for axis, size in enumerate(roots.shape) if size > 1]


def _tensors(flow: Flow) -> Iterator[Seen]:
    for seen in flow.seen.values():
        yield from [seen] if isinstance(seen, Seen) else seen


def _reshaped(flow: Flow) -> Iterator[tuple[fx.Node, Seen]]:
    """Nodes in which a size may stand, and what goes into them."""
    for n in flow.seen:
        first = given_first(n)
        before = flow.seen.get(first) if first is not None else None
        if n.op != "call_module" and isinstance(before, Seen) and before.ids.numel() > 1:
            yield n, before


def _after(flow: Flow, n: fx.Node, unit: Tensor) -> Tensor | None:
    """The units of what ``n`` gave, in full shape, if that was one tensor."""
    after = flow.seen[n]
    return unit[after.full] if isinstance(after, Seen) else None
