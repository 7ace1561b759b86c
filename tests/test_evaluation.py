"""evaluation.py and branch/score.py: the figures, against small cases worked out by hand."""

import pytest
import torch

from pnc_cli.branch.score import score
from pnc_cli.evaluation import from_logits

# two original classes (a, b) and two cloned ones (c, d); rows are images of a a b b c c d d
LOGITS = torch.tensor(
    [
        [9.0, 0, 0, 0],  # right
        [5, 0, 9, 0],  # the patch takes it away: right -> wrong
        [0, 9, 0, 0],  # right
        [9, 0, 0, 0],  # the target alone is wrong as well: local
        [0, 0, 9, 0],  # right
        [0, 9, 5, 0],  # taken for an original, though the branch alone is right
        [0, 0, 9, 5],  # the branch is wrong
        [0, 0, 0, 9],  # right
    ]
)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def test_the_figures_are_these():
    e = from_logits(LOGITS, LABELS, 2, ["a", "b", "c", "d"])
    assert (e.images, e.original_accuracy, e.clone_accuracy, e.average_accuracy) == (
        8,
        0.5,
        0.5,
        0.5,
    )
    assert (e.joint_accuracy, e.branch_accuracy, e.target_accuracy) == (0.5, 0.75, 0.75)
    assert (e.locality, e.right_to_wrong) == (0.75, 0.25)
    assert e.per_class == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}


def test_the_search_scores_likewise():
    s = score(LOGITS[:, :2], LOGITS[:, 2:], LABELS)
    assert (s.branch, s.original, s.clone, s.joint, s.locality, s.average) == (
        0.75,
        0.5,
        0.5,
        0.5,
        0.75,
        0.5,
    )


@pytest.mark.parametrize("old", [True, False], ids=["originals only", "clones only"])
def test_what_there_are_no_images_for_is_none(old):
    keep = (LABELS < 2) == old
    e = from_logits(LOGITS[keep], LABELS[keep], 2, ["a", "b", "c", "d"])
    s = score(LOGITS[keep][:, :2], LOGITS[keep][:, 2:], LABELS[keep])
    absent = (
        (e.clone_accuracy, e.branch_accuracy, s.clone, s.branch)
        if old
        else (
            e.original_accuracy,
            e.locality,
            e.target_accuracy,
            e.right_to_wrong,
            s.original,
            s.locality,
            s.joint,
        )
    )
    assert set(absent) == {None}
    assert e.average_accuracy is None and s.average is None
    assert e.joint_accuracy == 0.5


def test_a_plain_checkpoint_has_no_locality():
    e = from_logits(LOGITS[:4, :2], LABELS[:4], 2, ["a", "b"])
    assert (e.locality, e.right_to_wrong, e.branch_accuracy) == (None, None, None)
    assert e.original_accuracy == e.target_accuracy == 0.75


@pytest.mark.parametrize("confidence, expected", [(0.75, 0.0), (0.95, 0.2), (0.55, 0.2)])
def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(confidence, expected):
    z = torch.tensor([confidence, 1 - confidence]).log().repeat(4, 1)
    e = from_logits(z, torch.tensor([0, 0, 0, 1]), 2, ["a", "b"])
    assert e.calibration_error == pytest.approx(expected, abs=1e-5)
