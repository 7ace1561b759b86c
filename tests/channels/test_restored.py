"""channels/restored.py: what others tell of a channel is not lost with it."""

import numpy as np
import torch
from support.modules import whole
from support.networks import RESNET

from pnc_cli.channels.contributions import moments_of
from pnc_cli.channels.groups import prunable_groups
from pnc_cli.channels.prune import masked
from pnc_cli.channels.restored import elimination_order, estimate, restored


def moments(rows):
    return (rows.T @ rows).numpy() / len(rows)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_channels_that_others_repeat_go_first():
    free = drawn(5000, 6)
    rows = torch.cat([free, free[:, :3] @ drawn(3, 2, seed=1)], 1)  # 6 and 7 repeat 0 to 2
    nothing = np.zeros((8, 8))
    order, missing = elimination_order(moments(rows), np.eye(8) / 8, nothing)
    assert sorted(order) == list(range(8)) and set(order[:2]) < {0, 1, 2, 6, 7}
    assert (np.diff(missing) >= 0).all() and missing[2] < 0.02 * missing[3]


def test_what_is_missing_is_what_no_mixture_gives():
    rows, weight = drawn(4000, 5) @ drawn(5, 5, seed=1), drawn(7, 5, seed=2)
    order, missing = elimination_order(moments(rows), (weight.T @ weight).numpy(), np.zeros((5, 5)))
    kept = order[2:].copy()
    told = rows[:, kept] @ torch.linalg.lstsq(rows[:, kept], rows).solution
    lost = ((rows - told) @ weight.T).square().sum(1).mean()
    assert abs(missing[2] / lost - 1) < 0.05


def test_what_moves_the_answers_stays():
    moved = np.diag([0.0, 0.0, 1.0, 0.0])
    order, _ = elimination_order(np.eye(4), np.eye(4) / 4, moved)
    assert order[-1] == 2


def test_large_groups_go_in_rounds():
    rows = drawn(2000, 300)
    order, missing = elimination_order(moments(rows), np.eye(300), np.zeros((300, 300)))
    assert sorted(order) == list(range(300)) and len(missing) == 301


def test_an_estimate_tells_what_is_told():
    given = drawn(3000, 3)
    wanted = given @ drawn(3, 4, seed=1)
    told = estimate(given.T @ given / 3000, wanted.T @ given / 3000)
    assert (given @ told.T - wanted).square().mean() < 1e-3 * wanted.square().mean()


def test_restored_channels_are_missed_less_than_masked_ones():
    _, module, _, features = whole("resnet18", **RESNET)
    groups = prunable_groups(module.part, features[:2])
    found = moments_of(module, features, groups)
    with torch.no_grad():
        expected = torch.cat(module(features.clone()), 1)
        gone = np.zeros(2)
        for g in groups:
            stay = np.arange(g.size) % 2 == 0
            told, lost = restored(module.part, g, stay, found), masked(module.part, [(g, stay)])
            for k, context in enumerate((told, lost)):
                with context:
                    gone[k] += (torch.cat(module(features.clone()), 1) - expected).norm().item()
        assert gone[0] < 0.9 * gone[1]
        assert torch.equal(torch.cat(module(features.clone()), 1), expected)
