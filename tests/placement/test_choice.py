"""placement/choice.py: the cheapest that is as good as the best."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import pytest
import torch
from support.plans import candidate_of

from pnc_cli.branch.score import standard_error
from pnc_cli.limits import LIMITS
from pnc_cli.placement.choice import take_best, take_cheapest_as_good
from pnc_cli.plan import HEAD_ONLY


def candidate(tap, score, macs, *, cut="c", share=1.0):
    return candidate_of(tap, cut, share, score, macs)


@dataclass
class Study:
    """What a choice asks of a study: here errors are all 0.01, but for places that were not judged."""

    refined: dict = field(default_factory=dict)  # tap and share -> score
    unknown: tuple = ()
    work: float = 1.0
    tried: list = field(default_factory=list)
    limits = LIMITS
    grid = None

    def __post_init__(self):
        self.material, self.fitted = SimpleNamespace(plain_macs=1e15), []
        self.judge = SimpleNamespace(difference_error=self.error)

    def error(self, a, b):
        return None if {a.tap, b.tap} & set(self.unknown) else 0.01

    def is_settled(self, c):
        return c.place.is_whole or c.place.is_head_only or c.tap in self.tried

    def work_of_trial(self, c):
        return self.work

    def try_out(self, c):
        self.tried.append(c.tap)
        worth = self.refined[c.tap, c.share]
        return msgspec.structs.replace(c, score=worth, average_accuracy=worth)


FLOOR = candidate("-", 0.5, 0, cut="-", share=0.0)


def test_the_cheapest_within_one_standard_error_is_taken():
    best, near, far = candidate("a", 0.80, 100), candidate("b", 0.795, 50), candidate("c", 0.78, 10)
    found = take_cheapest_as_good(Study(), [far, best, near, FLOOR])
    assert found.best is near
    assert [c.tap for c in found.candidates] == ["a", "b", "c", "-"]
    assert found.error == found.floor_error == 0.01
    assert found.candidates[found.against] is best


def test_the_best_is_taken_where_nothing_cheaper_is_as_good():
    found = take_cheapest_as_good(Study(), [candidate("a", 0.8, 100), candidate("b", 0.7, 50)])
    assert found.best.tap == "a" and found.error is None and found.against is None


def test_what_it_is_held_against_gives_most_whatever_its_score():
    """A score has the mean probability of the right class in it, and the price."""
    best, near = candidate("a", 0.80, 100), candidate("b", 0.795, 50)
    sure = msgspec.structs.replace(candidate("c", 0.79, 70), score=0.9)
    found = take_cheapest_as_good(Study(), [sure, near, best])
    assert found.best is near and found.candidates[0] is sure
    assert found.candidates[found.against] is best


def test_what_it_is_held_against_is_known_though_a_trial_moved_it():
    best = candidate("p", 0.80, 60, share=0.7)
    quarter = candidate("p", 0.79, 25, share=0.25)
    study = Study(refined={("p", 0.25): 0.795})
    study.is_settled = lambda c: c.share == 0.7 or "p" in study.tried
    found = take_cheapest_as_good(study, [best, quarter])
    assert found.best.share == 0.25 and found.candidates[found.against].share == 0.7


def test_no_copied_part_is_never_taken_by_itself():
    floor = msgspec.structs.replace(FLOOR, score=0.9)
    best = candidate("a", 0.8, 100)
    assert take_cheapest_as_good(Study(), [best, floor]).best is best
    found = take_best(Study(), [floor, best])
    assert found.best is best and found.candidates[0] is floor


def test_a_guess_is_refined_before_it_is_taken():
    whole = candidate("a", 0.80, 100)
    quarter, half = candidate("p", 0.785, 25, share=0.25), candidate("p", 0.79, 50, share=0.5)
    study = Study(refined={("p", 0.25): 0.77})
    found = take_cheapest_as_good(study, [whole, quarter, half])
    assert study.tried == ["p"] and found.best.share == 0.5
    study = Study(refined={("p", 0.25): 0.79})
    found = take_cheapest_as_good(study, [whole, quarter, half])
    assert found.best.share == 0.25 and found.best.score == 0.79
    study = Study(refined={})
    far = candidate("p", 0.77, 25, share=0.25)  # even if half of it were won back
    assert take_cheapest_as_good(study, [whole, far]).best is whole and study.tried == []


def test_without_work_left_nothing_that_is_a_guess_is_taken():
    whole, half = candidate("a", 0.8, 100), candidate("p", 0.8, 50, share=0.5)
    study = Study(work=1e18)
    found = take_cheapest_as_good(study, [whole, half])
    assert found.best is whole and study.tried == []
    assert found.candidates[0] is whole, "a guess stands behind what is known"


def test_what_was_judged_on_few_images_is_not_taken():
    whole, lucky = candidate("a", 0.8, 100), candidate("b", 0.9, 50)
    assert take_cheapest_as_good(Study(unknown=("b",)), [whole, lucky]).best.tap == "b"
    cheap = candidate("c", 0.8, 10)
    assert take_cheapest_as_good(Study(unknown=("c",)), [whole, cheap]).best is whole


def test_the_error_of_a_difference_is_of_the_same_images():
    """Two classifiers that fail on the same images differ by less than each alone is uncertain."""
    generator = torch.Generator().manual_seed(0)
    new = torch.arange(400) % 2 == 0
    a = (torch.rand(400, generator=generator) < 0.7).double()
    b = a.clone()
    b[:8] = 1 - b[:8]
    assert standard_error(a - b, new) < 0.4 * standard_error(a, new)
    spread = [a[new].std().item() ** 2 / 200, a[~new].std().item() ** 2 / 200]
    assert standard_error(a, new) == pytest.approx(sum(spread) ** 0.5 / 2)
    assert standard_error(a[:1], new[:1]) is None
    assert HEAD_ONLY.is_head_only and not HEAD_ONLY.is_whole
