"""branch/adapter.py: features of one network become those of another."""

import pytest
import torch
import torch.nn.functional as F

from pnc_cli.branch.adapter import (
    Adapter,
    AdapterFit,
    Regression,
    exact_input,
    kernel_for,
    resample,
)
from pnc_cli.manifest import Layout, Preprocessing
from pnc_cli.network.layout import to_map

MAP = Layout("NCHW", (4, 8, 8), (8, 8))
SMALL = Layout("NHWC", (4, 4, 3), (4, 4))
TOKENS = Layout("NLC", (18, 5), (4, 4), 2)
VECTOR = Layout("NC", (6,), (1, 1))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(tap, cuts, kernel, x, features, *, batch=64, cells=10**6, strength=1e-3):
    """Adapters to ``cuts``, with what each explains, from features a batch at a time."""
    fit, drawn = AdapterFit(tap, cuts, kernel, cells), torch.Generator().manual_seed(0)
    for part in torch.arange(len(x)).split(batch):
        fit.add(x[part], [y[part] for y in features], drawn)
    return fit.solve(strength)


@pytest.mark.parametrize("tap", [MAP, SMALL, TOKENS], ids=lambda v: v.kind)
@pytest.mark.parametrize("cut", [MAP, SMALL, TOKENS, VECTOR], ids=lambda v: v.kind)
def test_any_layout_becomes_any_other(tap, cut):
    adapter = Adapter(tap, cut, 1)
    assert adapter(noise(2, *tap.shape)).shape == (2, *cut.shape)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("tap", [MAP, SMALL, TOKENS], ids=lambda v: v.kind)
@pytest.mark.parametrize("cut", [SMALL, TOKENS, VECTOR], ids=lambda v: v.kind)
def test_ridge_finds_an_adapter_again_from_what_it_did(tap, cut, kernel):
    hidden = Adapter(tap, cut, kernel)
    for k, p in enumerate(hidden.parameters()):
        p.data = noise(*p.shape, seed=k)
    if kernel == 3 and cut.grid == (1, 1):  # the neighbours of a single cell are padding
        hidden.weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    x = noise(300, *tap.shape, seed=9)
    [(found, explained)] = fitted(tap, [cut], kernel, x, [hidden(x).detach()], strength=1e-9)
    assert explained == pytest.approx(1.0, abs=1e-5)
    for name, p in hidden.named_parameters():
        assert torch.allclose(dict(found.named_parameters())[name], p, atol=1e-3), name


def test_several_cuts_share_one_regression():
    others = [Layout("NCHW", (c, 4, 4), (4, 4)) for c in (2, 5)]
    x = noise(50, *MAP.shape)
    features = [noise(50, *cut.shape, seed=k) for k, cut in enumerate(others)]
    for (one, explained), cut, y in zip(fitted(MAP, others, 3, x, features), others, features):
        [(alone, as_much)] = fitted(MAP, [cut], 3, x, [y])
        assert torch.allclose(one.weight, alone.weight, atol=1e-6)
        assert explained == pytest.approx(as_much, abs=1e-6)


def test_a_part_of_the_cells_is_enough_and_always_the_same():
    x = noise(50, *MAP.shape)
    y = 3 * resample(x, SMALL.grid)[:, :3].movedim(1, 3) + 0.1 * noise(50, *SMALL.shape, seed=1)
    (one,), (two,), (other,) = (fitted(MAP, [SMALL], 1, x, [y], cells=c) for c in (4, 4, 16))
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert torch.allclose(one[0].weight, other[0].weight, atol=0.1)


