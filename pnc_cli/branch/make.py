"""Making a clone: from a task and a position to tensors and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import timm
import torch
from torch import Tensor

from .. import __version__
from ..data import Progress, batches, no_progress, spread
from ..files.clone_file import RawTensor, raw_sha256
from ..files.opened import open_checkpoint
from ..manifest import (
    CLONE_SCHEMA,
    Candidate,
    CloneClass,
    Cost,
    Features,
    Manifest,
    Measured,
    Method,
    ModuleTensor,
)
from ..manifest import Adapter as AdapterInfo
from ..manifest import Join as JoinInfo
from ..network.features import BATCH, source_features, target_features
from ..network.head import mean_logit
from ..network.load import Network
from ..network.part import slice_tensor
from ..network.position import Position
from ..network.tensors import raw_tensor, read_tensors
from .join import Join, fit_gaussian, fit_one_sided
from .modulation import PREFIX, layers_of
from .pair import Grid
from .recipe import Branch, make_branch, run_module
from .score import rounded, score, share
from .task import Task, kept

MEMORY = 4 << 30  # bytes of features of a clone's images at tap and cut, at most


@dataclass(frozen=True)
class Recipe:
    """What a clone is made with; ``epochs`` None leaves their number to the work they take."""

    name: str
    epochs: int | None
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
    tap, cut = grid.target.position(candidate.tap), grid.cut(candidate)
    branch, evidence = _branch_of(task, grid, candidate, recipe, progress)
    source_logits, _ = source_features(task.source, task.images.views[1][task.judged])
    measured = _measure(
        task, fit_join(task, grid, evidence, ~task.held_out), evidence, source_logits.cpu()
    )
    join = fit_join(task, grid, evidence, torch.ones_like(task.held_out))
    learned = {
        **branch.adapter.state_dict(),
        **{PREFIX + n: t for n, t in branch.modulation.items()},
    }
    parts = {
        "adapter": learned,
        "join": join.state_dict(),
        "module": copied(task.source, branch.kept),
    }
    tensors = {f"{part}.{n}": raw_tensor(t) for part, own in parts.items() for n, t in own.items()}
    manifest = Manifest(
        schema=CLONE_SCHEMA,
        name=recipe.name,
        versions={"pnc": __version__, "timm": timm.__version__, "torch": str(torch.__version__)},
        source=task.source.ref,
        target=task.target.ref,
        target_tensors={n: str(d) for n, d in task.target.digests.items()},
        tap=Features.at_position(tap.name, tap.layout),
        cut=Features.at_position(cut.name, cut.layout),
        classes=[
            CloneClass(
                name=c.name, source_name=c.source_name, source_index=c.source_index, position=k
            )
            for k, c in enumerate(task.classes)
        ],
        module=branch.kept,
        columns=branch.module.columns.tolist(),
        adapter=AdapterInfo(
            kind="conv",
            kernel=branch.adapter.kernel,
            modulation=layers_of(branch.modulation),
            parameters=_size(learned),
        ),
        join=JoinInfo(
            kind=join.kind,
            target_features=evidence[0].shape[1],
            branch_features=evidence[1].shape[1],
            parameters=_size(join.state_dict()),
        ),
        method=Method(
            seed=recipe.seed,
            epochs=branch.epochs,
            share=candidate.share,
            images_per_class=_counts(task),
            original_images=int((~task.is_new).sum()),
        ),
        measured=measured,
        cost=Cost(
            parameters=branch.parameters + _size(join.state_dict()),
            macs=branch.macs + _size(join.state_dict()),
            target_parameters=task.target.parameters,
            target_macs=sum(grid.target.macs.values()),
            bytes=sum(len(t.data) for t in tensors.values()),
        ),
        tensors_sha256=raw_sha256(tensors),
    )
    return manifest, tensors


def _branch_of(
    task: Task, grid: Grid, candidate: Candidate, recipe: Recipe, progress: Progress
) -> tuple[Branch, list[Tensor]]:
    """The branch, made from as many images as memory allows, and :func:`evidence_of` all."""
    tap, cut = grid.target.position(candidate.tap), grid.source.position(candidate.cut)
    part = _that_fit(task, tap.layout.elements + cut.layout.elements)
    target_pre, z_t, taps = target_features(
        task.target, part.images.views[0], [tap.name], progress=progress
    )
    _, cuts = source_features(task.source, part.images.views[1], [cut], progress=progress)
    branch = make_branch(
        part,
        grid,
        candidate,
        taps[tap.name],
        cuts[cut.name],
        epochs=recipe.epochs,
        seed=recipe.seed,
        progress=progress,
    )
    if part is not task:
        return branch, evidence_of(task, tap, branch, progress)
    pre, z_b = run_module(branch.module, taps[tap.name], branch.adapter)
    return branch, [t.cpu() for t in (target_pre, pre, z_t, z_b)]


def _that_fit(task: Task, elements: int) -> Task:
    """The task on as many images as ``MEMORY`` holds the features of, so many ``elements`` each,
    half of them clone images: the task itself, unless it has very many or large ones."""
    most = int(MEMORY / (4 * elements))
    old, new = (mask.nonzero()[:, 0] for mask in (~task.is_new, task.is_new))
    if len(task.ids) <= most:
        return task
    few = min(len(new), max(most // 2, most - len(old)))
    keep = torch.zeros_like(task.held_out)
    keep[new[spread(len(new), few)]] = True
    keep[old[spread(len(old), most - few)]] = True
    return kept(task, keep)


def evidence_of(
    task: Task, tap: Position, branch: Branch, progress: Progress = no_progress
) -> list[Tensor]:
    """[target pre-logits, branch pre-logits, z_T, z_B] of all images, the features at the tap of a
    batch at a time."""
    found = []
    for part in batches(len(task.ids), BATCH):
        progress("answers of target and branch", part.start, len(task.ids))
        target_pre, z_t, taps = target_features(task.target, task.images.views[0][part], [tap.name])
        pre, z_b = run_module(branch.module, taps[tap.name], branch.adapter)
        found.append([t.cpu() for t in (target_pre, pre, z_t, z_b)])
    progress("answers of target and branch", len(task.ids), len(task.ids))
    return [torch.cat(tensors) for tensors in zip(*found)]


def fit_join(task: Task, grid: Grid, evidence: Sequence[Tensor], fit: Tensor) -> Join:
    """The join from the images selected by ``fit`` (N,); ``evidence`` is [target pre-logits,
    branch pre-logits, z_T, z_B]."""
    target_pre, pre, z_t, z_b = (t[fit] for t in evidence)
    if task.old:
        return fit_gaussian(torch.cat([target_pre, pre], dim=1), task.ids[fit], task.old, task.new)
    return fit_one_sided(pre, z_t, z_b, mean_logit(grid.source, grid.head), task.levels)


def copied(source: Network, kept: dict[str, ModuleTensor]) -> dict[str, Tensor]:
    """The module's tensors, sliced out of the source's file: its very numbers, in its types."""
    checkpoint = open_checkpoint(source.path)
    wanted = {n: checkpoint.weights[n] for n in kept}
    tensors = read_tensors(checkpoint.path, checkpoint.header, wanted)
    return {n: slice_tensor(t, kept[n]) for n, t in tensors.items()}


def _measure(task: Task, join: Join, evidence: Sequence[Tensor], source_logits: Tensor) -> Measured:
    """``source_logits`` are of the judged images alone."""
    judged = task.judged
    target_pre, pre, z_t, z_b = (t[judged] for t in evidence)
    scores = score(z_t, join(target_pre, pre, z_t, z_b), task.label_index[judged])
    new = task.is_new[judged]
    source_right = source_logits[:, task.columns].argmax(1) == task.ids[judged] - task.old
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


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(t.numel() for t in tensors.values())
