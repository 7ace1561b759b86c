"""What a plan's choice is worth saying about, in a line each."""

from __future__ import annotations

from .plan import Candidate, Plan


def remarks(plan: Plan) -> list[str]:
    """Why not the best was taken, and whether what was taken beats a clone without a copied part."""
    chosen = plan.candidates[plan.chosen]
    found = []
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


def head_only_of(plan: Plan) -> Candidate | None:
    """The candidate without a copied part."""
    return next((c for c in plan.candidates if c.place.is_head_only), None)


def _name(c: Candidate) -> str:
    return f"'{c.tap}' -> '{c.cut}', {c.kept},"


def _average(c: Candidate) -> str:
    return "unknown" if c.average_accuracy is None else f"{c.average_accuracy:.3f}"


def _macs(plan: Plan, c: Candidate) -> str:
    return f"{c.macs / max(plan.target_macs, 1):.2f}"
