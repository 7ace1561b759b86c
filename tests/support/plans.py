"""Plans, for tests that need one."""

import msgspec

from pnc_cli.manifest import Candidate, Plan


def make_plan(**changes):
    candidate = Candidate(
        tap="layer1",
        cut="layer2",
        share=1.0,
        score=0.5,
        branch_accuracy=None,
        joint_accuracy=0.25,
        average_accuracy=None,
        locality=None,
        fit=0.5,
        parameters=1,
        macs=2,
        bytes=4,
    )
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
        candidates=[candidate],
    )
    return msgspec.structs.replace(plan, **changes)
