"""branch/fit_join.py: what tells the clone classes from the others, and among themselves."""

from dataclasses import replace

import pytest
import torch

from pnc_cli.branch.fit_join import (
    MOST_ORIGINALS,
    MOST_REJECTED,
    REJECTED,
    TRUSTED,
    Evidence,
    Levels,
    fit_elsewhere,
    fit_join,
    fit_with_pool,
)
from pnc_cli.branch.logistic import SLOPES

LEVELS = Levels((torch.zeros(3), torch.tensor(0.0)), (2, 2))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(per_class, seed=0, apart=4.0, sure=3.0):
    """Evidence of 2 old and 2 new classes: pre-logits in 3 + 3 dimensions ``apart``, and logits of
    the network that knows the class ``sure`` of it."""
    classes = torch.arange(4).repeat_interleave(per_class)
    f = apart * torch.eye(6)[classes] + noise(len(classes), 6, seed=seed)
    z = sure * torch.eye(4)[classes] + noise(len(classes), 4, seed=seed + 1)
    return Evidence(f[:, :3], f[:, 3:], z[:, :2], z[:, 2:]), classes


def accuracy(join, evidence, classes):
    z = torch.cat([evidence.z_t, join(*evidence.tensors)], 1)
    return (z.argmax(1) == classes).double().mean().item()


def test_old_is_told_from_new_and_new_classes_among_themselves():
    evidence, classes = seen(40)
    join = fit_join(evidence, classes, 2, 2, LEVELS)
    fresh, wanted = seen(40, seed=50)
    assert accuracy(join, fresh, wanted) > 0.95


def test_scores_are_believed_where_the_branch_is_wrong():
    """And the branch where they tell nothing: the weights are found on images left out."""
    evidence, classes = seen(60)
    fresh, wanted = seen(60, seed=50)
    mute = replace(evidence, z_b=noise(len(classes), 2, seed=9))
    join = fit_join(mute, classes, 2, 2, LEVELS)
    assert accuracy(join, replace(fresh, z_b=noise(len(wanted), 2, seed=8)), wanted) > 0.9
    blind = Evidence(noise(240, 3), noise(240, 3, seed=1), evidence.z_t, evidence.z_b)
    assert fit_join(blind, classes, 2, 2, LEVELS).ranking[0] > 0.5


def test_with_few_images_the_gate_leans_on_the_networks_evidence():
    """The part of the Gaussians, in units of what one of each kind of evidence says, grows with n."""
    parts = []
    for each in (2, TRUSTED, 200):
        evidence, classes = seen(each, apart=2.0)
        join = fit_join(evidence, classes, 2, 2, LEVELS)
        odds = join.gating[0] * (join.scores(evidence.target_pre, evidence.pre)).std()
        e = join.gating[1] * join.evidence(evidence.pre, evidence.z_t, evidence.z_b).std()
        parts.append((odds / (odds + e)).item())
    assert parts[0] < parts[1] < parts[2]


def test_without_a_copied_part_the_target_alone_is_read():
    evidence, classes = seen(40)
    alone = Evidence.without_branch(evidence.target_pre, evidence.z_t, 2)
    join = fit_join(alone, classes, 2, 2, LEVELS)
    assert join.weight.shape == (4, 3) and join.gating[1] == 0
    fresh, wanted = seen(40, seed=50)
    found = accuracy(join, Evidence.without_branch(fresh.target_pre, fresh.z_t, 2), wanted)
    assert found > 0.6, "three dimensions tell three of four classes"


def test_features_that_never_vary_are_harmless():
    evidence, classes = seen(20)
    still = torch.ones(len(classes), 2)
    evidence = replace(evidence, target_pre=torch.cat([evidence.target_pre, still], 1))
    join = fit_join(evidence, classes, 2, 2, LEVELS)
    assert all(torch.isfinite(t).all() for t in join.state_dict().values())


@pytest.mark.parametrize("old", [2, 0])
@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_very_few_images_still_give_a_finite_join(per_class, old):
    evidence, classes = seen(per_class)
    if not old:
        evidence, classes = evidence.of(classes >= 2), classes[classes >= 2] - 2
    join = fit_join(evidence, classes, old, 2, LEVELS)
    assert all(torch.isfinite(t).all() for t in join.state_dict().values())
    assert 0 <= join.gating[1] <= SLOPES[1] and (join.ranking >= 0).all()


def test_one_class_with_a_single_image_leaves_the_others_calibrated():
    evidence, classes = seen(40)
    keep = torch.arange(len(classes)) <= 120  # one image of the last class
    join = fit_join(evidence.of(keep), classes[keep], 2, 2, LEVELS)
    whole = fit_join(evidence, classes, 2, 2, LEVELS)
    fresh, wanted = seen(40, seed=50)
    most = wanted < 3
    loss = accuracy(whole, fresh.of(most), wanted[most]) - accuracy(
        join, fresh.of(most), wanted[most]
    )
    assert loss < 0.03


