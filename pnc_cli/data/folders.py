"""Folders and tars with one sub-folder a class.

A class is called as the folder that its images lie in, at whatever depth.  Nothing is passed over
without being listed: hidden files, what is no image, and folders that hold none.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import BadInput
from .bounds import MAX_ENTRIES

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .tga .ico "
    ".jp2 .avif".split()
)  # of images that Pillow decodes
JUNK = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}  # beside names that begin with a dot
SPLIT = re.compile(
    r"(train|val|valid|validation|test|eval|evaluation|dev|holdout)(ing|s)?(?![a-z])", re.I
)
EXAMPLE = "DATA/cat/1.jpg, DATA/dog/2.jpg, …"


@dataclass(frozen=True)
class Found:
    """All that lies in a folder or tar: names of files, and of folders, relative to it."""

    files: list[str]
    folders: list[str] = field(default_factory=list)
    links_up: list[str] = field(default_factory=list)  # to a folder that they lie in
    links_again: list[str] = field(default_factory=list)  # to a folder, seen by another way before
    special: list[str] = field(default_factory=list)  # sockets, pipes, devices


@dataclass(frozen=True)
class Sorted:
    """The same, sorted out: ``images`` in natural order, and each folder that has none, with how
    many other files are in it."""

    images: list[str]
    by_class: dict[str, list[int]]  # under "" those beside the folders
    empty: dict[str, int]
    hidden: list[str]
    others: list[str]


def walk(root: Path) -> Found:
    """All files under ``root``, each link followed once.

    Raises ``BadInput`` for a folder that cannot be listed, and for more than ``MAX_ENTRIES``.
    """
    found, followed, count = Found([]), set(), 0
    real = os.path.realpath(root)
    waiting: list[tuple[str, str, frozenset[str]]] = [("", str(root), frozenset({real}))]
    while waiting:
        name, path, above = waiting.pop()
        try:
            with os.scandir(path) as listed:
                entries = sorted(listed, key=lambda e: e.name)
        except OSError as e:
            raise BadInput(f"{path}: cannot be listed: {e.strerror}") from e
        count += len(entries)
        if count > MAX_ENTRIES:
            raise _too_many(str(root))
        for entry in entries:
            own = f"{name}/{entry.name}" if name else entry.name
            if _is_folder(entry):
                target = os.path.realpath(entry.path) if entry.is_symlink() else ""
                if target in above:
                    found.links_up.append(own)
                    continue
                if target:  # two folders of links to each other would be walked in all orders
                    link = os.path.realpath(path), entry.name
                    if link in followed:
                        found.links_again.append(own)
                        continue
                    followed.add(link)
                found.folders.append(own)
                inside = target or os.path.realpath(entry.path)
                waiting.append((own, entry.path, above | {inside}))
            elif _is_dangling(entry) or entry.is_file():
                found.files.append(own)
            else:
                found.special.append(own)
    return found


def _too_many(where: str) -> BadInput:
    return BadInput(
        f"{where}: has more than {MAX_ENTRIES:,} files and folders, pnc's limit",
        hint="is there a link in it to somewhere else?",
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    try:
        entry.stat()
    except OSError:
        return True
    return False


def members(tar: tarfile.TarFile) -> tuple[Found, dict[str, tarfile.TarInfo]]:
    """What is in a tar, and each of its files; the last of several by one name, as tar has it."""
    files: dict[str, tarfile.TarInfo] = {}
    folders: list[str] = []
    special: list[str] = []
    for member in tar:
        if len(files) + len(folders) + len(special) > MAX_ENTRIES:
            raise _too_many(str(tar.name))
        name = os.path.normpath(member.name).lstrip("/").replace(os.path.sep, "/")
        if member.isdir():
            if name != ".":
                folders.append(name)
        elif member.isfile() or member.islnk() or member.issym():
            files[name] = member
        else:
            special.append(name)
    return Found(list(files), folders, special=special), files


def sort_out(found: Found) -> Sorted:
    """Tells images from the rest, and groups them by the folder that they lie in."""
    hidden = [f for f in found.files if _is_hidden(f)]
    seen = [f for f in found.files if not _is_hidden(f)]
    images = sorted((f for f in seen if _is_image(f)), key=_in_order)
    others = sorted(f for f in seen if not _is_image(f))
    by_class: dict[str, list[int]] = {}
    for i, name in enumerate(images):
        by_class.setdefault(PurePosixPath(name).parent.name, []).append(i)
    return Sorted(images, by_class, _without_images(found, images, others), hidden, others)


def _without_images(found: Found, images: Sequence[str], others: Sequence[str]) -> dict[str, int]:
    """Folders without an image anywhere in them, the outermost, and how many files they have."""
    held = {str(p) for name in images for p in PurePosixPath(name).parents}
    every = {str(p) for name in [*others, *images] for p in PurePosixPath(name).parents}
    bare = sorted({f for f in [*found.folders, *every] if f not in held and not _is_hidden(f)})
    outermost = [
        f
        for f in bare
        if f != "." and not {str(p) for p in PurePosixPath(f).parents} & set(bare) - {"."}
    ]
    count = dict.fromkeys(outermost, 0)
    for name in others:
        for parent in map(str, PurePosixPath(name).parents):
            if parent in count:
                count[parent] += 1
    return {PurePosixPath(f).name: n for f, n in count.items()}


def check_places(source: str, images: Iterable[str]) -> None:
    """Raises ``BadInput`` where class folders lie in several places that are splits of the data, or
    have a class in common: one of them is meant, and which is not to be guessed."""
    folders = sorted({str(PurePosixPath(name).parent) for name in images} - {"."})
    places: dict[str, set[str]] = {}
    for folder in folders:
        path = PurePosixPath(folder)
        places.setdefault(str(path.parent), set()).add(path.name)
    classes = [name for names in places.values() for name in names]
    twice = sorted({name for name in classes if classes.count(name) > 1}) if len(places) > 1 else []
    splits = sorted(p for p in places if any(map(SPLIT.match, PurePosixPath(p).parts)))
    if not twice and len(splits) < 2:
        return
    listed = [f"{source}/{p}" if p != "." else source for p in sorted(places)]
    if twice and all(SPLIT.fullmatch(name) for name in twice):
        label = PurePosixPath(sorted(places)[0]).name
        raise BadInput(
            f"{source}: the folders of classes are split again, each into {' and '.join(twice)}: "
            f"{', '.join(listed[:3])}",
            hint=f"one folder a split, with one a class in it: {twice[0]}/{label}/1.jpg; "
            f"then --data {twice[0]}",
        )
    what = (
        f"'{twice[0]}' is in {_listing(listed, places, twice[0])}" if twice else ", ".join(listed)
    )
    first = next((s for s in sorted(splits) if "train" in s.lower()), None)
    first = first or next(p for p in sorted(places, key=lambda p: (p == ".", p)))
    raise BadInput(
        f"{source}: there are {len(places)} sets of class folders in it, which are not to be mixed: "
        f"{what}",
        hint=f"give one of them: --data {source}/{first}",
    )


def _listing(listed: Sequence[str], places: dict[str, set[str]], label: str) -> str:
    having = [where for where, p in zip(listed, sorted(places)) if label in places[p]]
    return " and ".join(having[:4]) + (" and more" if len(having) > 4 else "")


def _is_hidden(name: str) -> bool:
    """Whether a file or a folder that it lies in is what systems and tools leave behind."""
    return any(p.startswith(".") or p.lower() in JUNK for p in PurePosixPath(name).parts)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _in_order(name: str) -> tuple[list[str | int], str]:
    """As people count: 2.png before 10.png."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(p) if k % 2 else p for k, p in enumerate(parts)], name
