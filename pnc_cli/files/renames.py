"""Other labels for the classes of clones: ``old=new``, or ``clone:old=new`` for those of one clone.

Two clones may both have a class called ``pedestrian``: one of them has to get another label, and the
other need not, so ``old=new`` leaves it to the first that is given and renames the next.  Labels may
hold ``=`` and ``:`` themselves, so what is meant is settled by the clones that there are.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from .clone_file import Clone

Renames = Mapping[str, str] | Iterable[str]  # {"old": "new"}, or ["old=new"]; old may be clone:old
Given = Sequence[tuple[Clone, Sequence[str]]]  # clones, and the labels that they came with
Wanted = dict[str | tuple[str, str], str]  # label, or clone and label -> new label


def renamed(clones: Sequence[Clone], renames: Renames) -> list[Clone]:
    """The clones under their new labels.

    Raises ``UsageError`` for a class that none of them has, and for one that is renamed twice.
    """
    wanted: Wanted = {}
    pairs = (
        renames.items() if isinstance(renames, Mapping) else [_split(r, clones) for r in renames]
    )
    for old, new in pairs:
        key = _meant(old, clones)
        if key is None:
            known = ", ".join(f"{label} ({c.name})" for c in clones for label in c.manifest.labels)
            raise UsageError(
                f"--rename {old}={new}: no clone has a class '{old}'",
                hint=f"classes are, with their clones: {known}",
            )
        if key in wanted and wanted[key] != new:
            raise UsageError(
                f"--rename {old}: renamed twice, to '{wanted[key]}' and to '{new}'",
                hint="leave one out; clone:old=new renames the class of one clone",
            )
        wanted[key] = new
    names: list[dict[str, str]] = [{} for _ in clones]
    for label in dict.fromkeys(label for c in clones for label in c.manifest.labels):
        having = [i for i, c in enumerate(clones) if label in c.manifest.labels]
        for i in having:
            if (alone := wanted.get((clones[i].name, label))) is not None:
                names[i][label] = alone
        rest = [i for i in having if label not in names[i]]
        if (new := wanted.get(label)) is not None:
            for i in rest[1:] or rest:
                names[i][label] = new
    return [replace(c, manifest=c.manifest.renamed(n)) for c, n in zip(clones, names)]


def _meant(old: str, clones: Sequence[Clone]) -> str | tuple[str, str] | None:
    """The class that ``old`` stands for: one of one clone, or every class of that label."""
    for clone in clones:
        if old.startswith(f"{clone.name}:"):
            label = old.removeprefix(f"{clone.name}:")
            if label in clone.manifest.labels:
                return clone.name, label
    return old if any(old in c.manifest.labels for c in clones) else None


def _split(item: str, clones: Sequence[Clone]) -> tuple[str, str]:
    """``old=new`` at that ``=`` which leaves a class's label before it, else at the first."""
    parts = item.split("=")
    splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    splits = [(old, new) for old, new in splits if old and new]
    if not splits:
        raise UsageError(
            f"--rename '{item}': expected old=new",
            hint="--rename old=new, or --rename clone:old=new for the class of one clone",
        )
    return next((s for s in splits if _meant(s[0], clones)), splits[0])


def how_to_rename(
    clone: Clone, label: str, taken: Iterable[str], target: Path, given: Given
) -> str:
    """The command that injects all clones of ``given`` into ``target``, with the class ``label`` of
    ``clone`` under one to spare, and all others under those that they have now."""
    options, taken = [], set(taken)
    for one, labels in given:
        for old, new in zip(labels, one.manifest.labels):
            if one is clone and new == label:
                number = 2
                while (new := f"{old}_{number}") in taken:
                    number += 1
                label = ""  # of two that are called so, the first
            if new != old:
                options.append("--rename " + shlex.quote(f"{one.name}:{old}={new}"))
    files = " ".join(shlex.quote(str(p)) for p in (target, *(c.path for c, _ in given)))
    return (
        f"inject it under another label: pnc inject {files} {' '.join(options)} "
        "-o patched.safetensors"
    )
