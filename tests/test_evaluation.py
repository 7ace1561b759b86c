"""evaluation.py and branch/score.py: the figures, against small cases worked out by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from support.networks import draw_folder, save_checkpoint

import pnc_cli
from pnc_cli import data
from pnc_cli.branch.patched import preprocessing_of
from pnc_cli.branch.score import score
from pnc_cli.evaluation import Verdicts, evaluate, figures, from_logits

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


def test_figures_from_parts_are_those_of_the_whole():
    parts = [Verdicts.of(z, 2) for z in LOGITS.split(3)]
    names = ["a", "b", "c", "d"]
    assert figures(Verdicts.joined(parts), LABELS, 2, names) == from_logits(
        LOGITS, LABELS, 2, names
    )
    plain = [Verdicts.of(z[:, :2], 2) for z in LOGITS[:4].split(3)]
    whole = from_logits(LOGITS[:4, :2], LABELS[:4], 2, names)
    assert figures(Verdicts.joined(plain), LABELS[:4], 2, names) == whole


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_the_targets_answers_are_its_own_in_every_batch(made, chunk, monkeypatch):
    """Bit for bit, as the batches come that pnc eval runs."""
    monkeypatch.setattr(data.reading, "CHUNK", chunk)
    model, alone, seen = pnc_cli.load(made.patched), pnc_cli.load(made.target), []

    def watched(module, args, out):
        with torch.no_grad():
            seen.append((alone(args[0]), out[:, : len(made.old)].contiguous()))

    model.register_forward_hook(watched)
    source = data.open_images(str(made.test))
    chosen = data.choose(source, model.label_names, 4, 0)
    images = data.read_images(source, chosen, [preprocessing_of(model)])
    evaluate(model, images)
    assert sum(len(z) for z, _ in seen) == 20
    assert all(z.numpy().tobytes() == found.numpy().tobytes() for z, found in seen)


CHILD = """
import sys
from pathlib import Path
import pnc_cli
from pnc_cli import data

def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024

data.reading.CHUNK_BYTES //= 8
model = pnc_cli.load(sys.argv[1])
seen = []
pnc_cli.evaluate(model, data=sys.argv[2], progress=lambda what, done, of: seen.append(peak()))
print(seen[-1] - seen[len(seen) // 3])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_images(tmp_path):
    """Of 1,500 images of 224 pixels the last 1,000 take none: 150 MB as bytes, 600 MB as numbers.

    A heap's noise on a busy machine is 60 to 105 MB.
    """
    folder = draw_folder(tmp_path / "data", ["red"], 1)
    for i in range(1, 1500):
        (folder / "red" / f"{i}.png").symlink_to(folder / "red" / "0.png")
    path = tmp_path / "net.safetensors"
    model = timm.create_model("test_resnet", num_classes=2)
    save_checkpoint(path, model, "test_resnet", ["red", "blue"], size=224)
    command = [sys.executable, "-c", CHILD, str(path), str(folder)]
    root = Path(__file__).resolve().parents[1]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 120e6
