"""Which channels of a module can be removed together, read from its FX graph.

Every tensor's channels are followed through the graph (``flow.py``).  Channels that meet are
tied, and a *unit* is what is tied together: one channel of a convolution, a head with its queries,
keys and values, a pair of gate and value, a group of a grouped convolution.  A unit can go where
it is a slice of every tensor it stands in; any other stays whole.  So any architecture works, and
some shrink less.  The idea of grouping by dependency is DepGraph's (Fang et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from .flow import Flow, Site
from .numbers import Fixed, Place, place_of, shrink
from .ties import WHOLE, Seen, compact


@dataclass(frozen=True)
class Group:
    """Channels of equal rank: each can be removed alone, by cutting its index out of every site.

    ``sites`` maps (tensor, axis) to an (n, m) array: the m indices that channel i of n has there.
    ``readers`` are the weights (convolutions, linear layers) that read the channels on axis 1.
    ``places`` are numbers in the graph that count the channels, with their indices likewise.
    """

    sites: dict[Site, np.ndarray]
    readers: tuple[str, ...]
    places: dict[Place, np.ndarray]

    @property
    def size(self) -> int:
        return len(next(iter(self.sites.values())))

    @property
    def name(self) -> str:
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
    gone: dict[Place, list[int]] = {}
    for group, stay in chosen:
        for place, indices in group.places.items():
            gone.setdefault(place, []).extend(indices[~stay].ravel().tolist())
    if gone:
        shrink(part, {place: np.array(indices, dtype=int) for place, indices in gone.items()})


def what_stays(
    groups: Sequence[Group], kept: Mapping[Site, Sequence[int]]
) -> list[tuple[Group, np.ndarray]]:
    """Which channels of each group stay, from the indices kept along axes of tensors."""
    chosen = []
    for group in groups:
        for site in group.sites.keys() & kept.keys():
            chosen.append((group, np.isin(group.sites[site][:, 0], kept[site])))
            break
    return chosen


def weight_cells(part: nn.Module, example: Tensor) -> dict[str, int]:
    """How often an image uses each weight of ``part``: cells of a convolution's output, tokens of
    a linear layer's.  MACs are numbers in the weight times this."""
    cells: dict[str, int] = {}

    def watch(name: str):
        def hook(m, args, out) -> None:
            per_image = out.numel() // len(example) // len(m.weight)
            cells[name] = cells.get(name, 0) + per_image

        return hook

    handles = [
        m.register_forward_hook(watch(f"{name}.weight"))
        for name, m in part.named_modules()
        if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        part(example)
    for handle in handles:
        handle.remove()
    return cells


def _groups(flow: Flow) -> list[Group]:
    """Units with the same sites and places, and the same number of indices at each."""
    unit = _settle(flow)
    sites = {site: unit[ids].numpy() for site, ids in flow.sites.items()}
    places = {place: unit[ids].numpy() for place, ids in _places(flow, unit)}
    for name, ids in flow.parameters.items():
        roots = compact(unit[ids])
        axes = [a for a, size in enumerate(roots.shape) if size > 1]
        if axes and name in flow.stored:
            sites[name, axes[0]] = roots.flatten().numpy()
        elif axes:
            places[Place(name, axes[0], roots.numel(), ())] = roots.flatten().numpy()
    standing: dict[int, dict[Site | Place, list[int]]] = {}
    for where, roots in [*sites.items(), *places.items()]:
        for index, root in enumerate(roots.tolist()):
            if root != WHOLE:
                standing.setdefault(root, {}).setdefault(where, []).append(index)
    alike: dict[frozenset, list[dict]] = {}
    for stands in standing.values():
        key = frozenset((where, len(indices)) for where, indices in stands.items())
        alike.setdefault(key, []).append(stands)
    found = []
    for members in alike.values():
        indices = {where: np.array([m[where] for m in members]) for where in members[0]}
        at = {site: i for site, i in indices.items() if site in sites}
        readers = tuple(t for t, axis in sorted(at) if axis == 1 and t in flow.readers)
        writers = [t for t, axis in at if axis == 0]
        if readers and writers and len(members) > 1:
            found.append(
                Group(
                    dict(sorted(at.items())),
                    readers,
                    {p: i for p, i in indices.items() if p in places},
                )
            )
    return found


def _settle(flow: Flow) -> Tensor:
    """(count,) the unit of each id: a slice along one axis of every tensor that it stands in."""
    tensors = {id(s.ids): s.ids for s in _tensors(flow)}
    tensors |= {id(ids): ids for ids in flow.parameters.values()}
    whole = torch.tensor(WHOLE)
    while True:
        unit, sound = flow.ties.components(), True
        for ids in tensors.values():
            roots = compact(unit[ids])
            axes = [a for a, size in enumerate(roots.shape) if size > 1]
            if len(axes) > 1:  # then the shortest does not shrink: queries, keys and values
                axis = min(axes, key=lambda a: roots.shape[a])
                flow.ties.tie(roots, roots.narrow(axis, 0, 1))
                sound = False
        if sound:
            for n, before in _reshaped(flow):
                try:
                    place_of(n, unit[before.full], _after(flow, n, unit))
                except Fixed:
                    flow.ties.tie(unit[before.ids], whole)
                    sound = False
        if sound:
            return unit


def _places(flow: Flow, unit: Tensor) -> Iterator[tuple[Place, Tensor]]:
    for n, before in _reshaped(flow):
        found = place_of(n, unit[before.full], _after(flow, n, unit))
        if found is not None:
            yield found[0], found[1]


def _tensors(flow: Flow) -> Iterator[Seen]:
    for seen in flow.seen.values():
        yield from [seen] if isinstance(seen, Seen) else seen


def _reshaped(flow: Flow) -> Iterator[tuple[fx.Node, Seen]]:
    """Nodes in which a size may stand, and what goes into them."""
    for n in flow.seen:
        before = flow.seen.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        if n.op != "call_module" and isinstance(before, Seen) and before.ids.numel() > 1:
            yield n, before


def _after(flow: Flow, n: fx.Node, unit: Tensor) -> Tensor | None:
    after = flow.seen[n]
    return unit[after.full] if isinstance(after, Seen) else None
