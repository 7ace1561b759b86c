"""branch/join.py: new logits that compete fairly with the target's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnc_cli.branch.join import (
    MOST_REJECTED,
    REJECTED,
    SHRINKAGE,
    GaussianGate,
    Join,
    OneSidedGate,
    discriminant,
    fit_gaussian,
    fit_one_sided,
    from_tensors,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class FixedGate(Join):
    """A join whose gate is given."""

    def __init__(self, g):
        super().__init__()
        self.g = g

    def gate(self, *evidence):
        return self.g


@given(st.integers(2, 5), st.integers(1, 4), st.floats(-8, 8), st.integers(0, 99))
def test_the_softmax_is_the_mixture_that_the_gate_says(old, new, g, seed):
    z_t, z_b = 3 * noise(4, old, seed=seed), 3 * noise(4, new, seed=seed + 1)
    z = FixedGate(torch.full((4,), g))(None, None, z_t, z_b)
    p, share = torch.cat([z_t, z], 1).softmax(1), torch.sigmoid(torch.tensor(g))
    assert torch.allclose(p[:, old:], share * z_b.softmax(1), atol=1e-5)
    assert torch.allclose(p[:, :old], (1 - share) * z_t.softmax(1), atol=1e-5)


def test_a_branch_far_below_zero_is_silent():
    z_t, z_b = noise(4, 5), 100 * noise(4, 3, seed=1)
    z = FixedGate(torch.full((4,), -100.0))(None, None, z_t, z_b)
    assert torch.equal(torch.cat([z_t, z], 1).softmax(1)[:, :5], z_t.softmax(1))


def two_kinds(per_class=40):
    """Pre-logits of 2 old and 2 new classes in 6 dimensions, well apart."""
    centres = 4 * torch.eye(6)[:4]
    classes = torch.arange(4).repeat_interleave(per_class)
    return centres[classes] + noise(len(classes), 6), classes


def test_the_gaussian_gate_tells_old_from_new():
    features, classes = two_kinds()
    gate = fit_gaussian(features, classes, old=2, new=2)
    fresh = features + 0.5 * noise(*features.shape, seed=7)
    g = gate.gate(fresh[:, :3], fresh[:, 3:], None, None)
    assert ((g > 0) == (classes >= 2)).double().mean() > 0.95


def test_the_discriminant_does_not_mind_scale_and_shift():
    features, classes = two_kinds()
    scores = []
    for scale, shift in ((1, 0), (1e3, 50), (1e-3, -7)):
        x = features * scale + shift
        weight, bias = discriminant(x, classes, 4)
        scores.append(x.double() @ weight.T + bias)
    assert torch.allclose(scores[0], scores[1], atol=1e-2)
    assert torch.allclose(scores[0], scores[2], atol=1e-2)


def direct(features, classes, count):
    """Scores by the covariance itself, whatever its size: weight (count, D) and bias (count,)."""
    x = features.double()
    centre, scale = x.mean(0), x.std(0)
    x = (x - centre) / scale
    mean = torch.stack([x[classes == c].mean(0) for c in range(count)])
    rest = x - mean[classes]
    covariance = rest.T @ rest / (len(x) - count)
    level = covariance.trace() / len(covariance) * torch.eye(len(covariance), dtype=torch.float64)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * level
    weight = torch.linalg.solve(shrunk, mean.T).T
    bias = -0.5 * (weight * mean).sum(1)
    return weight / scale, bias - (weight / scale) @ centre


@pytest.mark.parametrize("per_class", [2, 5, 9, 10, 11, 60], ids=lambda n: f"{4 * n} images")
def test_the_discriminant_is_the_same_in_the_dimensions_of_images_and_of_features(per_class):
    """40 features: images may be fewer, as many, or more."""
    classes = torch.arange(4).repeat_interleave(per_class)
    features = 3 * torch.eye(40)[classes] + noise(len(classes), 40) + 7
    features = features @ torch.diag(torch.linspace(0.1, 10, 40))
    weight, bias = discriminant(features, classes, 4)
    expected = direct(features, classes, 4)
    torch.testing.assert_close(weight, expected[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(bias, expected[1], rtol=1e-6, atol=1e-6)


def test_a_class_without_images_never_wins():
    features, classes = two_kinds()
    weight, bias = discriminant(features, classes, 5)
    assert ((features.double() @ weight.T + bias).argmax(1) < 4).all()


def test_features_that_never_vary_are_harmless():
    features, classes = two_kinds()
    gate = fit_gaussian(torch.cat([features, torch.ones(len(features), 2)], 1), classes, 2, 2)
    assert all(torch.isfinite(t).all() for t in gate.state_dict().values())


@pytest.mark.parametrize("per_class", [1, 2])
def test_very_few_images_still_give_a_finite_gate(per_class):
    gate = fit_gaussian(*two_kinds(per_class), 2, 2)
    assert all(torch.isfinite(t).all() for t in gate.state_dict().values())
    assert 0.05 <= gate.calibration[0] <= 5


def one_sided(clear, mean_logit=True, sources=5):
    """A gate fitted to 400 clone images whose evidence is ``clear`` higher than the target's."""
    z_t, z_b, pre = noise(400, 5), noise(400, 3, seed=1) + clear, noise(400, 4, seed=2)
    known = (torch.zeros(4), torch.tensor(0.0)) if mean_logit else None
    gate = fit_one_sided(pre, z_t, z_b, known, (5, sources))
    return gate, gate.gate(None, pre, z_t, z_b)


def test_the_clearer_the_evidence_the_fewer_clone_images_are_given_up():
    given_up = [(one_sided(clear)[1] < 0).double().mean().item() for clear in (1.0, 2.0, 6.0)]
    assert given_up[0] > given_up[1] > given_up[2] == 0.0
    assert one_sided(1.0)[0].slope < one_sided(2.0)[0].slope


def test_as_many_originals_would_be_taken_as_clone_images_are_given_up_but_for_caution():
    """Mirrored images have the evidence -e: g = -slope e + offset of them is above zero less often."""
    gate, g = one_sided(1.0)
    mirrored = 2 * gate.offset - g
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


@pytest.mark.parametrize("join", [GaussianGate(7, 3, 2), OneSidedGate(4)], ids=lambda j: j.kind)
def test_a_join_is_the_same_again_from_its_tensors(join):
    tensors = {
        n: noise(t.numel(), seed=k).reshape(t.shape)
        for k, (n, t) in enumerate(join.state_dict().items())
    }
    join.load_state_dict(tensors)
    again = from_tensors(join.kind, tensors, new=2)
    evidence = noise(4, 3), noise(4, 4), noise(4, 3), noise(4, 2)
    assert torch.equal(again(*evidence), join(*evidence))


@pytest.mark.parametrize(
    "kind, tensors",
    [
        ("gaussian-gate", {}),
        ("gaussian-gate", {"weight": torch.zeros(5, 7)}),
        ("one-sided-gate", {}),
        ("one-sided-gate", {"calibration": torch.zeros(1), "more": torch.zeros(1)}),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(kind, tensors):
    with pytest.raises((KeyError, RuntimeError)):
        from_tensors(kind, tensors, new=2)
