"""Which images a data source has, by class; nothing is decoded yet.

A source is a folder or tar with one sub-folder a class (:mod:`.folders`), or ``hfds/…``, what
Hugging Face's ``datasets`` reads (:mod:`.hub`).
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from PIL import Image

from ..errors import BadInput, UsageError
from ..files import kinds
from ..files.bounded import open_regular
from ..files.inputs import remember, remember_many
from .bounds import MAX_FILE, Member, too_large
from .folders import EXAMPLE, Found, Sorted, check_places, members, sort_out, walk

PER_CLASS = 100  # images of a class that are read, unless another number is asked for,
TOGETHER = 4000  # images of all classes, about, where that is fewer, but
LEAST = 5  # of each
HUB = "hfds/"
UNREAD = {
    "torch/": "torchvision's files are pickles, or folders: write the images out as folders, or "
    "give the folder itself",
    "wds/": "shards name no classes: unpack them into one folder a class, or give hfds/FOLDER of "
    "parquet files",
    "hfids/": "what is streamed cannot be drawn from by class: hfds/ reads the same data",
    "tfds/": "write the images out as folders, or as parquet for hfds/",
}
MAGIC = (
    (kinds.ZIP, "a zip archive", "unzip it, and give the folder"),
    (kinds.GZIP, "compressed with gzip", "unpack it: tar xf {}, and give the folder"),
    (kinds.BZIP2, "compressed with bzip2", "unpack it: tar xf {}, and give the folder"),
    (kinds.XZ, "compressed with xz", "unpack it: tar xf {}, and give the folder"),
    (kinds.ZSTD, "compressed with zstd", "unpack it: tar xf {}, and give the folder"),
    (kinds.SEVEN_ZIP, "a 7z archive", "unpack it, and give the folder"),
    (kinds.RAR, "a RAR archive", "unpack it, and give the folder"),
    (kinds.PARQUET, "a parquet file", "--data hfds/{} reads it"),
    (kinds.PNG, "one image", "give the folder that holds the class folders"),
    (kinds.JPEG, "one image", "give the folder that holds the class folders"),
)


class Files(Protocol):
    """Where images are read from."""

    def read(self, index: int) -> tuple[str, bytes | Image.Image | Exception]:
        """Name and undecoded bytes of an image, or what went wrong in reading them."""


@dataclass(frozen=True)
class LeftOut:
    """Files that are not read, and why."""

    why: str
    files: list[str]


@dataclass(frozen=True)
class ImageSource:
    """The images of a data source by class, and what else lies there."""

    name: str
    by_class: dict[str, list[int]]
    files: Files
    empty: dict[str, int] = field(default_factory=dict)  # folders without images: their other files
    left_out: list[LeftOut] = field(default_factory=list)
    split: str | None = None  # that was read, of a source that has some

    @property
    def unlabelled(self) -> ImageSource:
        """The same images without their classes."""
        return ImageSource(self.name, {"": sorted(sum(self.by_class.values(), []))}, self.files)

    def __len__(self) -> int:
        return sum(map(len, self.by_class.values()))

    def read(self, index: int) -> tuple[str, bytes | Image.Image | Exception]:
        """File name and undecoded bytes of an image, or what went wrong in reading them."""
        return self.files.read(index)


def open_images(source: str, *, labelled: bool = True, split: str | None = None) -> ImageSource:
    """Lists the images of a data source, of those that are not ``labelled`` all that lie anywhere.

    ``split`` is the one to read of a source that has several.  Raises ``BadInput`` where there are
    no images, or several sets of class folders; ``UsageError`` for a split that cannot be had.
    """
    for prefix, instead in UNREAD.items():
        if source.lower().startswith(prefix) and not Path(source).exists():
            raise BadInput(f"{source}: {prefix}… is not read", hint=instead)
    if source.lower().startswith(HUB):
        from .hub import open_hub  # a package that few have

        where = Path(source[len(HUB) :])
        remember_many(lambda: where.rglob("*") if where.is_dir() else [where])
        by_class, rows, split = open_hub(source[len(HUB) :], split)
        return _checked(ImageSource(source, by_class, rows, split=split))
    path = Path(source)
    if not path.exists():
        raise BadInput(
            f"{source}: no such folder or tar",
            hint="--data names a folder or .tar with one sub-folder a class",
        )
    if split is not None:
        inside = path / split
        there = f": --data {inside}" if inside.is_dir() else ", if there is one"
        raise UsageError(
            f"--split {split}: only hfds/… sources have splits by name",
            hint=f"give the folder of the split{there}",
        )
    return _of_folder(path, source, labelled) if path.is_dir() else _of_tar(path, source, labelled)


def _of_folder(path: Path, source: str, labelled: bool) -> ImageSource:
    found = walk(path)
    listed = sort_out(found)
    remember_many(lambda: (path / name for name in listed.images))
    return _source(source, InFolder(source, path, listed.images), listed, found, labelled)


def _of_tar(path: Path, source: str, labelled: bool) -> ImageSource:
    if path.suffix.lower() != ".tar":
        raise _not_a_tar(path, source)
    try:
        remember(path)
        # it is read from as long as the source is
        tar = tarfile.open(fileobj=open_regular(path), mode="r:", tarinfo=Member)
        found, infos = members(tar)
    except (tarfile.TarError, OSError, EOFError) as e:
        raise _not_a_tar(path, source, e) from e
    listed = sort_out(found)
    files = InTar(source, tar, [infos[name] for name in listed.images])
    return _source(source, files, listed, found, labelled)


def _source(name: str, files: Files, listed: Sorted, found: Found, labelled: bool) -> ImageSource:
    by_class = dict(listed.by_class)
    beside = [listed.images[i] for i in by_class.get("", ())]
    if labelled:
        check_places(name, listed.images)
        by_class.pop("", None)
    reasons = [
        ("no image that is read, by its name", listed.others),
        ("hidden, or left behind by a system", listed.hidden),
        ("beside the class folders", beside if labelled else []),
        ("a link to a folder that it lies in", found.links_up),
        ("a link that was followed before, by another way", found.links_again),
        ("no plain file", found.special),
    ]
    left_out = [LeftOut(why, files_) for why, files_ in reasons if files_]
    return _checked(ImageSource(name, by_class, files, listed.empty, left_out))


def _checked(source: ImageSource) -> ImageSource:
    if not source.by_class:
        what = "; ".join(f"{len(part.files)} files: {part.why}" for part in source.left_out)
        raise BadInput(
            f"{source.name}: no images found" + (f" ({what})" if what else ""),
            hint=f"expected one sub-folder a class: {EXAMPLE}",
        )
    return source


def _not_a_tar(path: Path, source: str, error: Exception | None = None) -> BadInput:
    try:
        with open_regular(path) as file:
            head = file.read(8)
    except OSError as e:
        return BadInput(f"{source}: cannot be read: {e.strerror}")
    for magic, what, instead in MAGIC:
        if head.startswith(magic):
            return BadInput(
                f"{source}: is not a folder or a .tar: it is {what}", instead.format(path)
            )
    if not head:
        return BadInput(f"{source}: is not a folder or a .tar: it is empty")
    what = "is not a folder or a .tar" if error is None else f"cannot be read as a tar: {error}"
    return BadInput(f"{source}: {what}", hint=f"expected one sub-folder a class: {EXAMPLE}")


@dataclass(frozen=True)
class InFolder:
    """Images of a folder, by their names relative to it."""

    name: str
    root: Path
    images: list[str]

    def read(self, index: int) -> tuple[str, bytes | Exception]:
        path, name = self.root / self.images[index], f"{self.name}:{self.images[index]}"
        try:
            with open_regular(path) as file:
                return name, _bounded(name, file)
        except (OSError, BadInput, MemoryError) as e:  # a dangling link
            return name, e


def _bounded(name: str, file: IO[bytes]) -> bytes:
    """All of ``file``.  Raises ``BadInput`` where that is more than pnc reads of an image."""
    size = file.seek(0, 2)
    if size > MAX_FILE:
        raise too_large(name, size)
    file.seek(0)
    return file.read(MAX_FILE)


@dataclass(frozen=True)
class InTar:
    """Images of a tar; to be read by one thread at a time."""

    name: str
    tar: tarfile.TarFile
    images: list[tarfile.TarInfo]

    def read(self, index: int) -> tuple[str, bytes | Exception]:
        member = self.images[index]
        name = f"{self.name}:{member.name}"
        try:
            file = self.tar.extractfile(member)
            if file is None:
                return name, ValueError("a link to what is no file")
            with file:
                return name, _bounded(name, file)
        except Exception as e:  # a link to nothing, a truncated tar
            return name, e


def images_per_class(asked: int | None, classes: int) -> int | None:
    """How many images to read of each of so many classes, None for all: as ``asked`` (0: all), else
    ``PER_CLASS``, and fewer where the classes are many."""
    if asked is not None:
        return asked or None
    return min(PER_CLASS, max(LEAST, TOGETHER // max(classes, 1)))


def choose(
    source: ImageSource, labels: Sequence[str], limit: int | None, seed: int
) -> dict[str, list[int]]:
    """Images of each label that the source has, at most ``limit`` each, drawn by ``seed``."""
    chosen = {}
    for label in labels:
        if indices := list(source.by_class.get(label, ())):
            random.Random(f"{seed}:{label}").shuffle(indices)
            chosen[label] = indices[:limit]
    return chosen
