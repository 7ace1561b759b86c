"""network/layout.py: every layout has one canonical form, and comes back from it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnc_cli.manifest import Layout
from pnc_cli.network.layout import from_map, map_kind, to_map, token_grid


def make_layout(kind, channels, h, w, prefix):
    shape = {
        "NCHW": (channels, h, w),
        "NHWC": (h, w, channels),
        "NC": (channels,),
        "NLC": (prefix + h * w, channels),
    }[kind]
    grid = (1, 1) if kind == "NC" else (h, w)
    return Layout(kind, shape, grid, prefix if kind == "NLC" else 0)


layouts = st.builds(
    make_layout,
    st.sampled_from(["NCHW", "NHWC", "NLC", "NC"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
)


@given(layouts, st.integers(1, 3))
def test_features_come_back_from_their_map(layout, batch):
    x = torch.arange(batch * layout.elements).float().reshape(batch, *layout.shape)
    grid, prefix = to_map(x, layout)
    assert grid.shape == (batch, layout.channels, *layout.grid)
    assert (0 if prefix is None else prefix.shape[1]) == layout.prefix
    assert torch.equal(from_map(grid, prefix, layout), x)
    assert from_map(grid, prefix, layout).is_contiguous()


@pytest.mark.parametrize(
    "layout, x, expected",
    [
        (
            Layout("NHWC", (1, 2, 3), (1, 2)),
            [[[1, 2, 3], [4, 5, 6]]],
            [[[1, 4]], [[2, 5]], [[3, 6]]],
        ),
        (Layout("NLC", (3, 2), (1, 2), 1), [[9, 9], [1, 2], [3, 4]], [[[1, 3]], [[2, 4]]]),
        (Layout("NC", (2,), (1, 1)), [1, 2], [[[1]], [[2]]]),
    ],
    ids=lambda v: getattr(v, "kind", ""),
)
def test_the_map_is_channels_height_width(layout, x, expected):
    assert to_map(torch.tensor([x]), layout)[0].tolist() == [expected]


@pytest.mark.parametrize("length, hint, aspect, expected", [
    (196, 1, 1.0, (0, (14, 14))), (197, 1, 1.0, (1, (14, 14))), (198, 2, 1.0, (2, (14, 14))),
    (201, 5, 1.0, (5, (14, 14))), (261, 5, 1.0, (5, (16, 16))), (17, 0, 1.0, (1, (4, 4))),
    (32, 0, 2.0, (0, (4, 8))), (33, 1, 0.5, (1, (8, 4))), (1, 0, 1.0, (0, (1, 1))), (31, 0, 1.0, None),
])  # fmt: skip
def test_tokens_are_split_into_prefix_and_grid(length, hint, aspect, expected):
    assert token_grid(length, hint, aspect) == expected


@pytest.mark.parametrize(
    "shape, hint, kind",
    [
        ((8, 4, 4), None, "NCHW"),
        ((4, 4, 8), None, "NHWC"),
        ((4, 4, 4), "last", "NHWC"),
        ((4, 4, 4), None, "NCHW"),
        ((4, 4, 8), "first", "NCHW"),
        ((96, 1, 1), None, "NCHW"),
    ],
)
def test_the_reader_of_a_map_knows_its_layout_best(shape, hint, kind):
    assert map_kind(shape, hint) == kind
