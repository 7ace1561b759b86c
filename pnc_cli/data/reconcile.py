"""What becomes of labels and folders: which belong together, which have no counterpart, and why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import some_of
from .listing import ImageSource, LeftOut

ALIKE = 0.8  # of two names, by ``difflib``


@dataclass(frozen=True)
class Reconciled:
    """Every folder and every label that was given, under what became of it.

    Numbers are of images, of folders in ``empty`` of other files.
    """

    source: str
    split: str | None
    clone: dict[str, int]  # clone classes that are used,
    original: dict[str, int]  # and original ones
    clone_without: list[str]  # classes without a folder
    original_without: list[str]
    not_used: dict[str, dict[str, int]]  # by reason: folders of known classes that are not used
    unknown: dict[str, int]  # folders that are no class
    meant: dict[str, str]  # class that such a folder is probably meant for
    empty: dict[str, int]  # folders without images
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """As JSON says it."""
        found = {
            "source": self.source,
            "split": self.split,
            "clone_classes": self.clone,
            "original_classes": self.original,
            "classes_without_folder": [*self.clone_without, *self.original_without],
            "folders_not_used": self.not_used,
            "folders_of_no_class": self.unknown,
            "probably_meant": self.meant,
            "folders_without_images": self.empty,
            "left_out": [{"why": p.why, "files": p.files} for p in self.left_out],
        }
        made: dict[str, Any] = _printable(found)
        return made

    @property
    def lines(self) -> list[str]:
        """In a few lines; nothing is said of what is as it should be."""
        split = f", split '{self.split}'" if self.split else ""
        used = [
            f"{what} {_counted(found)}"
            for what, found in (("clone", self.clone), ("original", self.original))
            if found
        ]
        lines = [f"data {self.source}{split}: " + ("; ".join(used) or "no folder is a class")]
        for what, names in (("clone", self.clone_without), ("original", self.original_without)):
            if names:
                lines.append(f"  {what} classes without a folder: {some_of(names)}")
        for why, found in self.not_used.items():
            lines.append(f"  not used, {why}: {_counted(found)}")
        if self.unknown:
            lines.append("  folders that are no class, not used: " + self._guessed())
        if self.empty:
            told = [f"{n} ({_files(count)})" for n, count in self.empty.items()]
            lines.append(f"  folders without images: {some_of(told)}")
        for part in self.left_out:
            lines.append(
                f"  left out, {part.why}: {_files(len(part.files))} ({some_of(part.files, 3)})"
            )
        return lines

    def _guessed(self) -> str:
        each = [
            n + (f" (did you mean '{self.meant[n]}'?)" if n in self.meant else "")
            for n in sorted(self.unknown, key=lambda n: n not in self.meant)
        ]
        return some_of(each)


def reconcile(
    source: ImageSource,
    clone: Mapping[str, str],
    original: Sequence[str],
    *,
    clone_without: Sequence[str] = (),
    not_used: Mapping[str, Iterable[str]] | None = None,
) -> Reconciled:
    """``clone`` maps folders to the clone classes that they teach, ``original`` are the labels of the
    target; ``clone_without`` are classes that were to be cloned and have no folder, ``not_used``
    says why folders of other known labels are not used."""
    size = {name: len(indices) for name, indices in source.by_class.items()}
    others: dict[str, dict[str, int]] = {}
    claimed = {*clone, *original}
    for why, labels in (not_used or {}).items():
        found = {n: size[n] for n in labels if n in size and n not in clone}
        if found:
            others[why] = found
        claimed |= found.keys()
    refused = {n for found in others.values() for n in found}
    unknown = {n: count for n, count in size.items() if n not in claimed}
    original_without = [n for n in original if n not in size and n not in source.empty]
    free = [*clone_without, *(n for n in original if n not in size)]
    return Reconciled(
        source=source.name,
        split=source.split,
        clone={label: size[folder] for folder, label in clone.items()},
        original={n: size[n] for n in original if n in size and n not in refused},
        clone_without=list(clone_without),
        original_without=original_without,
        not_used=others,
        unknown=unknown,
        meant={n: label for n in unknown if (label := likely(n, free)) is not None},
        empty=source.empty,
        left_out=source.left_out,
    )


def likely(name: str, labels: Iterable[str]) -> str | None:
    """The label that ``name`` is probably meant for: but for case, signs, a plural, a slip of the
    keys, or synonyms after a comma."""
    labels = list(labels)
    plain: dict[str, str] = {}
    for label in labels:
        for form in (label, label.split(",")[0]):
            plain.setdefault(_plain(form), label)
    own = _plain(name)
    if not own:
        return None
    for form in (own, own + "s", own + "es", own.removesuffix("s"), own.removesuffix("es")):
        if form in plain:
            return plain[form]
    if re.search(r"\d", own) or len(own) < 3:
        return None  # numbers and ids that look alike are others
    for form, label in plain.items():
        if sorted(form) == sorted(own) and form[0] == own[0]:
            return label
    words = [form for form in plain if not re.search(r"\d", form)]
    near = difflib.get_close_matches(own, words, n=1, cutoff=ALIKE)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return "".join(ch for ch in name.casefold() if ch.isalnum())


def _counted(found: Mapping[str, int]) -> str:
    return some_of([f"{name} ({count})" for name, count in found.items()])


def _files(count: int) -> str:
    return f"{count} file" + ("" if count == 1 else "s")


def _printable(value: Any) -> Any:
    """Names of files are bytes, which need not be text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_printable(k): _printable(v) for k, v in value.items()}
    return [_printable(v) for v in value] if isinstance(value, list) else value
