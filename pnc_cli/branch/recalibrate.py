"""Recalibrating the joins of several clones together.

Clones that were calibrated one by one know nothing of each other: two may both claim an image.
Each join has a slope and an offset of its log-odds; with images of every class at hand, all of
them are fitted together, by maximum likelihood of the patched model's softmax, every class
weighing the same.  Modules and adapters stay.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor

from ..data import (
    Images,
    ImageSource,
    Progress,
    Reconciled,
    choose,
    images_per_class,
    no_progress,
    read_images,
)
from ..errors import BadInput
from ..files.atomic import check_output
from ..files.clone_file import Clone, raw_sha256, sidecar_of, write_clone
from ..files.header import read_header
from ..files.opened import open_checkpoint
from ..files.patch import eject, inject
from ..files.renames import Renames
from ..manifest import Patched
from ..network.tensors import raw_tensor, read_tensors
from .patched import Branch, PatchedModel, answer, labels_in, load, preprocessing_of

PRIOR = 0.02  # pulls slopes towards 1: few images can be told apart perfectly, which says little
STEPS = 200


@dataclass(frozen=True)
class Recalibrated:
    """For each clone by name: its join's tensors as they are now."""

    joins: dict[str, dict[str, Tensor]]
    before: float  # mean negative log-likelihood of the images, every class weighing the same
    after: float


def recalibrate(model: PatchedModel, images: Iterable[Images]) -> Recalibrated:
    """Fits the calibrations of all clones of ``model`` to ``images`` of its classes, in place."""
    answers = [answer(model, part) for part in images if len(part)]
    z, label = (torch.cat(parts) for parts in zip(*answers))
    z = z.double()
    weight = (1.0 / torch.bincount(label, minlength=z.shape[1]).clamp(min=1))[label].double()
    weight = weight / weight.sum()
    joins = {n: cast(Branch, model.branches[n]).join for n in model.clone_names}
    old, names = model.target_classes, list(joins)
    sizes = [len(m.classes) for m in model.manifests]
    z_t, new = z[:, :old], z[:, old:].split(sizes, dim=1)
    level = z_t.logsumexp(1)
    odds = [part.logsumexp(1) - level for part in new]  # g of each clone, as calibrated so far
    theta = torch.tensor([[1.0, 0.0]] * len(names), dtype=torch.float64, requires_grad=True)

    def loss(penalty: float = PRIOR) -> Tensor:
        parts = [part + ((a - 1) * g + b)[:, None] for part, g, (a, b) in zip(new, odds, theta)]
        per_image = F.cross_entropy(torch.cat([z_t, *parts], dim=1), label, reduction="none")
        return (weight * per_image).sum() + penalty * (theta[:, 0] - 1).square().sum()

    before = loss(0.0).item()
    optimizer = torch.optim.LBFGS([theta], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        for name, (a, b) in zip(names, theta):
            joins[name].recalibrate(a, b)
        after = loss(0.0).item()
    return Recalibrated({n: join.state_dict() for n, join in joins.items()}, before, after)


def inject_together(
    target: Path,
    clones: Sequence[Path],
    output: Path,
    source: ImageSource,
    *,
    limit: int | None,
    seed: int,
    rename: Renames | None = None,
    skip_bad: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
    matched: Callable[[Reconciled], object] | None = None,
) -> tuple[Patched, Recalibrated]:
    """Injects ``clones`` and recalibrates the joins of all clones that are then in the target.

    ``source`` holds images of every class of the patched checkpoint, ``limit`` a class are read
    (0: all; None: as many as are useful);
    raises ``BadInput`` naming a class that has none.
    """
    check_output(output, force=force)
    check_output(sidecar_of(output), force=force, beside=output)
    with tempfile.TemporaryDirectory() as folder:
        together, plain = Path(folder, "together.safetensors"), Path(folder, "plain.safetensors")
        inject(target, clones, together, rename=rename)
        model = load(together)
        found = labels_in(model, source)
        if missing := [n for n in model.label_names if n not in source.by_class]:
            near = next((f for f, label in found.meant.items() if label == missing[0]), None)
            instead = f"; is it '{near}'? mv {source.name}/{near} {source.name}/{missing[0]}"
            raise BadInput(
                f"{source.name}: no images of class '{missing[0]}'",
                hint="recalibrating needs images of every class, original and cloned"
                + (instead if near else ""),
            )
        if matched is not None:
            matched(found)
        chosen = choose(
            source, model.label_names, images_per_class(limit, len(model.label_names)), seed
        )
        images = read_images(
            source, chosen, [preprocessing_of(model)], skip_bad=skip_bad, progress=progress
        )
        result = recalibrate(model, images)
        eject(together, plain)
        changed = [
            _with_join(clone, result.joins, Path(folder))
            for clone in open_checkpoint(together).clones
        ]
        return inject(plain, changed, output, force=force), result


def _with_join(clone: Clone, joins: dict[str, dict[str, Tensor]], folder: Path) -> Path:
    """The clone with its new join, as a clone file.

    What its manifest measured with the old join is not known any more.
    """
    header = read_header(clone.path)
    entries = {n: header.tensors[clone.prefix + n] for n in clone.tensors}
    tensors = read_tensors(clone.path, header, entries)
    tensors |= {f"join.{n}": t for n, t in joins[clone.name].items()}
    raw = {n: raw_tensor(t) for n, t in tensors.items()}
    old = clone.manifest
    measured = replace(
        old.measured,
        original_accuracy=None,
        clone_accuracy=None,
        joint_accuracy=None,
        locality=None,
        without_originals=None,
    )
    method = replace(old.method, recalibrated_with=sorted(n for n in joins if n != clone.name))
    manifest = replace(old, measured=measured, method=method, tensors_sha256=raw_sha256(raw))
    path = folder / f"{clone.name}.clone.safetensors"
    write_clone(path, manifest, raw)
    return path
