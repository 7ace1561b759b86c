"""Which of the candidates of a search is taken: the cheapest that is as good as the best.

Figures of few images are uncertain, so a candidate is as good as the best where it is within one
standard error of it, of the difference of the two on the very same images (the one-standard-error
rule: Breiman et al., *Classification and Regression Trees*, 1984).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data import Progress, no_progress
from ..plan import HEAD_ONLY, Candidate, Side
from .ranking import below, moved, ranked, worth
from .study import RECOVERED, Study


@dataclass(frozen=True)
class Found:
    """The candidates of a search, best first, and the one that is taken, an index of them.

    ``error`` is the standard error of what it falls short of the best copied part, which is the
    candidate ``against`` (None: it is the best), and ``floor_error`` that of what it gains over the
    clone without one; None where that is not known.  ``fitted`` are the sides whose figures are of
    images that were fitted on.
    """

    candidates: list[Candidate]
    chosen: int
    error: float | None = None
    floor_error: float | None = None
    against: int | None = None
    fitted: list[Side] = field(default_factory=list)

    @property
    def best(self) -> Candidate:
        return self.candidates[self.chosen]


def take_best(study: Study, in_order: Sequence[Candidate]) -> Found:
    """The first that copies something, of candidates in order."""
    chosen = next(i for i, c in enumerate(in_order) if not c.place.is_head_only)
    floor_error = study.judge.difference_error(in_order[chosen].place, HEAD_ONLY)
    return Found(list(in_order), chosen, floor_error=floor_error, fitted=study.fitted)


def take_cheapest_as_good(
    study: Study, candidates: Sequence[Candidate], progress: Progress = no_progress
) -> Found:
    """The one with fewest MACs that is as good as the best by one standard error.

    Of what less than a whole module loses, refining wins back about ``RECOVERED``.  How much is a
    guess until it is refined, so it is refined for a few passes before it is taken, and has to be as
    good then, ``RECOVERED`` of what it still loses taken for won.
    """
    found = list(candidates)
    settled = [c for c in found if study.is_settled(c) and not c.place.is_head_only]
    best = max(settled, key=worth)
    work = study.limits.work(study.limits.trials, study.material.plain_macs)
    refused = {best.place}
    while True:
        cheaper = [
            c
            for c in found
            if c.macs < best.macs and c.place not in refused and _as_good(study, c, best)
        ]
        if not cheaper:
            return _found(study, found, best)
        c = min(cheaper, key=lambda c: (c.macs, c.parameters))
        if study.is_settled(c):
            return _found(study, found, c, best)
        refused.add(c.place)
        work -= study.work_of_trial(c)
        if work < 0:
            return _found(study, found, best)
        progress("refining the cheapest", 0, 1)
        now = study.try_out(c)
        found = [_moved(o, c, now) for o in found]
        if _as_good(study, now, best):
            return _found(study, found, now, best)


def _as_good(study: Study, c: Candidate, best: Candidate) -> bool:
    error = study.judge.difference_error(c.place, best.place)
    if c.place.is_head_only or error is None:
        return False
    short = worth(best) - worth(c)
    return short * (1.0 if c.place.is_whole else 1.0 - RECOVERED) <= error


def _moved(other: Candidate, before: Candidate, now: Candidate) -> Candidate:
    """``other`` with what was learned by refining ``before``, where it is another share of the same."""
    return now if other.place == before.place else moved(other, before, now.score - before.score)


def _found(
    study: Study,
    candidates: Sequence[Candidate],
    chosen: Candidate,
    best: Candidate | None = None,
) -> Found:
    ceiling = max((c.score for c in candidates if study.is_settled(c)), default=math.inf) - 1e-6
    in_order = ranked([c if study.is_settled(c) else below(c, ceiling) for c in candidates])
    differs = study.judge.difference_error
    return Found(
        in_order,
        in_order.index(chosen),
        None if best is None else differs(chosen.place, best.place),
        differs(chosen.place, HEAD_ONLY),
        # by its place: a trial of another share may have moved its score
        None if best is None else [c.place for c in in_order].index(best.place),
        study.fitted,
    )
