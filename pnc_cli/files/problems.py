"""What is wrong with a file that can be read: the figures and names in it that contradict each other.

Damage is refused where a file is opened; this is what ``pnc info`` looks for besides, so that what it
calls sound loads, runs and comes off again.  No torch: the index of architectures knows the tensors
of each, as timm builds it without arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..manifest import Manifest, Patched, canonical_json
from .architectures import Shapes, installed_index
from .clone_file import Clone
from .digest import combined_sha256
from .identity import Identity
from .opened import Checkpoint


def identity_problems(path: Path, known: Identity, shapes: Shapes) -> tuple[list[str], bool]:
    """What is wrong with what a checkpoint's documents say of it, and whether its tensors (by the
    names in the network) were held against the architecture: the index does not know all of them."""
    problems = _labels(str(path), known.label_names or (), known.num_classes)
    index = installed_index()
    match = index.find(shapes)
    architecture = known.architecture or ""
    if architecture not in match.names:
        return problems, False
    count = index.classes(architecture, shapes)
    stated = {
        "num_classes": known.num_classes,
        "label_names": len(known.label_names) if known.label_names else None,
    }
    for key, number in stated.items():
        if count is not None and number not in (None, count):
            problems.append(f"{path}: its classifier has {count} classes, but {key} says {number}")
    return problems, not known.model_args


def manifest_problems(path: Path, document: Manifest | Patched) -> list[str]:
    """What contradicts itself in a manifest of one clone, or of several in a target."""
    clones = document.clones if isinstance(document, Patched) else [document]
    problems = []
    for m in clones:
        where = f"{path}: clone '{m.name}'"
        for what, ref in (("source", m.source), ("target", m.target)):
            problems += _labels(f"{where}: its {what}", ref.label_names, ref.num_classes)
    if clones:
        problems += _taken(path, clones)
    return problems


def patched_problems(checkpoint: Checkpoint) -> list[str]:
    """The same of a patched checkpoint, whose sidecar and target have to fit besides."""
    path, clones = checkpoint.path, checkpoint.clones
    manifests = [c.manifest for c in clones]
    problems = []
    document = Patched("pnc.patched/1", checkpoint.target_sha256 or "", manifests)
    problems += manifest_problems(path, document)
    sidecar = path.with_suffix(".json")
    if sidecar.is_file() and sidecar.read_bytes() != canonical_json(document):
        problems.append(
            f"{sidecar}: differs from the manifest inside {path.name} (which is the truth)"
        )
    return problems + _other_targets(checkpoint, clones)


def _other_targets(checkpoint: Checkpoint, clones: Iterable[Clone]) -> list[str]:
    sha256 = combined_sha256(checkpoint.target_digests())
    return [
        f"{checkpoint.path}: clone '{c.name}' was made for other tensors than the target's"
        for c in clones
        if c.manifest.target.tensors_sha256 != sha256
    ]


def _taken(path: Path, clones: Iterable[Manifest]) -> list[str]:
    """Labels that stand for two classes of one network."""
    first = next(iter(clones))
    owners: dict[str, str] = dict.fromkeys(first.target.label_names, "the target")
    problems = []
    for m in clones:
        for label in m.labels:
            if label in owners:
                problems.append(
                    f"{path}: class '{label}' of clone '{m.name}' is a label of {owners[label]} too"
                )
            owners.setdefault(label, f"clone '{m.name}'")
    return problems


def _labels(where: str, labels: Iterable[str], count: int | None) -> list[str]:
    """Names of classes that stand twice, or are more or fewer than the classes."""
    numbers = Counter(labels)
    problems = [
        f"{where}: label '{label}' stands for {n} classes" for label, n in numbers.items() if n > 1
    ]
    total = sum(numbers.values())
    if total and count not in (None, total):
        problems.append(f"{where}: has {total} labels for {count} classes")
    return problems
