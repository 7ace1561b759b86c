"""Plans, for tests that need one."""

import msgspec

from pnc_cli.plan import Candidate, Plan


def candidate(**fields):
    """One that gives and costs little, but for its ``fields``."""
    plain = {
        "tap": "layer1",
        "cut": "layer2",
        "share": 1.0,
        "score": 0.5,
        "branch_accuracy": None,
        "joint_accuracy": None,
        "average_accuracy": None,
        "locality": None,
        "fit": 1.0,
        "parameters": 1,
        "macs": 1,
        "bytes": 1,
    }
    return Candidate(**{**plain, **fields})


def make_plan(**changes):
    plan = Plan(
        schema="pnc.plan/1",
        source_sha256="0" * 64,
        target_sha256="1" * 64,
        classes=["frog"],
        data="generated",
        images=0,
        original_images=0,
        target_macs=1,
        target_parameters=1,
        seed=0,
        chosen=0,
        candidates=[candidate(joint_accuracy=0.25, fit=0.5, macs=2, bytes=4)],
    )
    return msgspec.structs.replace(plan, **changes)


def candidate_of(tap, cut, share, average, macs):
    """One whose score is its average."""
    return candidate(
        tap=tap,
        cut=cut,
        share=share,
        score=average,
        branch_accuracy=average,
        joint_accuracy=average,
        average_accuracy=average,
        locality=1.0,
        parameters=macs,
        macs=macs,
        bytes=4 * macs,
    )


def plan_of(*candidates, chosen, target_macs, error=None, floor_error=None, best=None):
    """A plan of candidates (tap, cut, share, average, MACs), the score of each its average."""
    return Plan(
        schema="pnc.plan/1",
        source_sha256="0" * 64,
        target_sha256="1" * 64,
        classes=["x"],
        data="images",
        images=10,
        original_images=10,
        target_macs=target_macs,
        target_parameters=100,
        seed=0,
        chosen=chosen,
        error=error,
        floor_error=floor_error,
        best=best,
        candidates=[candidate_of(*candidate) for candidate in candidates],
    )
