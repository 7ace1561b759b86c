"""branch/join.py: new logits that compete fairly with the target's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnc_cli.branch.join import GaussianGate, Join, Mixture, OneSidedGate, from_tensors


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


JOINS = [Mixture(3, 4, 3, 2), Mixture(3, 4, 0, 2), GaussianGate(7, 3, 2), OneSidedGate(4)]


def test_a_mixture_is_what_its_docstring_says():
    join = random(Mixture(3, 4, 3, 2))
    f_t, f_b, z_t, z_b = noise(5, 3), noise(5, 4, seed=1), noise(5, 3, seed=2), noise(5, 2, seed=3)
    s = torch.cat([f_t, f_b], 1) @ join.weight.T + join.bias
    odds = s[:, 3:].logsumexp(1) - s[:, :3].logsumexp(1)
    m_b = f_b @ join.mean_weight + join.mean_bias
    e = (z_b - m_b[:, None]).logsumexp(1) - (z_t - z_t.mean(1, keepdim=True)).logsumexp(1)
    a, b, c = join.gating
    r = join.ranking[0] * z_b.log_softmax(1) + join.ranking[1] * s[:, 3:].log_softmax(1)
    expected = (a * odds + b * e + c + z_t.logsumexp(1))[:, None] + r.log_softmax(1)
    torch.testing.assert_close(join(f_t, f_b, z_t, z_b), expected)


def test_a_mixture_without_a_copied_part_reads_the_target_alone():
    join, f_t, z_t = random(Mixture(3, 0, 3, 2)), noise(5, 3), noise(5, 3, seed=2)
    shown = [join(f_t, f_t[:, :0], z_t, z_b) for z_b in (torch.zeros(5, 2), noise(5, 2, seed=3))]
    assert torch.equal(*shown)
    assert shown[0].shape == (5, 2) and shown[0].isfinite().all()


@pytest.mark.parametrize("join", JOINS, ids=lambda j: j.kind)
def test_recalibrating_is_a_slope_and_an_offset_of_the_log_odds(join):
    random(join)
    evidence = noise(4, 3), noise(4, 4), noise(4, 3), noise(4, 2)
    before = join.gate(*evidence)
    join.recalibrate(torch.tensor(0.5), torch.tensor(2.0))
    torch.testing.assert_close(join.gate(*evidence), 0.5 * before + 2.0)


def random(join):
    tensors = {
        n: noise(t.numel(), seed=k).reshape(t.shape)
        for k, (n, t) in enumerate(join.state_dict().items())
    }
    join.load_state_dict(tensors)
    return join


@pytest.mark.parametrize("join", JOINS, ids=lambda j: j.kind)
def test_a_join_is_the_same_again_from_its_tensors(join):
    again = from_tensors(random(join).kind, join.state_dict(), new=2)
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
