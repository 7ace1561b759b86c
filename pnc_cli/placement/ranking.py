"""Candidates in order: by score, short lists, and what nothing as cheap is better than."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..limits import LIMITS
from ..plan import Candidate


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first."""
    return sorted(candidates, key=lambda c: (-c.score, c.macs, c.tap, c.cut))


def short_list(candidates: Sequence[Candidate], most: int = LIMITS.short_list) -> list[Candidate]:
    """The best by score, and of the rest those that nothing as cheap beats, ``most`` in all."""
    in_order = sorted(candidates, key=lambda c: (-c.score, c.macs))
    chosen = in_order[: most // 2]
    for c in in_order[most // 2 :]:
        if len(chosen) < most and all(c.macs < other.macs for other in chosen):
            chosen.append(c)
    return chosen


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing as cheap (in MACs) is better than, cheapest first."""
    best: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (c.macs, -worth(c))):
        if not best or worth(c) > worth(best[-1]):
            best.append(c)
    return best


def worth(c: Candidate) -> float:
    """What a candidate gives, whatever it costs."""
    if c.average_accuracy is not None:
        return c.average_accuracy
    return c.fit if c.branch_accuracy is None else c.branch_accuracy


def moved(c: Candidate, best: Candidate, gain: float) -> Candidate:
    """``c`` with the ``gain`` of ``best``, where it is another share of the same."""
    alike = c.place.dense == best.place.dense and not c.place.is_whole
    return with_score(c, c.score + gain) if alike else c


def below(c: Candidate, ceiling: float) -> Candidate:
    """``c`` with a score of ``ceiling`` at most."""
    return with_score(c, min(c.score, ceiling))


def with_score(c: Candidate, score: float) -> Candidate:
    return msgspec.structs.replace(c, score=round(score, 6))