def test_elsewhere_the_judged_images_have_no_part_in_the_gaussians():
    evidence, classes = seen(40)
    fit = torch.arange(len(classes)) % 2 == 0
    args = (classes, fit, ~fit, 2, 2, LEVELS, 0.5)
    join = fit_elsewhere(evidence, *args)
    other = Evidence(*(torch.where(fit[:, None], t, t + 1) for t in evidence.tensors))
    again = fit_elsewhere(other, *args)
    assert torch.equal(join.weight, again.weight)
    assert not torch.equal(join.gating, again.gating)


def one_sided(clear, mean_logit=True, sources=5):
    """A join fitted to 400 clone images whose evidence is ``clear`` higher than the target's."""
    z_t, z_b, pre = noise(400, 5), noise(400, 3, seed=1) + clear, noise(400, 4, seed=2)
    known = (torch.zeros(4), torch.tensor(0.0)) if mean_logit else None
    evidence = Evidence(noise(400, 4, seed=3), pre, z_t, z_b)
    classes = torch.arange(400) % 3
    join = fit_join(evidence, classes, 0, 3, Levels(known, (5, sources)))
    return join, join.gate(*evidence.tensors)


def test_the_clearer_the_evidence_the_fewer_clone_images_are_given_up():
    given_up = [(one_sided(clear)[1] < 0).double().mean().item() for clear in (1.0, 2.0, 6.0)]
    assert given_up[0] > given_up[1] > given_up[2] == 0.0
    assert one_sided(1.0)[0].gating[1] < one_sided(2.0)[0].gating[1]


def test_as_many_originals_would_be_taken_as_clone_images_are_given_up_but_for_caution():
    """Mirrored images have the evidence -e: g = -slope e + offset of them is above zero less often."""
    join, g = one_sided(1.0)
    mirrored = 2 * join.gating[2] - g
    assert 0 < (mirrored > 0).sum() < (g < 0).sum()


def test_a_source_of_many_classes_must_be_surer():
    """The clone classes of a network of 1,000 classes are above its mean logit by more."""
    (_, few), (_, many) = one_sided(6.0), one_sided(6.0, sources=1000)
    assert (many < 0).sum() > (few < 0).sum()


@pytest.mark.parametrize("clear", [0.5, -1.0, -5.0])
def test_a_target_that_is_surer_of_everything_does_not_shut_the_clone_up(clear):
    """The mirror image of such evidence tells nothing, or the wrong thing."""
    _, g = one_sided(clear)
    assert (g < 0).double().mean().item() <= MOST_REJECTED + 0.005


def test_where_levels_cannot_be_compared_a_known_share_of_clone_images_passes():
    _, g = one_sided(1.0, mean_logit=False)
    assert (g > 0).double().mean().item() == pytest.approx(1 - REJECTED, abs=0.005)


def test_unlabelled_images_tell_old_from_new_nearly_as_labelled_ones():
    evidence, classes = seen(60, apart=2.5, sure=2.0)
    new = classes >= 2
    fresh, wanted = seen(100, seed=50, apart=2.5, sure=2.0)
    pool, told = seen(80, seed=70, apart=2.5, sure=2.0)
    some = (told < 2) | (torch.arange(len(told)) % 2 == 0)  # twice as many old ones as new ones
    labelled = fit_join(evidence, classes, 2, 2, LEVELS)
    alone = fit_join(evidence.of(new), classes[new] - 2, 0, 2, LEVELS)
    helped, share = fit_with_pool(evidence.of(new), classes[new] - 2, pool.of(some), 2, LEVELS)
    found = [accuracy(join, fresh, wanted) for join in (alone, helped, labelled)]
    assert found[1] > found[0] + 0.01 and found[1] > found[2] - 0.05
    assert abs(share - 1 / 3) < 0.15
    assert helped.weight.shape == labelled.weight.shape


@pytest.mark.parametrize("classes_of_target", [4, 1000])
def test_more_folders_of_originals_do_not_move_the_threshold(classes_of_target):
    """Two original classes alike: with images of one or of both, the gate opens as easily."""
    evidence, classes = seen(100, apart=2.0)
    alike = Evidence(*(t.clone() for t in evidence.tensors))
    for t in alike.tensors:
        t[classes == 1] = t[classes == 0]
    levels = Levels(LEVELS.mean_logit, (classes_of_target, 4))
    both = fit_join(alike, classes, 2, 2, levels, 0.5)
    one = classes != 1
    fewer = (classes[one] - 1).clamp(min=0)
    only = fit_join(alike.of(one), fewer, 1, 2, levels, 0.5)
    gates = [j.gate(*evidence.tensors) for j in (both, only)]
    assert abs((gates[0] - gates[1]).mean()) < 0.15, "log 2 = 0.69 if it followed the folders"
    assert levels.odds_of_old(2) == min(classes_of_target / 2, MOST_ORIGINALS)
