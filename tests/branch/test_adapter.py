"""branch/adapter.py: features of one network become those of another."""

import pytest
import torch
import torch.nn.functional as F

from pnc_cli.branch.adapter import Adapter, Regression, exact_input, kernel_for, resample, ridge
from pnc_cli.manifest import Layout, Preprocessing

MAP = Layout("NCHW", (4, 8, 8), (8, 8))
SMALL = Layout("NHWC", (4, 4, 3), (4, 4))
TOKENS = Layout("NLC", (18, 5), (4, 4), 2)
VECTOR = Layout("NC", (6,), (1, 1))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tap", [MAP, SMALL, TOKENS], ids=lambda v: v.kind)
@pytest.mark.parametrize("cut", [MAP, SMALL, TOKENS, VECTOR], ids=lambda v: v.kind)
def test_any_layout_becomes_any_other(tap, cut):
    adapter = Adapter(tap, cut, 1)
    assert adapter(noise(2, *tap.shape)).shape == (2, *cut.shape)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("tap", [MAP, SMALL, TOKENS], ids=lambda v: v.kind)
@pytest.mark.parametrize("cut", [SMALL, TOKENS, VECTOR], ids=lambda v: v.kind)
def test_ridge_finds_an_adapter_again_from_what_it_did(tap, cut, kernel):
    hidden, found = Adapter(tap, cut, kernel), Adapter(tap, cut, kernel)
    for k, p in enumerate(hidden.parameters()):
        p.data = noise(*p.shape, seed=k)
    if kernel == 3 and cut.grid == (1, 1):  # the neighbours of a single cell are padding
        hidden.weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    x = noise(300, *tap.shape, seed=9)
    ridge([found], x, [hidden(x).detach()], strength=1e-9)
    for name, p in hidden.named_parameters():
        assert torch.allclose(dict(found.named_parameters())[name], p, atol=1e-3), name


def test_several_cuts_share_one_regression():
    others = [Layout("NCHW", (c, 4, 4), (4, 4)) for c in (2, 5)]
    x, together, alone = noise(50, *MAP.shape), [], []
    features = [noise(50, *cut.shape, seed=k) for k, cut in enumerate(others)]
    together = [Adapter(MAP, cut, 3) for cut in others]
    ridge(together, x, features)
    for one, cut, y in zip(together, others, features):
        alone = Adapter(MAP, cut, 3)
        ridge([alone], x, [y])
        assert torch.allclose(one.weight, alone.weight, atol=1e-6)


def test_a_part_of_the_cells_is_enough_and_always_the_same():
    x, y = noise(50, *MAP.shape), noise(50, *SMALL.shape, seed=1)
    weights = []
    for _ in range(2):
        adapter = Adapter(MAP, SMALL, 1)
        ridge([adapter], x, [y], rows=200)
        weights.append(adapter.weight.detach().clone())
    assert torch.equal(*weights)


def test_regularisation_shrinks_towards_the_mean_at_any_scale():
    x, y = noise(100, 3), noise(100, 2, seed=1) + 5
    for scale in (1e-3, 1.0, 1e3):
        sums = Regression.empty(3, 2)
        sums.add(x * scale, y)
        weight, bias = sums.solve(1e9)
        assert (weight * scale).abs().max() < 1e-6
        assert torch.allclose(bias, y.mean(0), atol=1e-4)


@pytest.mark.parametrize(
    "size, grid", [((8, 8), (4, 4)), ((8, 8), (1, 1)), ((7, 5), (3, 2)), ((4, 4), (8, 8))]
)
def test_resampling_keeps_a_constant_and_makes_the_grid(size, grid):
    x = torch.full((1, 2, *size), 3.0)
    assert torch.allclose(resample(x, grid), torch.full((1, 2, *grid), 3.0))


def test_shrinking_averages():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resample(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resample(x, (4, 4)) is x


@pytest.mark.parametrize(
    "tap, cut, kernel",
    [
        (MAP, SMALL, 3),
        (MAP, VECTOR, 1),
        (TOKENS, SMALL, 3),
        (Layout("NCHW", (134, 4, 4), (4, 4)), SMALL, 1),
        (Layout("NCHW", (133, 4, 4), (4, 4)), SMALL, 3),
    ],
)
def test_neighbours_are_read_where_there_are_any_and_the_regression_stays_small(tap, cut, kernel):
    assert kernel_for(tap, cut, 10**9) == kernel


def test_neighbours_are_not_read_where_that_costs_much_beside_the_module():
    macs = 9 * MAP.channels * SMALL.channels * 16
    assert kernel_for(MAP, SMALL, 10 * macs) == 3
    assert kernel_for(MAP, SMALL, 10 * macs - 10) == 1


def test_macs_are_those_of_the_convolution_and_the_tokens():
    assert Adapter(MAP, SMALL, 3).macs == 16 * (3 * 4 * 9)
    assert Adapter(MAP, TOKENS, 1).macs == 16 * (5 * 4) + 2 * 5 * 4


def preprocessing(channels, mean, std):
    return Preprocessing(
        input_size=(channels, 8, 8),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
        mean=mean,
        std=std,
    )


def test_from_image_to_image_the_adapter_is_exact():
    one, other = (
        preprocessing(3, [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]),
        preprocessing(3, [0.5] * 3, [0.25] * 3),
    )
    image = torch.rand(2, 3, 8, 8)
    seen = [
        F.batch_norm(image, torch.tensor(p.mean), torch.tensor(p.std) ** 2, eps=0)
        for p in (one, other)
    ]
    rgb, grey = Layout("NCHW", (3, 8, 8), (8, 8)), Layout("NCHW", (1, 8, 8), (8, 8))
    assert torch.allclose(exact_input(rgb, rgb, one, other)(seen[0]), seen[1], atol=1e-5)
    assert exact_input(rgb, grey, one, preprocessing(1, [0.5], [0.5])) is None
