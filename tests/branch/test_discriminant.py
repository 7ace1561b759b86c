"""branch/discriminant.py: Gaussian scores, however many the features and however few the images."""

import pytest
import torch

from pnc_cli.branch.discriminant import (
    SHRINKAGE,
    SHRINKAGES,
    _for_each_shrinkage,
    best_shrinkage,
    discriminant,
    folds,
    left_out,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_kinds(per_class=40):
    """Pre-logits of 2 old and 2 new classes in 6 dimensions, well apart."""
    centres = 4 * torch.eye(6)[:4]
    classes = torch.arange(4).repeat_interleave(per_class)
    return centres[classes] + noise(len(classes), 6), classes


def test_the_discriminant_does_not_mind_scale_and_shift():
    features, classes = two_kinds()
    scores = []
    for scale, shift in ((1, 0), (1e3, 50), (1e-3, -7)):
        x = features * scale + shift
        weight, bias = discriminant(x, classes, 4, SHRINKAGE)
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
    weight, bias = discriminant(features, classes, 4, SHRINKAGE)
    expected = direct(features, classes, 4)
    torch.testing.assert_close(weight, expected[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(bias, expected[1], rtol=1e-6, atol=1e-6)


def test_a_class_without_images_never_wins():
    features, classes = two_kinds()
    weight, bias = discriminant(features, classes, 5, SHRINKAGE)
    assert ((features.double() @ weight.T + bias).argmax(1) < 4).all()


@pytest.mark.parametrize("per_class", [3, 30], ids=["few images", "many"])
def test_one_decomposition_gives_every_shrinkage(per_class):
    classes = torch.arange(4).repeat_interleave(per_class)
    features = 3 * torch.eye(40)[classes] + noise(len(classes), 40)
    every = list(_for_each_shrinkage(features, classes, 4))
    assert len(every) == len(SHRINKAGES)
    for shrinkage, (weight, bias) in zip(SHRINKAGES, every):
        expected = discriminant(features, classes, 4, shrinkage)
        torch.testing.assert_close(weight, expected[0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(bias, expected[1], rtol=1e-6, atol=1e-6)


def test_few_images_and_many_features_want_more_shrinkage():
    """Old and new classes differ in features that vary with others: with images enough to know how,
    the covariance is worth having."""
    mixing = noise(60, 60, seed=3) / 60**0.5

    def drawn(per_class):
        classes = torch.arange(4).repeat_interleave(per_class)
        return (0.4 * noise(4, 60, seed=4)[classes] + noise(len(classes), 60)) @ mixing, classes

    assert best_shrinkage(*drawn(4), 2, 2) > best_shrinkage(*drawn(150), 2, 2)
    features, classes = drawn(4)
    assert best_shrinkage(features[:4], classes[:4], 0, 2) == SHRINKAGE  # nothing to choose it by


def test_an_image_is_left_out_of_what_it_is_scored_by():
    features, classes = two_kinds(10)
    scores, known = left_out(features, classes, 4, SHRINKAGE)
    assert known.all()
    fold = folds(classes)
    for k in range(5):
        weight, bias = discriminant(features[fold != k], classes[fold != k], 4, SHRINKAGE)
        torch.testing.assert_close(
            scores[fold == k], features[fold == k].double() @ weight.T + bias
        )


def test_an_only_image_of_its_class_stays_in_every_fit_and_the_others_are_left_out():
    features, classes = two_kinds(10)
    keep = torch.ones(len(classes), dtype=torch.bool)
    keep[31:] = False  # one image of the last class
    scores, known = left_out(features[keep], classes[keep], 4, SHRINKAGE)
    assert known.tolist() == [True] * 30 + [False]
    assert (scores[:30].argmax(1) == classes[:30]).double().mean() > 0.9
