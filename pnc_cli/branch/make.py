"""Making a clone: from a task and a candidate to tensors and manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import timm
import torch
from msgspec.structs import replace as replace_in
from torch import Tensor

from .. import __version__
from ..allocator import give_back_freed_memory
from ..data import Images, Progress, no_progress
from ..files.clone_file import RawTensor, raw_sha256
from ..files.forms import is_counter
from ..files.opened import open_checkpoint
from ..limits import LIMITS, Limits
from ..manifest import Adapter as AdapterInfo
from ..manifest import CloneClass, Cost, Features, Manifest, Measured, Method, WithoutOriginals
from ..manifest import Join as JoinInfo
from ..network.fitting import same_tensors
from ..network.head import mean_logit
from ..network.load import Network
from ..network.part import slice_tensor
from ..network.position import Position
from ..network.tensors import raw_tensor, read_tensors
from ..plan import Candidate, Place
from .fit_join import Evidence, Levels, fit_join, fit_with_pool
from .join import Join
from .known import known_already
from .material import Fits, Material
from .modulation import layers_of
from .pair import Pair, Slices
from .recipe import Branch, is_the_source_itself, make_branch
from .score import rounded, score, share
from .task import Task

REFINED_ANYHOW = 3  # times as much as is little work, whatever a plain pass takes


@dataclass(frozen=True)
class Recipe:
    """What a clone is made with; ``epochs`` None leaves their number to the work they take."""

    name: str
    epochs: int | None
    seed: int


def make_clone(
    task: Task,
    pair: Pair,
    candidate: Candidate,
    recipe: Recipe,
    *,
    limits: Limits = LIMITS,
    progress: Progress = no_progress,
) -> tuple[Manifest, dict[str, RawTensor]]:
    """Makes the clone of ``candidate``.

    The branch is made from the images that are not held out; then the join is fitted on those, the
    figures are measured on the held-out images (of a side that has too few, on those that it was
    made from), and the join that ships is fitted on all.
    """
    torch.manual_seed(recipe.seed)
    place = candidate.place
    branch: Branch | None = None
    if place.is_head_only:
        material = Material.of(task, pair, limits=limits, progress=progress)
        evidence = Evidence.without_branch(material.target_pre, material.z_t, task.new)
    else:
        branch, material = _branch_of(task, pair, candidate, recipe, limits, progress)
        evidence = evidence_of(material, place, branch, progress)
    pool = None
    if branch is not None and task.pool is not None:
        pool = _evidence_of_pool(task, task.pool, pair, place, branch, limits)
    join, _ = join_of(task, pair, evidence, ~task.held_out, pool)
    measured = replace_in(
        _measure(task, join, evidence, material.z_s),
        known_already=known_already(task, material.z_t),
    )
    join, new_in_pool = join_of(task, pair, evidence, torch.ones_like(task.held_out), pool)
    learned = {} if branch is None else _learned(branch)
    kept = {} if branch is None else in_file(task.source, branch.kept)
    parts = {
        "adapter": learned,
        "join": join.state_dict(),
        "module": copied(task.source, kept),
    }
    tensors = {f"{part}.{n}": raw_tensor(t) for part, own in parts.items() for n, t in own.items()}
    manifest = Manifest(
        schema="pnc.clone/1",
        name=recipe.name,
        versions={"pnc": __version__, "timm": timm.__version__, "torch": str(torch.__version__)},
        source=task.source.ref,
        target=task.target.ref,
        target_tensors={n: str(d) for n, d in task.target.digests.items()},
        tap=None if branch is None else _features(pair.tap(place)),
        cut=None if branch is None else _features(pair.cut(place)),
        classes=_classes(task),
        module=kept,
        columns=[] if branch is None else branch.module.classes,
        adapter=None if branch is None else _adapter_info(branch, learned),
        join=_join_info(join, evidence),
        method=_method(task, candidate, recipe, branch, new_in_pool),
        measured=measured,
        cost=_cost(task, pair, branch, join, tensors),
        tensors_sha256=raw_sha256(tensors),
    )
    return manifest.sealed(), tensors


def _learned(branch: Branch) -> dict[str, Tensor]:
    """The adapter's tensors."""
    return {**branch.adapter.state_dict(), **branch.compensation.tensors}


def _branch_of(
    task: Task,
    pair: Pair,
    candidate: Candidate,
    recipe: Recipe,
    limits: Limits,
    progress: Progress,
) -> tuple[Branch, Material]:
    """The branch, and what it is made from."""
    place = candidate.place
    fits = Fits(pair, task, [place], limits.clone_rows)
    ends = ([place.tap], [place.cut]) if fits.needs_features else ([], [])
    anyhow = REFINED_ANYHOW * limits.little / pair.plain_macs(len(task.ids))
    refining = max(limits.refining, anyhow)
    limits = replace(limits, refining=refining)
    material = Material.of(task, pair, fits, *ends, limits=limits, progress=progress)
    give_back_freed_memory()
    branch = make_branch(
        material,
        place,
        fits.solve()[place],
        material.sample([place.tap], [place.cut]),
        passes=recipe.epochs,
        seed=recipe.seed,
        progress=progress,
    )
    return branch, material


def evidence_of(
    material: Material, place: Place, branch: Branch, progress: Progress = no_progress
) -> Evidence:
    """The evidence of all images."""
    pre, z_b = material.source_pre, material.z_s
    if not is_the_source_itself(material, place):
        everything = torch.arange(len(material.task.ids))
        ran = (place, branch.adapter, branch.module)
        [(pre, z_b)] = material.answers([ran], everything, progress)
    return Evidence(material.target_pre, pre, material.z_t, z_b)


def levels_of(task: Task, pair: Pair) -> Levels:
    """What makes the two networks' logits comparable."""
    return Levels(mean_logit(pair.source, pair.head), task.levels)


