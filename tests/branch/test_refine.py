"""branch/refine.py: the source teaches the module, and what it learned holds for other images."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.command import pnc_forked
from support.modules import SIZE, whole
from support.networks import RESNET, draw, preprocess

import pnc_cli
from pnc_cli.branch.adapter import Adapter
from pnc_cli.branch.compensation import Compensation
from pnc_cli.branch.modulation import fold, identity
from pnc_cli.branch.refine import Lessons, refine, warm_cosine
from pnc_cli.channels.localised import Neighbours
from pnc_cli.manifest import Layout
from pnc_cli.network.record import recording

IMAGE = Layout("NCHW", SIZE, SIZE[1:])


def noise(count, seed):
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def lessons(teacher, features, images):
    pre, z = teacher(features.clone())
    return Lessons(features, pre, z.log_softmax(1), images)


def gap(pre, z, expected_pre, expected_answers):
    """How far pre-logits and answers are from what is expected."""
    answers = F.kl_div(z.log_softmax(1), expected_answers, log_target=True, reduction="batchmean")
    return (pre - expected_pre).square().mean().item(), answers.item()


@torch.no_grad()
def distance(adapter, compensation, student, lesson):
    """How far the student's pre-logits and answers are from the teacher's."""
    mended = copy.deepcopy(student)
    compensation.fold_into(mended.part)
    pre, z = mended(adapter(lesson.features))
    return gap(pre, z, lesson.pre, lesson.answers)


@pytest.fixture
def school():
    """A teacher, lessons and an exam, and a student with a wrong adapter and wrong levels."""
    _, teacher, _, _ = whole("resnet18", **RESNET)
    student = copy.deepcopy(teacher)
    torch.manual_seed(0)
    fold(
        student.part, {n: t + 0.1 * torch.randn_like(t) for n, t in identity(student.part).items()}
    )
    adapter = Adapter(IMAGE, IMAGE, 1).requires_grad_(False)
    adapter.weight[:, :, 0, 0] = torch.eye(3) + 0.2 * torch.randn(3, 3)
    taught, exam = lessons(teacher, noise(200, 1), 100), lessons(teacher, noise(100, 2), 100)
    return adapter, Compensation(identity(student.part)), student, taught, exam


def test_the_student_comes_nearer_to_the_teacher_on_what_it_has_not_seen(school):
    adapter, compensation, student, taught, exam = school
    before = distance(adapter, compensation, student, exam)
    refine(adapter, compensation, student, taught, exact=False, epochs=8, seed=0)
    after = distance(adapter, compensation, student, exam)
    assert after[0] < 0.5 * before[0] and after[1] < 0.5 * before[1]
    assert not any(p.requires_grad for p in [*adapter.parameters(), *compensation.tensors.values()])


@pytest.mark.parametrize("exact", [False, True])
def test_an_exact_adapter_is_left_alone_and_the_module_always(school, exact):
    adapter, compensation, student, taught, _ = school
    was = [copy.deepcopy(part.state_dict()) for part in (adapter, student)]
    levels = {n: t.clone() for n, t in compensation.modulation.items()}
    refine(adapter, compensation, student, taught, exact=exact, epochs=1, seed=0)
    assert torch.equal(adapter.weight, was[0]["weight"]) == exact
    assert all(torch.equal(t, was[1][n]) for n, t in student.state_dict().items())
    assert any(not torch.equal(t, levels[n]) for n, t in compensation.modulation.items())


def test_no_epochs_change_nothing_and_a_seed_decides_the_rest(school):
    adapter, compensation, student, taught, _ = school

    def refined(**how):
        mine = copy.deepcopy(adapter), copy.deepcopy(compensation)
        refine(*mine, student, taught, exact=False, **how)
        return mine[0].weight

    assert torch.equal(refined(epochs=0, seed=0), adapter.weight)
    assert torch.equal(refined(epochs=1, seed=0), refined(epochs=1, seed=0))
    assert not torch.equal(refined(epochs=1, seed=0), refined(epochs=1, seed=1))


def test_gradients_of_parts_of_a_batch_add_up_to_those_of_all_of_it(school):
    adapter, compensation, student, taught, _ = school

    def refined(together):
        mine = copy.deepcopy(adapter), copy.deepcopy(compensation)
        refine(*mine, student, taught, exact=False, epochs=2, seed=0, together=together)
        return [*mine[0].parameters(), *mine[1].tensors.values()]

    was = [*adapter.parameters(), *compensation.tensors.values()]
    moved = False
    for before, whole_batch, parts, ones in zip(was, refined(25), refined(3), refined(1)):
        torch.testing.assert_close(parts, whole_batch, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ones, whole_batch, rtol=1e-3, atol=1e-4)
        moved |= bool((whole_batch - before).abs().max() > 1e-2)
    assert moved


def test_lessons_that_are_computed_again_teach_the_same(school):
    adapter, compensation, student, taught, _ = school
    asked = []

    def show(index):
        asked.append(len(index))
        return taught.features[index]

    def refined(lesson):
        mine = copy.deepcopy(adapter), copy.deepcopy(compensation)
        refine(*mine, student, lesson, exact=False, epochs=1, seed=0, together=10)
        return mine[0].weight

    again = dataclasses.replace(taught, features=show)
    assert torch.equal(refined(again), refined(taught))
    assert asked == [10, 10, 5] * 4


def test_an_epoch_has_each_image_once():
    """As one of its neighbours; which one differs."""
    x = torch.zeros(90, 1)
    batches = Lessons(x, x, x, 30).epoch(torch.Generator().manual_seed(0))
    index = torch.cat(batches)
    assert [len(b) for b in batches] == [25, 5]
    assert sorted((index % 30).tolist()) == list(range(30))
    assert len(set((index // 30).tolist())) > 1


def test_the_rate_rises_and_falls_to_nothing():
    factor = [warm_cosine(40)(k) for k in range(41)]
    assert factor[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor[4:] == sorted(factor[4:], reverse=True) and factor[-1] == pytest.approx(0)


@torch.no_grad()
def error(made, clone, images):
    """How far a clone's branch is from the source on ``images``: pre-logits and clone answers."""
    target, source = pnc_cli.load(made.target, clones=[clone]), pnc_cli.load(made.source)
    [branch] = target.branches.values()
    with recording(target.target, branch.taps) as taps:
        target.target(images)
    with recording(source.target, ["global_pool"]) as seen:
        logits = source.target(images)[:, 1:]  # the first is of the class that is not cloned
    pre, z = branch.module(branch.adapter(taps[branch.taps[0]]))
    return gap(pre, z, seen["global_pool"], logits.log_softmax(1))


