"""What a classifier, patched or not, is worth on labelled images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .branch.patched import PatchedModel, answer, labels_in, preprocessing_of
from .data import Images, ImageSource, Reconciled, choose, read_images
from .errors import BadInput
from .manifest import Manifest
from .network.load import check_distinct
from .progress import Progress

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class CloneCost:
    """What a clone adds, as its manifest says; shares are of the target's."""

    name: str
    classes: list[str]
    parameters: int
    parameters_share: float
    macs: int
    macs_share: float
    bytes: int

    @classmethod
    def of(cls, m: Manifest) -> CloneCost:
        return cls(
            name=m.name,
            classes=m.labels,
            parameters=m.cost.parameters,
            parameters_share=m.cost.parameters / max(m.cost.target_parameters, 1),
            macs=m.cost.macs,
            macs_share=m.cost.macs / max(m.cost.target_macs, 1),
            bytes=m.cost.bytes,
        )


@dataclass(frozen=True)
class Latency:
    """Milliseconds an image takes, and how many times the target's that is."""

    target: float
    patched: float
    ratio: float


@dataclass(frozen=True)
class Evaluation:
    """Shares are 0 to 1; None where there are no images to tell, or no clone."""

    images: int
    skipped: int  # images that did not decode
    original_accuracy: float | None  # original-class images, among all classes
    clone_accuracy: float | None  # clone-class images, among all classes
    average_accuracy: float | None  # mean of the two
    joint_accuracy: float | None  # all images, among all classes
    branch_accuracy: float | None  # clone-class images, among the clone classes alone
    target_accuracy: float | None  # original-class images, by the target alone
    locality: float | None  # original-class images whose prediction the patch leaves alone
    right_to_wrong: float | None  # original-class images the patch makes wrong
    calibration_error: float | None  # expected calibration error over all images
    per_class: dict[str, float]
    clones: list[CloneCost] = field(default_factory=list)
    classes_without_images: list[str] = field(default_factory=list)
    tta: str | None = None  # what the clones' answers were averaged over
    latency_ms: Latency | None = None  # where it was asked for

    def metric(self, name: str) -> float | None:
        """The figure of that name: one of ``METRICS``, or a cost of all clones together, of
        :data:`.gates.COSTS`: "macs" and "parameters" as shares of the target's, "bytes" as a
        number, "latency" as times the target's; "latency_ms_an_image" is in milliseconds."""
        if name == "bytes":
            return float(sum(c.bytes for c in self.clones))
        if name in ("macs", "parameters"):
            return float(sum(getattr(c, f"{name}_share") for c in self.clones))
        if name in ("latency", "latency_ms_an_image"):
            t = self.latency_ms
            return None if t is None else t.ratio if name == "latency" else t.patched
        value: float | None = getattr(self, name)
        return value

    def below(self, floors: Mapping[str, float]) -> list[str]:
        """Which of the figures in ``floors`` are lower than there, or cannot be told."""
        found = {name: self.metric(name) for name in floors}
        return [n for n, value in found.items() if value is None or value < floors[n]]

    def above(self, ceilings: Mapping[str, float]) -> list[str]:
        """Which of the figures in ``ceilings`` are higher than there, or cannot be told."""
        found = {name: self.metric(name) for name in ceilings}
        return [n for n, value in found.items() if value is None or value > ceilings[n]]

    def remarks(self) -> list[str]:
        """What was given and not used, or could not be, in a line each."""
        found = []
        if self.tta and not self.clones:
            found.append(f"--tta {self.tta} changes nothing: the checkpoint has no clones")
        if self.skipped:
            found.append(f"skipped {self.skipped} images that do not decode")
        return found


METRICS = tuple(f.name for f in fields(Evaluation) if f.type == "float | None")


@dataclass(frozen=True)
class Verdicts:
    """What networks say of N images, (N,) each: all that is kept of their logits."""

    predicted: Tensor  # among all classes
    probability: Tensor  # of that
    alone: Tensor  # among the target's classes
    branch: Tensor | None  # among the clone classes, where there are some

    @classmethod
    def of(cls, z: Tensor, old: int) -> Verdicts:
        """From logits (N, C), whose first ``old`` columns are the target's."""
        probability, predicted = z.softmax(1).max(1)
        branch = z[:, old:].argmax(1) + old if z.shape[1] > old else None
        return cls(predicted, probability, z[:, :old].argmax(1), branch)

    @classmethod
    def joined(cls, parts: list[Verdicts]) -> Verdicts:
        branch = [p.branch for p in parts if p.branch is not None]
        return cls(
            torch.cat([p.predicted for p in parts]),
            torch.cat([p.probability for p in parts]),
            torch.cat([p.alone for p in parts]),
            torch.cat(branch) if branch else None,
        )