def reference(x, y, kernel, strength=1e-3):
    """Ridge solution (c, d), (c,) of all rows at once, in float64: maps (N, C, H, W) of one grid."""
    rows = F.unfold(x.double(), kernel, padding=kernel // 2).movedim(1, 2).flatten(0, 1)
    wanted = y.double().flatten(2).movedim(1, 2).flatten(0, 1)
    x_mean, y_mean = rows.mean(0), wanted.mean(0)
    rest = rows - x_mean
    penalty = strength * len(rows) * rest.square().mean()
    weighed = torch.cat([rest, penalty.sqrt() * torch.eye(rows.shape[1], dtype=torch.float64)])
    padded = F.pad(wanted - y_mean, (0, 0, 0, rows.shape[1]))
    weight = torch.linalg.lstsq(weighed, padded).solution.T
    return weight, y_mean - weight @ x_mean


@pytest.mark.parametrize("off", [0.0, 1000.0])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_batches_of_any_size_give_the_solution_of_all_rows_at_once(kernel, batch, off):
    """However far the features are from zero beside their spread."""
    cut = Layout("NCHW", (3, 8, 8), (8, 8))
    x = noise(40, *MAP.shape) + off * torch.tensor([1.0, -1.0, 0.5, 2.0])[:, None, None]
    hidden = noise(3, 4, kernel, kernel, seed=1) / kernel
    y = F.conv2d(x, hidden, padding=kernel // 2) + noise(40, *cut.shape, seed=2)
    weight, bias = reference(x, y, kernel)
    [(found, explained)] = fitted(MAP, [cut], kernel, x, [y], batch=batch)
    near = 5e-3 if off else 1e-5  # beside features far from zero, the padding is a feature too
    assert (found.weight.flatten(1) - weight).abs().max() < near
    expected = F.conv2d(x.double(), weight.view_as(found.weight), bias, padding=kernel // 2)
    given = found(x).double()
    assert (given - expected).square().mean().sqrt() < 1e-4 * y.std(dim=(0, 2, 3)).min()
    spread = (y - y.double().mean((0, 2, 3), True)).square().sum()
    measured = 1 - ((y - given).square().sum() / spread).item()
    assert measured > 0.5 and explained == pytest.approx(measured, abs=1e-5)


@pytest.mark.parametrize("tap", [MAP, TOKENS], ids=lambda v: v.kind)
@pytest.mark.parametrize("cut", [SMALL, TOKENS, VECTOR], ids=lambda v: v.kind)
def test_what_is_said_to_be_explained_is_what_the_adapter_explains(tap, cut):
    """Of the cells; tokens beside them are not counted."""
    hidden = Adapter(tap, cut, 1)
    for k, p in enumerate(hidden.parameters()):
        p.data = noise(*p.shape, seed=k)
    x = noise(200, *tap.shape, seed=9)
    y = hidden(x).detach()
    y = y + y.std() * noise(*y.shape, seed=10)
    [(found, explained)] = fitted(tap, [cut], 1, x, [y], batch=33)
    wanted, given = (to_map(t, cut)[0].double() for t in (y, found(x)))
    spread = (wanted - wanted.mean((0, 2, 3), True)).square().sum()
    measured = 1 - ((wanted - given).square().sum() / spread).item()
    assert 0.1 < measured < 0.9 and explained == pytest.approx(measured, abs=1e-4)


def test_a_finer_map_is_averaged_to_the_cuts_grid():
    fine = noise(60, 8, 8, 3, seed=1)
    coarse = resample(fine.movedim(3, 1), (4, 4)).movedim(1, 3)
    x = noise(60, *MAP.shape)
    (one,), (other,) = (fitted(MAP, [SMALL], 3, x, [y]) for y in (fine, coarse))
    assert torch.equal(one[0].weight, other[0].weight) and one[1] == other[1]


def rows_of(count, seed, off=0.0):
    x, y = noise(count, 6, seed=seed) + off, noise(count, 3, seed=seed + 50)
    return x, y + x[:, :3] + off


@pytest.mark.parametrize("off", [0.0, 30.0], ids=["alike", "the halves far apart"])
def test_sums_over_halves_are_sums_over_the_whole(off):
    """So parts of the images can be looked at anywhere; each half has its own origin."""
    halves = [rows_of(100, 1), rows_of(60, 2, off)]
    whole, one, other = (Regression(6, 3) for _ in range(3))
    for sums, (x, y) in zip((one, other), halves):
        for each in (whole, sums):
            each.add(x[:10], y[:10])
            each.add(x[10:], y[10:])
    one.merge(other)
    assert one.rows == whole.rows == 160
    for mine, all_of_it in zip((one.xx, one.xy, one.yy), (whole.xx, whole.xy, whole.yy)):
        torch.testing.assert_close(mine, all_of_it, rtol=1e-5, atol=1e-5 * all_of_it.abs().max())
    for mine, all_of_it in zip(one.solve(1e-3), whole.solve(1e-3)):
        torch.testing.assert_close(mine, all_of_it, rtol=1e-3, atol=1e-3)


def test_sums_of_nothing_change_nothing_and_take_all():
    x, y = rows_of(40, 1)
    some = Regression(6, 3)
    some.add(x, y)
    expected = some.solve(1e-3)
    some.merge(Regression(6, 3))
    empty = Regression(6, 3)
    empty.merge(some)
    for sums in (some, empty):
        assert sums.rows == 40
        for found, wanted in zip(sums.solve(1e-3), expected):
            torch.testing.assert_close(found, wanted)


def test_what_was_added_to_cannot_change_what_was_merged():
    x, y = rows_of(40, 1)
    some, taken = Regression(6, 3), Regression(6, 3)
    some.add(x, y)
    taken.merge(some)
    before = taken.solve(1e-3)
    some.add(*rows_of(40, 2, 5.0))
    for found, wanted in zip(taken.solve(1e-3), before):
        assert torch.equal(found, wanted)


def test_a_regression_without_rows_is_refused():
    with pytest.raises(ValueError, match="without rows"):
        Regression(3, 2).solve(1e-3)


def test_regularisation_shrinks_towards_the_mean_at_any_scale():
    x, y = noise(100, 3), noise(100, 2, seed=1) + 5
    for scale in (1e-3, 1.0, 1e3):
        sums = Regression(3, 2)
        sums.add(x * scale, y)
        weight, bias, _ = sums.solve(1e9)
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
