"""How much of everything is spent: images, memory, work, samples.  Each number says what it is and why.

Nothing here changes what is right, only how well it is known and what it costs to know it.  A
function that is bounded takes :data:`LIMITS` as its default, so a test, or a caller with another
machine, gives its own.

Work is counted in *plain passes*: what one forward pass of both networks over the images that were
read costs.  So a search takes a few times as long as reading its images with both networks would,
whatever the networks.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Bytes are of tensors held at once; passes are plain ones (see above)."""

    # Images that a search looks at: one half to fit, the other to judge.
    per_class: int = 100  # of a class: figures then have a standard error of about 2 points
    originals: int = 40  # classes of originals, at most; evenly drawn
    coarse: int = 60  # that the adapter to a coarser map is fitted to
    few: int = 12  # images of a class that all pairs are compared on, before the best are on all
    probes: int = 256  # generated ones, where there are no others

    # Memory: together with interpreter and libraries (about 0.5 GB) within ``memory``.
    batch: int = 128  # images run together, at most: more is no quicker
    running: int = 160 << 20  # of a batch's features while a network runs
    sums: int = 384 << 20  # of the regressions of all pairs
    sample: int = 256 << 20  # of features that stay, to put modules right and to rank channels
    lessons: int = 256 << 20  # of the target at the tap, for the neighbours that refining looks at
    gradients: int = 320 << 20  # of a student's features, there and back

    # Work.
    fitting: float = 0.3  # passes: the regressions of all pairs
    comparing: float = 0.4  # passes: all pairs' modules, on few images
    judging: float = 0.6  # passes: the short list's modules, on all images
    ranking: float = 0.5  # passes: which channels go first, where any have to
    trials: float = 0.6  # passes: the best refined and judged, before one is believed;
    trial: float = 0.1  # passes: of them, refining one
    refining: float = 7.0  # passes: a clone's

    little: float = 1.5e11  # MACs that are not worth saving: some seconds

    # Rows of the regression of an adapter that is refined: cells of all images, tap to cut.
    clone_rows: int = 200_000

    # How much a search tries.
    short_list: int = 6  # pairs that are tried with less than all of their module
    tried: int = 4  # candidates that are refined before one is chosen
    trial_passes: int = 4  # over the images, for that
    smallest_share: float = 0.05  # of a module: less has no channels left worth ranking

    def passes(self, *, prunes: bool, clones: bool) -> float:
        """Plain passes that a search, with the clone if it ``clones``, takes at most, about;
        ``prunes`` where less than all of a module is asked for."""
        search = 1.0 + self.comparing + self.judging + prunes * (self.ranking + self.trials)
        return search + clones * (2.0 + prunes * self.refining)

    def work(self, passes: float, plain_macs: float) -> float:
        """MACs of so many plain passes; where those are little, ``little``."""
        return max(passes * plain_macs, self.little)

    def within(self, memory: int) -> Limits:
        """The same with all that is held at once scaled to so many bytes."""
        part = min(memory / USUAL_MEMORY, 8.0)
        held = ("running", "sums", "sample", "lessons", "gradients")
        return replace(self, **{name: int(getattr(self, name) * part) for name in held})


USUAL_MEMORY = 2 << 30  # over networks and images: what the defaults above are made for
LIMITS = Limits()


def limits_for(memory: int | None = None) -> Limits:
    """The limits that keep to ``memory`` bytes over networks and images; by default to a quarter of
    the machine's, at most ``USUAL_MEMORY``."""
    if memory is None:
        memory = min(machine_memory() // 4, USUAL_MEMORY)
    return LIMITS.within(memory)


def machine_memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its container's."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(path).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return found


def size(text: str) -> int:
    """A number of bytes: ``3000000``, ``3MB`` or ``3 MiB``.  Raises ``ValueError``."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    unit = units.get(found[2].removesuffix("b")) if found else None
    if found is None or unit is None:
        raise ValueError(f"'{text}' is not a size such as 3000000, 3MB or 2.5MiB")
    return int(float(found[1]) * unit)
