"""What a study looks at: which pairs it fits adapters for, and which images it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..branch.material import Material, Size, alike
from ..branch.task import Task
from ..data import Images, spread
from ..limits import Limits
from ..plan import Place
from .grid import Grid
from .probe import probe_images

PAIR_ROWS = (8_000, 16_000, 32_000)  # of a pair's regression, as many as the work allows


def worth_fitting(grid: Grid, task: Task, limits: Limits) -> tuple[list[Place], int]:
    """The places to fit, and to how many rows: of each cut the taps that are as deep in their network
    first, two at least, while memory and work last; then as many rows as the work leaves."""
    by_cut: dict[str, list[Place]] = {}
    for place in grid.places:
        by_cut.setdefault(place.cut, []).append(place)

    def apart(place: Place) -> tuple[float, Place]:
        return abs(grid.tap(place).depth - grid.cut(place).depth), place

    order: dict[Place, int] = {}
    for places in by_cut.values():
        order |= {p: rank for rank, p in enumerate(sorted(places, key=apart))}
    work = limits.work(limits.fitting, grid.plain_macs(len(task.ids)))
    fewest, *more_rows = PAIR_ROWS
    chosen: list[Place] = []
    for rank in range(max(order.values()) + 1):
        more = [*chosen, *(p for p in grid.places if order[p] == rank)]
        memory, needed = _fitting(grid, more, fewest)
        if rank > 1 and (memory > limits.sums or needed > work):
            break
        chosen = more
    affordable = [rows for rows in more_rows if _fitting(grid, chosen, rows)[1] <= work]
    return chosen, max([fewest, *affordable])


def _fitting(grid: Grid, places: Sequence[Place], rows: int) -> tuple[int, float]:
    """Bytes and MACs of the regressions of ``places``."""
    sizes = [Size.of(grid, group) for group in alike(grid, places)]
    return sum(s.bytes for s in sizes), sum(s.macs(rows) for s in sizes)


def few_of_each(material: Material, per_class: int) -> Tensor:
    """(n,) images of each class, fitted and held-out ones alike."""
    chosen = []
    for kind in material.task.ids.unique():
        for part in (material.fit, ~material.fit):
            index = (part & (material.task.ids == kind)).nonzero()[:, 0]
            chosen.append(index[spread(len(index), -(-per_class // 2))])
    return torch.cat(chosen).sort().values


def with_probes(task: Task, seed: int, limits: Limits) -> Task:
    """The task on generated images, which belong to no class."""
    count = limits.probes
    views = [probe_images(count, n.input_size, seed) for n in (task.target, task.source)]
    return replace(
        task,
        originals=[],
        images=Images(views, [""] * count),
        ids=torch.full((count,), -1),
        held_out=torch.arange(count) % 4 == 3,
    )
