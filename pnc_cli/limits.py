"""How much of everything is spent: images, memory, work, samples.  Each number says what it is and why.

Nothing here changes what is right, only how well it is known and what it costs to know it.  A
function that is bounded takes :data:`LIMITS` as its default, so a test, or a caller with another
machine, gives its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bytes are of tensors held at once; MACs are of one image times images."""

    # Images that a search looks at: one half to fit, the other to judge.
    per_class: int = 100  # of a class: figures then have a standard error of about 2 points
    fewest: int = 16  # of a class, where there are so many: fewer say nothing of a candidate
    originals: int = 10  # classes of originals, at least: few are all looked at
    probes: int = 256  # generated ones, where there are no others

    # Memory.
    search_features: int = 3 << 30  # of both networks at all positions of a search
    clone_features: int = 4 << 30  # of both networks at the one tap and cut of a clone
    lessons: int = 2 << 30  # of the target at the tap, for the neighbours that refining looks at

    layer_outputs: int = 512 << 20  # of a module's norms, for its modulation

    # Work.
    pairs: float = 8e11  # of all pairs' modules on all images
    less: float = 2.3e11  # of a short list's modules on all images, with less than all of each
    refining: float = 5e11  # of the student, there and back, in all passes of a clone's refining
    trial: float = 5e10  # the same, for one candidate of a search

    # Rows of a regression, from the adapter's tap to its cut: cells of all images.
    pair_rows: int = 40_000  # for a pair among many: its order is settled by then
    clone_rows: int = 400_000  # for a candidate that is refined

    # How much a search tries.
    short_list: int = 6  # pairs that are tried with less than all of their module
    trials: int = 4  # candidates that are refined before one is chosen
    trial_passes: int = 4  # over the images, for that
    smallest_share: float = 0.05  # of a module: less has no channels left worth ranking


LIMITS = Limits()