def matched_labels(model: PatchedModel, source: ImageSource) -> Reconciled:
    """What becomes of the model's labels and the folders.  Raises ``BadInput`` where none match."""
    found = labels_in(model, source)
    if not found.clone and not found.original:
        folders, labels = (
            ", ".join(names[:10]) for names in (list(source.by_class), model.label_names)
        )
        unnamed = model.label_names == [str(i) for i in range(model.num_classes)]
        why = (
            "the checkpoint names no classes, so they are numbered"
            if unnamed
            else "its classes are"
        )
        raise BadInput(
            f"{source.name}: no folder is called as a class: the folders are {folders}; {why}: {labels}",
            hint='put "label_names": [...] into the .json beside the checkpoint'
            if unnamed
            else "call the folders as the classes",
        )
    return found


def evaluate(model: PatchedModel, images: Iterable[Images]) -> Evaluation:
    """Evaluates ``model`` on images of its classes, some at a time (:func:`~.data.read_images`).

    Raises ``BadInput`` for a label of two classes.
    """
    check_distinct("the model", model.label_names)
    verdicts, labels, skipped = [], [], 0
    for part in images:
        skipped += part.skipped
        if len(part):
            z, label = answer(model, part)
            verdicts.append(Verdicts.of(z, model.target_classes))
            labels.append(label)
    told = Verdicts.joined(verdicts)
    result = figures(told, torch.cat(labels), model.target_classes, model.label_names)
    clones = [CloneCost.of(m) for m in model.manifests]
    return replace(result, skipped=skipped, clones=clones, tta=model.tta)


def measure(
    model: PatchedModel,
    source: ImageSource,
    *,
    limit: int | None,
    seed: int,
    skip_bad: bool,
    timed: bool,
    progress: Progress,
) -> Evaluation:
    """Evaluates ``model`` on at most ``limit`` images of each of its classes that ``source`` has; where
    it is ``timed``, its forward pass is measured too."""
    chosen = choose(source, model.label_names, limit, seed)
    how = [preprocessing_of(model)]
    images = read_images(
        source, chosen, how, skip_bad=skip_bad, progress=progress, what="evaluating"
    )
    return replace(
        evaluate(model, images),
        classes_without_images=[n for n in model.label_names if n not in chosen],
        latency_ms=latency(model) if timed else None,
    )


def from_logits(z: Tensor, label: Tensor, old: int, names: list[str]) -> Evaluation:
    """Figures from logits ``z`` (N, C), whose first ``old`` columns are the target's."""
    return figures(Verdicts.of(z, old), label, old, names)


def figures(told: Verdicts, label: Tensor, old: int, names: list[str]) -> Evaluation:
    """Figures from what was said of images with these labels (N,), of which ``old`` are the target's."""
    predicted, alone = told.predicted, told.alone
    right, is_old, patched = predicted == label, label < old, told.branch is not None
    original, clone = _share(right[is_old]), _share(right[~is_old])
    average = None if original is None or clone is None else _round((original + clone) / 2)
    return Evaluation(
        images=len(label),
        skipped=0,
        original_accuracy=original,
        clone_accuracy=clone,
        average_accuracy=average,
        joint_accuracy=_share(right),
        branch_accuracy=_share((told.branch == label)[~is_old])
        if told.branch is not None
        else None,
        target_accuracy=_share((alone == label)[is_old]),
        locality=_share((predicted == alone)[is_old]) if patched else None,
        right_to_wrong=_share(((alone == label) & ~right)[is_old]) if patched else None,
        calibration_error=_calibration_error(told.probability, right),
        per_class={names[c]: _mean(right[label == c]) for c in label.unique().tolist()},
    )


@torch.no_grad()
def latency(model: PatchedModel, batch: int = 32, rounds: int = 15) -> Latency:
    """How long the target alone and the patched model take, medians of runs in turn."""
    how = preprocessing_of(model)
    device = next(model.parameters()).device
    x = torch.zeros(batch, *how.input_size, device=device)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for runs, network in zip(times, (model.target, model)):
            start = time.perf_counter()
            network(x)
            if device.type == "cuda":
                torch.cuda.synchronize()
            runs.append((time.perf_counter() - start) * 1000 / batch)
    target, patched = (sorted(runs)[rounds // 2] for runs in times)
    return Latency(target, patched, patched / target)


def _calibration_error(probability: Tensor, right: Tensor) -> float | None:
    """Expected calibration error in equal-width bins (Guo et al., ICML 2017)."""
    if not len(right):
        return None
    bins = (probability * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for b in bins.unique():
        inside = bins == b
        gap = probability[inside].double().mean() - right[inside].double().mean()
        error += gap.abs().item() * inside.double().mean().item()
    return _round(error)


def _share(hits: Tensor) -> float | None:
    return _mean(hits) if len(hits) else None


def _mean(hits: Tensor) -> float:
    return _round(hits.double().mean().item())


def _round(value: float) -> float:
    return round(value, 6)
