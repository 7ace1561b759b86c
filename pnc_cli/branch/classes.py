"""Which classes are cloned, under which labels, and which folders show them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..data import ImageSource, likely
from ..errors import BadInput, Incompatible, UsageError
from ..network.load import Network


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


def parse_classes(
    wanted: Sequence[str], source: Network, target: Network, taken: Sequence[str] = ()
) -> list[CloneTarget]:
    """``source_label`` or ``source_label=new_label`` -> classes to clone.

    Raises ``Incompatible`` for a class that the source does not know or a label that the target
    has, or that clones in its file have ``taken``; ``UsageError`` for one named twice.
    """
    classes: list[CloneTarget] = []
    for item in _split(wanted, source):
        source_name, _, name = item.partition("=")
        if item in source.labels:  # a label may itself contain "="
            source_name, name = item, ""
        name = name or source_name
        if source.labels.count(source_name) != 1:
            raise _not_one(source_name, source, target)
        if name in target.labels or name in taken:
            having = (
                "the target has" if name in target.labels else "a clone in the target's file has"
            )
            raise Incompatible(
                f"{target.path}: {having} a class '{name}' already",
                hint=f"clone it under another name: --classes '{source_name}={name}_2'",
            )
        if any(name == c.name or source_name == c.source_name for c in classes):
            raise UsageError(f"--classes names '{source_name}' twice")
        classes.append(CloneTarget(name, source_name, source.labels.index(source_name)))
    if not classes:
        raise UsageError("no class to clone", hint="--classes cat,dog")
    return classes


def _not_one(name: str, source: Network, target: Network) -> Incompatible:
    """The source has no class ``name``, or several."""
    if name in source.labels:
        return Incompatible(f"{source.path}: the source has more than one class '{name}'")
    hint = f"its classes are: {_listed(source.labels)}"
    if names_nothing(source):
        hint = f"it names no classes, so they are numbered: {hint}; {_how_to_name(source)}"
    elif (near := likely(name, source.labels)) is not None:
        hint = f"did you mean '{near}'? {hint}"
    elif name in target.labels:
        hint = f"the target does: are the two swapped? {hint}"
    return Incompatible(f"{source.path}: the source knows no class '{name}'", hint=hint)


def _split(wanted: Sequence[str], source: Network) -> list[str]:
    """Commas separate classes, unless the whole is a label ("tench, Tinca tinca")."""
    items: list[str] = []
    for text in wanted:
        items += [text] if text in source.labels else [part.strip() for part in text.split(",")]
    return [item for item in items if item]


def default_classes(source: Network, target: Network, taken: Sequence[str] = ()) -> list[str]:
    """The source's classes that neither the target knows nor clones in its file have ``taken``.

    Raises ``Incompatible`` where there are none, or nothing says which the target knows.
    """
    if names_nothing(target) and not all(n.isdigit() for n in source.labels):
        raise Incompatible(
            f"{target.path}: names no classes (0 to {len(target.labels) - 1} assumed), so which of "
            f"the source's it knows already cannot be told",
            hint=f"{_how_to_name(target)}; or say which to clone: --classes '{source.labels[0]}'",
        )
    known = {*target.labels, *taken}
    names = [n for n in source.labels if n not in known]
    if names:
        return names
    if names_nothing(target) and names_nothing(source):
        raise Incompatible(
            f"{source.path} and {target.path} name no classes: both are taken to be numbered from 0, "
            "so none is new",
            hint=f"{_how_to_name(source)}, and likewise for the target",
        )
    raise Incompatible(
        f"{target.path}: the target knows all classes of {source.path} already",
        hint=f"name the classes: --classes '{source.labels[0]}={source.labels[0]}_2'",
    )


def with_folders(names: Sequence[str], data: ImageSource, source: Network) -> list[str]:
    """Of classes that nobody asked for by name, those that there are images of.

    Raises ``BadInput`` where there are none, and where a folder is but misspelt.
    """
    found = [n for n in names if n in data.by_class]
    spare = [f for f in data.by_class if f not in source.labels and f not in found]
    without = [n for n in names if n not in data.by_class and n not in data.empty]
    for folder in spare if found else ():
        if (near := likely(folder, without)) is not None:
            raise BadInput(
                f"{data.name}: '{folder}' is no class; is it '{near}', which has no folder?",
                hint=f"mv {data.name}/{folder} {data.name}/{near}, or name the classes to clone: "
                f"--classes '{','.join(found[:20])}'",
            )
    if not found:
        raise no_images(names[0], names[0], data, source)
    return found


def folders_of(
    classes: Sequence[CloneTarget], data: ImageSource, source: Network, target: Network
) -> dict[str, str]:
    """The folder of each clone class -> its label.  Raises ``BadInput`` for one without images."""
    folders: dict[str, str] = {}
    for c in classes:
        folder = c.name if c.name in data.by_class else c.source_name
        if folder not in data.by_class or folder in target.labels:
            raise no_images(c.name, c.source_name, data, source)
        if folder in folders:
            raise BadInput(
                f"{data.name}: the folder '{folder}' would teach both '{folders[folder]}' and "
                f"'{c.name}'",
                hint=f"call the folders as the labels: '{folders[folder]}' and '{c.name}'",
            )
        folders[folder] = c.name
    return folders


def no_images(name: str, source_name: str, data: ImageSource, source: Network) -> BadInput:
    """The error for a clone class without images, with what is there instead."""
    what = f"{data.name}: no images of clone class '{name}'"
    for folder in (name, source_name):
        if folder in data.empty:
            files = data.empty[folder]
            return BadInput(
                f"{what}: the folder '{folder}' is there, with 0 images and {files} other files",
                hint="images are files ending in .png, .jpg, .webp, .bmp, .tif, .gif and the like",
            )
    expected = f"a folder called '{name}' was expected; found: {_listed(list(data.by_class))}"
    if names_nothing(source):
        return BadInput(
            f"{what}: {source.path} names no classes, so they are numbered",
            hint=f"{_how_to_name(source)}; {expected}",
        )
    near = next((f for f in data.by_class if likely(f, [name]) is not None), None)
    if near is not None:
        expected = f"mv {data.name}/{near} {data.name}/{name}; {expected}"
    return BadInput(what, hint=expected)


def names_nothing(network: Network) -> bool:
    """Whether its classes have numbers for names, as those have whose files name none."""
    return network.labels == [str(i) for i in range(len(network.labels))]


def check_named(target: Network, originals: Sequence[str], unknown: Sequence[str]) -> None:
    """Raises ``Incompatible`` where folders are no class and the target's are not named: they may be
    its classes, and would be left out."""
    if unknown and not originals and names_nothing(target):
        raise Incompatible(
            f"{target.path}: names no classes (0 to {len(target.labels) - 1} assumed), and no folder "
            f"is called so: {_listed(unknown)} match none",
            hint=f"{_how_to_name(target)}; or --no-originals to go on without them",
        )


def _how_to_name(network: Network) -> str:
    beside = network.path.with_suffix(".json")
    return f'put "label_names": [...], in the order of its outputs, into {beside}'


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


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
