"""branch/known.py: clone classes that the target answers with a class of its own."""

from types import SimpleNamespace

import pytest
import torch

from pnc_cli.branch.known import known_already


@pytest.mark.parametrize(
    "answers, scale, found",
    [
        ([1] * 10, 9.0, [("frog", "dog", 1.0)]),
        ([1] * 9 + [0], 9.0, [("frog", "dog", 0.9)]),
        ([1] * 6 + [0] * 4, 9.0, []),  # no one class
        ([1] * 10, 0.1, []),  # not sure of any
        ([1] * 2, 9.0, []),  # too few to tell
    ],
)
def test_nearly_all_images_of_a_class_by_one_label_and_for_sure(answers, scale, found):
    target = SimpleNamespace(labels=["cat", "dog", "bird"])
    classes = [SimpleNamespace(name="frog")]
    task = SimpleNamespace(
        target=target, classes=classes, old=2, ids=torch.full((len(answers),), 2)
    )
    z = scale * torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
    assert [(k.name, k.label, k.share) for k in known_already(task, z)] == found