def join_of(
    task: Task, pair: Pair, evidence: Evidence, fit: Tensor, pool: Evidence | None = None
) -> tuple[Join, float | None]:
    """The join from the images that ``fit`` (N,) marks, and what share of an unlabelled ``pool`` it
    takes for clone classes."""
    levels, seen, ids = levels_of(task, pair), evidence.of(fit), task.ids[fit]
    if pool is not None:
        return fit_with_pool(seen, ids, pool, task.new, levels)
    return fit_join(seen, ids, task.old, task.new, levels), None


def _evidence_of_pool(
    task: Task, pool: Images, pair: Pair, place: Place, branch: Branch, limits: Limits
) -> Evidence:
    """The evidence of the unlabelled images."""
    ids, none = torch.full((len(pool),), -1), torch.zeros(len(pool), dtype=torch.bool)
    unlabelled = replace(task, images=pool, pool=None, ids=ids, held_out=none)
    return evidence_of(Material.of(unlabelled, pair, limits=limits), place, branch)


def in_file(source: Network, kept: Slices) -> Slices:
    """What of a module its file is to have: not counters that the source's lacks, nor tensors of
    which another name is in it (:func:`~.patched.completed`)."""
    twice = same_tensors(source.model)

    def spare(name: str) -> bool:
        others = twice.get(name, ())
        return is_counter(name) or any(o in kept and o in source.digests for o in others)

    return {n: how for n, how in kept.items() if n in source.digests or not spare(n)}


def copied(source: Network, kept: Slices) -> dict[str, Tensor]:
    """The module's tensors, sliced out of the source's file: its very numbers, in its types."""
    if not kept:
        return {}
    checkpoint = open_checkpoint(source.path)
    weights, twice = checkpoint.weights, same_tensors(source.model)
    wanted = {n: weights[next(o for o in (n, *twice.get(n, ())) if o in weights)] for n in kept}
    tensors = read_tensors(checkpoint.path, checkpoint.header, wanted)
    return {n: slice_tensor(t, kept[n]) for n, t in tensors.items()}


# what the manifest says of it -----------------------------------------------------------------------


def _measure(task: Task, join: Join, evidence: Evidence, source_logits: Tensor) -> Measured:
    judged = task.judged
    target_pre, pre, z_t, z_b = evidence.of(judged).tensors
    z_new = join(target_pre, pre, z_t, z_b)
    scores = score(z_t, z_new, task.label_index[judged])
    answers = source_logits[judged].argmax(1)
    new = task.is_new[judged]
    return Measured(
        images=int(judged.sum()),
        branch_accuracy=rounded(scores.branch),
        source_accuracy=rounded(share((answers == task.ids[judged] - task.old)[new])),
        original_accuracy=rounded(scores.original),
        clone_accuracy=rounded(scores.clone),
        joint_accuracy=rounded(scores.joint),
        locality=rounded(scores.locality),
        without_originals=None if task.old else _without_originals(task, z_t, z_new),
        fitted=task.fitted,
        not_held_out=task.not_held_out,
    )


def _without_originals(task: Task, z_t: Tensor, z_new: Tensor) -> WithoutOriginals:
    """From the logits (N, C) and (N, K) of the judged images, all of clone classes."""
    won = torch.cat([z_t, z_new], dim=1).argmax(1) >= z_t.shape[1]
    return WithoutOriginals(
        reason="not measured: no original images",
        images=len(won),
        held_out=bool(task.held_out.any()),
        clone_won=round(won.double().mean().item(), 6),
        target_confidence=round(z_t.softmax(1).amax(1).double().mean().item(), 6),
    )


def _features(position: Position) -> Features:
    return Features.at_position(position.name, position.layout)


def _classes(task: Task) -> list[CloneClass]:
    return [
        CloneClass(name=c.name, source_name=c.source_name, source_index=c.source_index, position=k)
        for k, c in enumerate(task.classes)
    ]


def _adapter_info(branch: Branch, learned: Mapping[str, Tensor]) -> AdapterInfo:
    return AdapterInfo(
        kind="conv",
        kernel=branch.adapter.kernel,
        modulation=layers_of(branch.compensation.modulation),
        mixing=layers_of(branch.compensation.mixing),
        parameters=_size(learned),
    )


def _join_info(join: Join, evidence: Evidence) -> JoinInfo:
    return JoinInfo(
        kind=join.kind,
        target_features=evidence.target_pre.shape[1],
        branch_features=evidence.pre.shape[1],
        parameters=_size(join.state_dict()),
    )


def _method(
    task: Task,
    candidate: Candidate,
    recipe: Recipe,
    branch: Branch | None,
    new_in_pool: float | None,
) -> Method:
    names = [*task.originals, *(c.name for c in task.classes)]
    return Method(
        seed=recipe.seed,
        epochs=0 if branch is None else branch.passes,
        share=candidate.share,
        images_per_class={n: int((task.ids == i).sum()) for i, n in enumerate(names)},
        original_images=int((~task.is_new).sum()),
        unlabelled_images=0 if task.pool is None else len(task.pool),
        unlabelled_new=rounded(new_in_pool),
        threads=torch.get_num_threads(),
    )


def _cost(
    task: Task,
    pair: Pair,
    branch: Branch | None,
    join: Join,
    tensors: Mapping[str, RawTensor],
) -> Cost:
    own = _size(join.state_dict())
    return Cost(
        parameters=own + (0 if branch is None else branch.parameters),
        macs=own + (0 if branch is None else branch.macs),
        target_parameters=task.target.parameters,
        target_macs=pair.target_macs,
        bytes=sum(len(t.data) for t in tensors.values()),
    )


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for t in tensors.values())
