"""The whole recipe: from a task and a position to a clone's tensors and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from .. import __version__
from ..clone_file import RawTensor, raw_sha256
from ..data import Progress, no_progress
from ..manifest import (
    CLONE_SCHEMA,
    Candidate,
    CloneClass,
    Cost,
    Manifest,
    Measured,
    Method,
    ModuleTensor,
)  # fmt: skip
from ..manifest import (
    Adapter as AdapterInfo,
)
from ..manifest import (
    Join as JoinInfo,
)
from ..network.adapter import Adapter
from ..network.branch import Module, features_of, mean_logit, module_after
from ..network.build import TORCH_DTYPES
from ..network.channels import weight_cells
from ..network.graph import INPUT, Position
from ..network.join import Join
from .features import localised_features, source_features, target_features
from .grid import Grid
from .join import fit_gaussian, fit_one_sided
from .localize import prune, rank_channels, select
from .refine import refine
from .score import score, share
from .study import fit_adapters, module_macs, rounded, run_module
from .task import Task

DTYPE_NAMES = {v: k for k, v in TORCH_DTYPES.items()}
ROWS = 400_000  # of the final adapter's regression


@dataclass(frozen=True)
class Recipe:
    """What a clone is made with."""

    name: str
    epochs: int
    seed: int


def make_clone(
    task: Task,
    grid: Grid,
    candidate: Candidate,
    recipe: Recipe,
    *,
    progress: Progress = no_progress,
) -> tuple[Manifest, dict[str, RawTensor]]:
    """Makes the clone of ``candidate``.

    The adapter is fitted and refined on the images that are not held out; then the join is
    fitted on those, the figures are measured on the held-out images, and the join that ships is
    fitted on all.
    """
    torch.manual_seed(recipe.seed)
    tap, cut = grid.target.position(candidate.tap), grid.source.position(candidate.cut)
    dense, slices = module_after(grid.source, grid.head, cut, task.columns)

    target_pre, z_t, taps = target_features(
        task.target, task.images.views[0], [tap.name], progress=progress
    )
    source_logits, cuts = source_features(
        task.source, task.images.views[1], [cut], progress=progress
    )
    module, kept = localize(task, dense, slices, cut, candidate.share, recipe.seed)
    [adapter] = fit_adapters(task, tap, [cut], taps[tap.name], [cuts[cut.name]], ROWS)
    if tap.name != INPUT:  # from the image itself nothing is lost that could be won back
        fit = ~task.held_out
        views = tuple(v[fit] for v in task.images.views)
        refine(adapter, module, dense, task.target, task.source, views, tap.name, cut.name,
               epochs=recipe.epochs, seed=recipe.seed, progress=progress)  # fmt: skip
    pre, z_b = run_module(module, taps[tap.name], adapter)

    evidence = [t.cpu() for t in (target_pre, pre, z_t, z_b)]
    measured = _measure(
        task, fit_join(task, grid, evidence, ~task.held_out), evidence, source_logits.cpu()
    )
    join = fit_join(task, grid, evidence, torch.ones_like(task.held_out))
    tensors = _raw({"adapter": adapter, "join": join, "module": module.part})
    manifest = Manifest(
        schema=CLONE_SCHEMA,
        name=recipe.name,
        versions={"pnc": __version__, "timm": timm.__version__, "torch": str(torch.__version__)},
        source=task.source.ref,
        target=task.target.ref,
        target_tensors={n: str(d) for n, d in task.target.digests.items()},
        tap=features_of(tap),
        cut=features_of(cut),
        classes=[
            CloneClass(name=c.name, source_name=c.source_name, source_index=c.source_index, position=k)
            for k, c in enumerate(task.classes)
        ],
        module=kept,
        columns=module.columns.tolist(),
        adapter=AdapterInfo(kind="conv", kernel=adapter.kernel, parameters=_size(adapter)),
        join=JoinInfo(
            kind=join.kind, target_features=target_pre.shape[1], branch_features=pre.shape[1],
            parameters=_size(join),
        ),
        method=Method(
            seed=recipe.seed, epochs=recipe.epochs, share=candidate.share,
            images_per_class=_counts(task), original_images=int((~task.is_new).sum()),
        ),
        measured=measured,
        cost=Cost(
            parameters=sum(p.numel() for m in (adapter, module) for p in m.parameters()) + _size(join),
            macs=adapter.macs + _size(join)
            + module_macs(grid, cut, dense, module, cuts[cut.name][:1]),
            target_parameters=task.target.parameters,
            target_macs=sum(grid.target.macs.values()),
            bytes=sum(len(t.data) for t in tensors.values()),
        ),
        tensors_sha256=raw_sha256(tensors),
    )  # fmt: skip
    return manifest, tensors


def localize(
    task: Task,
    dense: Module,
    slices: dict[str, ModuleTensor],
    cut: Position,
    share: float,
    seed: int,
) -> tuple[Module, dict[str, ModuleTensor]]:
    """Local(.): the part of ``dense`` that the clone classes need, and how it was sliced."""
    if share >= 1.0:
        return dense, slices
    fit = task.is_new & ~task.held_out
    features = localised_features(task.source, task.images.views[1][fit], cut, seed)
    example = features[:2]
    chosen = select(dense, rank_channels(dense, features), share, weight_cells(dense.part, example))
    return prune(dense, slices, chosen, example)


def fit_join(task: Task, grid: Grid, evidence: Sequence[Tensor], fit: Tensor) -> Join:
    """The join from the images selected by ``fit`` (N,); ``evidence`` is [target pre-logits,
    branch pre-logits, z_T, z_B]."""
    target_pre, pre, z_t, z_b = (t[fit] for t in evidence)
    if task.old:
        return fit_gaussian(torch.cat([target_pre, pre], dim=1), task.ids[fit], task.old, task.new)
    return fit_one_sided(pre, z_t, z_b, mean_logit(grid.source, grid.head))


def _measure(task: Task, join: Join, evidence: Sequence[Tensor], source_logits: Tensor) -> Measured:
    judged = task.judged
    target_pre, pre, z_t, z_b = (t[judged] for t in evidence)
    scores = score(z_t, join(target_pre, pre, z_t, z_b), task.label_index[judged])
    new = task.is_new[judged]
    source_right = source_logits[judged][:, task.columns].argmax(1) == task.ids[judged] - task.old
    return Measured(
        images=int(judged.sum()),
        branch_accuracy=rounded(scores.branch),
        source_accuracy=rounded(share(source_right[new])),
        original_accuracy=rounded(scores.original),
        clone_accuracy=rounded(scores.clone),
        joint_accuracy=rounded(scores.joint),
        locality=rounded(scores.locality),
    )


def _counts(task: Task) -> dict[str, int]:
    names = [*task.originals, *(c.name for c in task.classes)]
    return {n: int((task.ids == i).sum()) for i, n in enumerate(names)}


def _raw(parts: dict[str, nn.Module]) -> dict[str, RawTensor]:
    """State dicts as bytes, named ``<part>.<tensor>``."""
    raw = {}
    for part, module in parts.items():
        for name, t in module.state_dict().items():
            t = t.detach().cpu().contiguous()
            data = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
            raw[f"{part}.{name}"] = RawTensor(DTYPE_NAMES[t.dtype], tuple(t.shape), data)
    return raw


def _size(module: Module | Adapter | Join) -> int:
    return sum(t.numel() for t in module.state_dict().values())
