"""What is worth saying of a plan's choice, and of a clone that is not known well, in a line each."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import some_of
from .manifest import Manifest
from .plan import FEWEST, Candidate, Plan, Side
from .schema import KnownAs

FLATTERING = (
    "images that one of the networks was trained on flatter these figures; for honest ones: "
    "pnc eval with images that neither has seen"
)
MOST_LOST = 0.38  # share of original images that a clone made without any has taken, at the worst


def remarks(plan: Plan) -> list[str]:
    """Why not the best was taken, and whether what was taken beats a clone without a copied part."""
    chosen = plan.candidates[plan.chosen]
    found = []
    if plan.fitted:
        found.append(
            f"unsure: too few images of {_sides(plan.fitted)} classes for any to be held out: "
            "their figures are of images that were fitted on, and too good"
        )
    if (best := plan.held_against) is not None and plan.error is not None:
        found.append(
            f"taken: the cheapest that is as good as the best by one standard error "
            f"({plan.error:.3f}): average {_average(chosen)} for {_macs(plan, chosen)} of the "
            f"target's MACs, where {_name(best)} has {_average(best)} for {_macs(plan, best)} "
            f"(--whole takes all of it)"
        )
    floor = head_only_of(plan)
    if floor is not None and plan.floor_error is not None:
        gain = (chosen.average_accuracy or 0.0) - (floor.average_accuracy or 0.0)
        if gain <= plan.floor_error:
            found.append(
                f"the copied part is not worth it: average {_average(chosen)} with it and "
                f"{_average(floor)} without, which is within a standard error "
                f"({plan.floor_error:.3f}) and costs nothing per image: --head-only"
            )
    return found


def unsure(m: Manifest) -> list[str]:
    """What is not known of a clone made without original images, or of few of a class, what was
    measured instead, and what would help; nothing of any other."""
    return [*_without_originals(m), *_few_images(m)]


def _without_originals(m: Manifest) -> list[str]:
    known = m.measured.without_originals
    if known is None:
        return []
    of = f"{known.images} clone images" + (
        " that were held out" if known.held_out else ", the ones it was made from"
    )
    found = [
        "no original images: accuracy on original classes and locality were not measured",
        f"measured on {of}: the clone classes win {known.clone_won:.3f} of them; the target alone "
        f"gives a class of its own a probability of {known.target_confidence:.3f} there",
    ]
    if not m.method.unlabelled_images:
        found.insert(
            1,
            "the share of original images that the clone takes is unknown; of classes that look "
            f"alike it has been as high as {MOST_LOST}",
        )
        found.append(
            "to know more, and to lose less: a few images of each original class in --data, or "
            "--unlabelled DIR with images of whatever the target is used on"
        )
    return found


def _few_images(m: Manifest) -> list[str]:
    """Of which classes no image was held out, and what is shown of them."""
    few = m.measured.not_held_out
    if not few:
        return []
    listed = [f"{n} ({count} image{'' if count == 1 else 's'})" for n, count in few.items()]
    if m.measured.fitted:
        shown = (
            f"what is shown of {_sides(m.measured.fitted)} classes is of images that the clone was "
            "made from, and too good"
        )
    else:
        shown = "they have no part in what is shown"
    return [
        f"no image was held out of {some_of(listed)}: of fewer than {FEWEST} all are "
        f"learned from; {shown}"
    ]


def _sides(sides: Sequence[Side]) -> str:
    return " and ".join(sides)


def known_as(known: Sequence[KnownAs]) -> list[str]:
    """A sentence on each clone class that may be one of the target's under another name."""
    return [
        f"the target by itself answers '{k.label}' for {k.share:.0%} of the {k.images} images of "
        f"'{k.name}': the same class under another name? then leave it out of --classes"
        for k in known
    ]


def head_only_of(plan: Plan) -> Candidate | None:
    """The candidate without a copied part."""
    return next((c for c in plan.candidates if c.place.is_head_only), None)


def _name(c: Candidate) -> str:
    return f"'{c.tap}' -> '{c.cut}', {c.kept},"


def _average(c: Candidate) -> str:
    return "unknown" if c.average_accuracy is None else f"{c.average_accuracy:.3f}"


def _macs(plan: Plan, c: Candidate) -> str:
    return f"{c.macs / max(plan.target_macs, 1):.2f}"