def test_a_pruned_clone_that_was_refined_is_nearer_to_its_source(pair, tmp_path):
    """By the real command, on neighbours of images that it has not seen."""
    clones = [tmp_path / "closed.safetensors", tmp_path / "refined.safetensors"]
    for clone, epochs in zip(clones, (0, 2)):
        ran = pnc_forked(
            *("clone", pair.source, pair.target, "--data", pair.train, "-o", clone, "--json"),
            *("--tap", "layer1", "--cut", "layer1", "--share", "0.4", "--epochs", epochs),
            cwd=tmp_path,
        )
        assert ran.code == 0, ran.err
        assert ran.json["manifest"]["method"]["epochs"] == epochs
    drawn = [draw(label, i) for label in [*pair.old, *pair.new] for i in range(500, 540)]
    images = preprocess(torch.stack([torch.from_numpy(d) for d in drawn]).permute(0, 3, 1, 2))
    images = Neighbours.drawn(len(images), torch.Generator().manual_seed(9))(images)
    closed, refined = (error(pair, clone, images) for clone in clones)
    assert refined[0] < 0.9 * closed[0] and refined[1] < 0.8 * closed[1]
    loaded = [pnc_cli.load(pair.target, [clone]).branches for clone in clones]
    weights = [next(iter(b.values())).adapter.state_dict() for b in loaded]
    assert weights[0].keys() == weights[1].keys()
    assert not any(torch.equal(t, weights[1][n]) for n, t in weights[0].items())
