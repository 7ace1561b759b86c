"""What is to be cloned from where to where, with the images to do it with."""

from __future__ import annotations

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
from ..errors import BadInput
from ..manifest import Preprocessing
from ..network.load import Network
from ..plan import FEWEST, Side
from .classes import CloneTarget, folders_of

EVERY = 5  # one image in so many of each class is kept from every fit, for the figures
POOL = 500  # unlabelled images that are read, at most: more tell little more


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
        """(N,) the images that figures are measured on: of the clone classes and of the original ones
        those that are held out, or all where none of that side is (:attr:`fitted`)."""
        judged = self.held_out.clone()
        for side in (self.is_new, ~self.is_new):
            if not bool(self.held_out[side].any()):
                judged[side] = True
        return judged

    @property
    def fitted(self) -> list[Side]:
        """The sides whose figures are measured on images that were fitted on, as none are held out."""
        sides: dict[Side, Tensor] = {"clone": self.is_new, "original": ~self.is_new}
        return [
            name
            for name, side in sides.items()
            if bool(side.any()) and not bool(self.held_out[side].any())
        ]

    @property
    def not_held_out(self) -> dict[str, int]:
        """Classes of which no image is held out, and how many they have: too few."""
        names = [*self.originals, *(c.name for c in self.classes)]
        found = {}
        for i, name in enumerate(names):
            own = self.ids == i
            if bool(own.any()) and not bool(self.held_out[own].any()):
                found[name] = int(own.sum())
        return found

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
    folders = folders_of(classes, data, source, target)
    old = [label for label in target.labels if label in data.by_class] if originals else []
    chosen = choose(data, old, images_per_class(limit, len(old)), seed)
    chosen |= choose(data, list(folders), images_per_class(limit, len(folders)), seed)
    views = views_of(source, target)
    images = load_images(data, chosen, views, skip_bad=skip_bad, progress=progress)
    seen = set(images.labels)
    for folder, name in folders.items():
        if folder not in seen:
            raise BadInput(
                f"{data.name}: no image of clone class '{name}' decodes",
                hint=f"look at the {len(data.by_class[folder])} files in {data.name}/{folder}",
            )
    old = [label for label in old if label in seen]
    order = {label: i for i, label in enumerate([*old, *folders])}
    ids = torch.tensor([order[label] for label in images.labels])
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
