"""What a classifier, patched or not, is worth on labelled images."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .branch.patched import PatchedModel, answers, preprocessing_of
from .data import Images

BINS = 15  # of the calibration error


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

    def metric(self, name: str) -> float | None:
        return getattr(self, name)


METRICS = tuple(
    f.name for f in fields(Evaluation) if f.name not in ("images", "skipped", "per_class")
)


def evaluate(model: PatchedModel, images: Iterable[Images]) -> Evaluation:
    """Evaluates ``model`` on images of its classes, some at a time (:func:`~.data.read_images`)."""
    z, labels, skipped = answers(model, images)
    result = from_logits(z, labels, model.target_classes, model.label_names)
    return replace(result, skipped=skipped)


def from_logits(z: Tensor, label: Tensor, old: int, names: list[str]) -> Evaluation:
    """Figures from logits ``z`` (N, C), whose first ``old`` columns are the target's."""
    probability, predicted = z.softmax(1).max(1)
    alone = z[:, :old].argmax(1)
    right, is_old = predicted == label, label < old
    patched = z.shape[1] > old
    original, clone = _share(right[is_old]), _share(right[~is_old])
    both = original is not None and clone is not None
    return Evaluation(
        images=len(label),
        skipped=0,
        original_accuracy=original,
        clone_accuracy=clone,
        average_accuracy=_round((original + clone) / 2) if both else None,
        joint_accuracy=_share(right),
        branch_accuracy=_share((z[:, old:].argmax(1) + old == label)[~is_old]) if patched else None,
        target_accuracy=_share((alone == label)[is_old]),
        locality=_share((predicted == alone)[is_old]) if patched else None,
        right_to_wrong=_share(((alone == label) & ~right)[is_old]) if patched else None,
        calibration_error=_calibration_error(probability, right),
        per_class={names[c]: _share(right[label == c]) for c in label.unique().tolist()},
    )


@torch.no_grad()
def latency(model: PatchedModel, batch: int = 32, rounds: int = 15) -> tuple[float, float]:
    """Milliseconds per image of the target alone and of the patched model, medians in turn."""
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
    return tuple(sorted(runs)[rounds // 2] for runs in times)  # type: ignore[return-value]


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
    return _round(hits.double().mean().item()) if len(hits) else None


def _round(value: float) -> float:
    return round(value, 6)
