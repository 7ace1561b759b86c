"""What is to be cloned from where to where, with the images to do it with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data import (
    Images,
    ImageSource,
    Progress,
    choose,
    framed_like,
    images_per_class,
    load_images,
    no_progress,
    spread,
)
from ..errors import BadInput, Incompatible, UsageError
from ..manifest import Preprocessing
from ..network.load import Network

EVERY = 5  # one image in so many of each class is kept from every fit, for the figures
FEWEST = 5  # images a class must have for any to be held out
POOL = 500  # unlabelled images that are read, at most: more tell little more


@dataclass(frozen=True)
class CloneTarget:
    """A class to clone: its label in the source and the label it gets."""

    name: str
    source_name: str
    source_index: int

    @property
    def option(self) -> str:
        """As ``--classes`` takes it."""
        return self.name if self.name == self.source_name else f"{self.source_name}={self.name}"


@dataclass(frozen=True)
class Task:
    """Source, target, classes to clone, and (unless ``images`` is None) what to see them on.

    ``ids`` (N,) numbers the images' classes: 0..old-1 are ``originals``, then the clone classes.
    """

    source: Network
    target: Network
    classes: list[CloneTarget]
    originals: list[str]  # labels of the target that have images
    images: Images | None
    ids: Tensor
    held_out: Tensor  # (N,) bool
    pool: Images | None = None  # unlabelled, in place of images of originals

    @property
    def old(self) -> int:
        return len(self.originals)

    @property
    def new(self) -> int:
        return len(self.classes)

    @property
    def pixels(self) -> Images:
        """The images, of a task that has some."""
        if self.images is None:
            raise ValueError("a task without images")
        return self.images

    @property
    def is_new(self) -> Tensor:
        return self.ids >= self.old

    @property
    def judged(self) -> Tensor:
        """(N,) the images that figures are measured on: the held-out ones, all if there are none."""
        return self.held_out if bool(self.held_out.any()) else ~self.held_out

    @property
    def label_index(self) -> Tensor:
        """(N,) index of each image's class among [target's classes, clone classes]."""
        table = [self.target.labels.index(label) for label in self.originals]
        table += [self.target.ref.num_classes + k for k in range(self.new)]
        return torch.tensor(table)[self.ids]

    @property
    def levels(self) -> tuple[int, int]:
        """How many classes target and source have."""
        return self.target.ref.num_classes, self.source.ref.num_classes

    @property
    def columns(self) -> list[int]:
        """The clone classes among the source's logits."""
        return [c.source_index for c in self.classes]


def parse_classes(wanted: Sequence[str], source: Network, target: Network) -> list[CloneTarget]:
    """``source_label`` or ``source_label=new_label`` -> classes to clone.

    Raises ``Incompatible`` for a class that the source does not know or a label that the target
    has, ``UsageError`` for one named twice.
    """
    classes: list[CloneTarget] = []
    for item in _split(wanted, source):
        source_name, _, name = item.partition("=")
        if item in source.labels:  # a label may itself contain "="
            source_name, name = item, ""
        name = name or source_name
        if source.labels.count(source_name) != 1:
            known = ", ".join(source.labels[:20]) + (", …" if len(source.labels) > 20 else "")
            fault = (
                "knows no class" if source_name not in source.labels else "has more than one class"
            )
            raise Incompatible(
                f"{source.path}: the source {fault} '{source_name}'",
                hint=f"its classes are: {known}",
            )
        if name in target.labels:
            raise Incompatible(
                f"{target.path}: the target has a class '{name}' already",
                hint=f"clone it under another name: --classes '{source_name}={name}_2'",
            )
        if any(name == c.name or source_name == c.source_name for c in classes):
            raise UsageError(f"--classes names '{source_name}' twice")
        classes.append(CloneTarget(name, source_name, source.labels.index(source_name)))
    if not classes:
        raise UsageError("no class to clone", hint="--classes cat,dog")
    return classes


def _split(wanted: Sequence[str], source: Network) -> list[str]:
    """Commas separate classes, unless the whole is a label ("tench, Tinca tinca")."""
    items: list[str] = []
    for text in wanted:
        items += [text] if text in source.labels else [part.strip() for part in text.split(",")]
    return [item for item in items if item]


def default_classes(source: Network, target: Network) -> list[str]:
    """The source's classes that the target does not know."""
    names = [n for n in source.labels if n not in set(target.labels)]
    if not names:
        raise Incompatible(
            f"{target.path}: the target knows all classes of {source.path} already",
            hint="name the classes: --classes 'cat=cat_2'",
        )
    return names


