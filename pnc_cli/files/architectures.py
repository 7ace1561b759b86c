"""Which of timm's architectures have these tensors?  Answered from an index, without torch or timm.

The index holds, for each name of timm's registry, a hash of its tensors' names and one of their
names and shapes.  Dimensions that vary with the number of classes or of image channels are left
out of the second (they are listed in the index), so a file is found whatever its classes are.
Some names build networks with equal tensors: for those the index says what tells them apart.
``pnc_cli.network.registry`` makes the index from timm itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

Shapes = Mapping[str, Sequence[int]]  # tensor name -> shape
Free = frozenset[tuple[str, int]]  # (tensor, axis): dimensions that are left out
SHIPPED = "architectures.json"  # beside this module


@dataclass(frozen=True)
class Match:
    """The ``names`` with a file's tensors; if there are none, those with tensors of its names."""

    names: tuple[str, ...]
    traits: Mapping[str, Mapping[str, str]]  # of each name, where there are several
    near: tuple[str, ...] = ()
    difference: str = ""  # where the file differs from the first of ``near``

    @property
    def chosen(self) -> str | None:
        """The one architecture, if there is one or if all that match build the same network."""
        same = len({tuple(sorted(self.traits.get(n, {}).items())) for n in self.names}) == 1
        return min(self.names, key=lambda n: (len(n), n)) if same else None


@dataclass
class Index:
    """Architectures by their tensors; ``groups`` maps (hash of names, free) to {hash: names}."""

    timm: str
    groups: dict[tuple[str, Free], dict[str, list[str]]] = field(default_factory=dict)
    traits: dict[str, dict[str, str]] = field(default_factory=dict)
    unbuilt: dict[str, str] = field(default_factory=dict)  # name -> why it is in no group

    @property
    def names(self) -> set[str]:
        known = {n for shapes in self.groups.values() for names in shapes.values() for n in names}
        return known | set(self.unbuilt)

    def add(self, name: str, shapes: Shapes, free: Free) -> None:
        """Adds an architecture with these tensors."""
        group = self.groups.setdefault((hash_names(shapes), free), {})
        group.setdefault(hash_shapes(shapes, free), []).append(name)

    def keep(self, names: set[str]) -> None:
        """Forgets all other architectures."""
        for group in self.groups.values():
            for shapes, known in list(group.items()):
                group[shapes] = [n for n in known if n in names]
                if not group[shapes]:
                    del group[shapes]
        self.groups = {key: group for key, group in self.groups.items() if group}
        self.traits = {n: t for n, t in self.traits.items() if n in names}
        self.unbuilt = {n: why for n, why in self.unbuilt.items() if n in names}

    def ambiguous(self) -> list[list[str]]:
        """The sets of names that no file's tensors tell apart."""
        return [names for g in self.groups.values() for names in g.values() if len(names) > 1]

    def find(self, shapes: Shapes) -> Match:
        """The architectures with tensors of these names and shapes."""
        wanted = hash_names(shapes)
        groups = {free: g for (names, free), g in self.groups.items() if names == wanted}
        found = sorted(
            n for free, g in groups.items() for n in g.get(hash_shapes(shapes, free), ())
        )
        near = sorted(n for g in groups.values() for names in g.values() for n in names)
        traits = {n: self.traits[n] for n in found if n in self.traits}
        return Match(tuple(found), traits, () if found else tuple(near))

    def classes(self, name: str, shapes: Shapes) -> int | None:
        """How many classes a file with these tensors has, if it is a ``name``; None where the index
        has no such architecture, or its tensors do not tell."""
        wanted = hash_names(shapes)
        for (names, free), group in self.groups.items():
            if names == wanted and name in group.get(hash_shapes(shapes, free), ()):
                counts = {shapes[n][0] for n, axis in free if axis == 0}
                return counts.pop() if len(counts) == 1 else None
        return None

    def dumps(self) -> str:
        """JSON in a stable order, one group a line."""
        groups: list[dict[str, Any]] = [
            {"names": names, "free": sorted(free), "shapes": {k: sorted(v) for k, v in g.items()}}
            for (names, free), g in self.groups.items()
        ]
        fields: dict[str, Any] = {
            "timm": self.timm,
            "unbuilt": self.unbuilt,
            "traits": self.traits,
            "groups": sorted(groups, key=lambda g: min(min(v) for v in g["shapes"].values())),
        }
        lines = []
        for key, value in fields.items():
            if isinstance(value, str):
                lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
                continue
            items = (
                [_line(v) for v in value]
                if isinstance(value, list)
                else [f"{json.dumps(k)}: {_line(value[k])}" for k in sorted(value)]
            )
            opening, closing = "[]" if isinstance(value, list) else "{}"
            lines.append(f"{json.dumps(key)}: {opening}\n" + ",\n".join(items) + f"\n{closing}")
        return "{" + ",\n".join(lines) + "}\n"


def loads(text: str) -> Index:
    """The index in ``text``.  Raises ``ValueError``, ``KeyError`` or ``TypeError`` for another."""
    fields = json.loads(text)
    groups = {
        (g["names"], frozenset((n, axis) for n, axis in g["free"])): g["shapes"]
        for g in fields["groups"]
    }
    return Index(fields["timm"], groups, fields["traits"], fields["unbuilt"])


@lru_cache(maxsize=1)
def installed_index() -> Index:
    """The index for the timm that is installed, if there is one; else the one pnc came with."""
    shipped = loads(resources.files(__package__).joinpath(SHIPPED).read_text("utf-8"))
    version = timm_version()
    if version in (None, shipped.timm):
        return shipped
    try:
        cached = loads(cache_file(version).read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return shipped
    return cached if cached.timm == version else shipped


def find(shapes: Shapes) -> Match:
    """What the index at hand says of a file's tensors."""
    return installed_index().find(shapes)


def timm_version() -> str | None:
    """The version of timm that is installed, found without importing it."""
    try:
        return metadata.version("timm")
    except metadata.PackageNotFoundError:
        return None


def cache_file(version: str) -> Path:
    """Where the index for another timm than pnc's own is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "pnc" / f"architectures-timm-{version}.json"


def hash_names(names: Iterable[str]) -> str:
    return _hash(sorted(names))


def hash_shapes(shapes: Shapes, free: Free) -> str:
    """A hash of names and shapes; ``None`` stands for the dimensions in ``free``."""
    return _hash(
        [
            [name, [None if (name, axis) in free else n for axis, n in enumerate(shapes[name])]]
            for name in sorted(shapes)
        ]
    )


def _hash(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