def gather(
    source: Network,
    target: Network,
    classes: list[CloneTarget],
    data: ImageSource | None,
    *,
    limit: int | None,
    originals: bool,
    seed: int,
    skip_bad: bool = False,
    unlabelled: ImageSource | None = None,
    progress: Progress = no_progress,
) -> Task:
    """Reads the images that a task needs, ``limit`` a class (0: all; None: as many as are useful),
    and where there are none of original classes some of ``unlabelled``.

    Raises ``BadInput`` when a clone class has no images.
    """
    if data is None:
        empty = torch.zeros(0, dtype=torch.long)
        return Task(source, target, classes, [], None, empty, empty.bool())
    folders = {}
    for c in classes:
        folder = c.name if c.name in data.by_class else c.source_name
        if folder not in data.by_class or folder in target.labels:
            raise BadInput(
                f"{data.name}: no images of clone class '{c.name}'",
                hint=f"a folder called '{c.name}' was expected; found: "
                + ", ".join(list(data.by_class)[:20]),
            )
        folders[folder] = c.name
    old = [label for label in target.labels if label in data.by_class] if originals else []
    chosen = choose(data, old, images_per_class(limit, len(old)), seed)
    chosen |= choose(data, list(folders), images_per_class(limit, len(folders)), seed)
    views = views_of(source, target)
    images = load_images(data, chosen, views, skip_bad=skip_bad, progress=progress)
    order = [*old, *folders]
    ids = torch.tensor([order.index(label) for label in images.labels])
    task = Task(source, target, classes, old, images, ids, _held_out(ids))
    if unlabelled is None or old:
        return task
    every = unlabelled.unlabelled
    some = choose(every, [""], POOL, seed)
    pool = load_images(every, some, views, skip_bad=skip_bad, progress=progress)
    return replace(task, pool=pool)


def views_of(source: Network, target: Network) -> list[Preprocessing]:
    """How the target and the source see an image: the source what the target is shown of it."""
    frame = target.ref.preprocessing
    return [frame, framed_like(source.ref.preprocessing, frame)]


def subset(
    task: Task, per_class: int, *, held_out_every: int, originals: int | None = None
) -> Task:
    """The same task without the images that are held out now, on at most ``per_class`` of each class,
    one in so many of these held out; of the original classes on ``originals``, evenly drawn (None:
    all)."""
    keep = torch.zeros(len(task.ids), dtype=torch.bool)
    old = spread(task.old, task.old if originals is None else originals).tolist()
    for c in [*old, *range(task.old, task.old + task.new)]:
        index = ((task.ids == c) & ~task.held_out).nonzero()[:, 0]
        keep[index[spread(len(index), per_class)]] = True
    part = kept(task, keep)
    return replace(part, held_out=_held_out(part.ids, held_out_every))


def kept(task: Task, keep: Tensor) -> Task:
    """The same task on the images that ``keep`` (N,) marks; original classes that lose all theirs
    are left out."""
    old = [i for i in range(task.old) if bool((keep & (task.ids == i)).any())]
    number = torch.zeros(task.old + task.new, dtype=torch.long)
    left = [*old, *range(task.old, task.old + task.new)]
    number[left] = torch.arange(len(left))
    return replace(
        task,
        originals=[task.originals[i] for i in old],
        images=task.pixels.part(keep.nonzero()[:, 0]),
        ids=number[task.ids[keep]],
        held_out=task.held_out[keep],
    )


def _held_out(ids: Tensor, every: int = EVERY) -> Tensor:
    """Marks one image in ``every`` of each class that has enough (they come in random order)."""
    held = torch.zeros(len(ids), dtype=torch.bool)
    for c in ids.unique():
        index = (ids == c).nonzero()[:, 0]
        if len(index) >= FEWEST:
            held[index[every - 1 :: every]] = True
    return held


def default_name(classes: Sequence[CloneTarget]) -> str:
    """A clone's name from its labels, fit for tensor names: ``frog-horse-ship-truck``."""
    words = [
        "".join(ch if ch.isascii() and (ch.isalnum() or ch in "_-") else "_" for ch in c.name)
        for c in classes
    ]
    name = "-".join(words).strip("-_") or "clone"
    if len(name) > 48:
        digest = hashlib.sha256("\0".join(c.name for c in classes).encode()).hexdigest()[:8]
        name = f"{name[:39]}-{digest}"
    return name
