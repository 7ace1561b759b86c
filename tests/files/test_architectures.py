"""files/architectures.py: an architecture is found by its tensors, without torch or timm."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnc_cli.files import architectures
from pnc_cli.files.architectures import Index, installed_index, loads

SHAPES = {"conv.weight": (8, 3, 3, 3), "fc.weight": (10, 8), "fc.bias": (10,)}
FREE = frozenset({("conv.weight", 1), ("fc.weight", 0), ("fc.bias", 0)})
WIDER = {"conv.weight": (16, 3, 3, 3), "fc.weight": (10, 16), "fc.bias": (10,)}


def make_index(**traits):
    index = Index("1.0", traits=traits)
    for name in ("net", "twin"):
        index.add(name, SHAPES, FREE)
    index.add("wide", WIDER, FREE)
    return index


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_class_and_channel_counts_do_not_matter(classes, channels):
    shapes = {
        "conv.weight": (16, channels, 3, 3),
        "fc.weight": (classes, 16),
        "fc.bias": (classes,),
    }
    match = make_index().find(dict(reversed(shapes.items())))
    assert (match.names, match.chosen) == (("wide",), "wide")


def test_names_with_equal_tensors_are_all_found_with_what_tells_them_apart():
    match = make_index(net={"act": "ReLU"}, twin={"act": "SiLU"}).find(SHAPES)
    assert (match.names, match.chosen) == (("net", "twin"), None)
    assert match.traits == {"net": {"act": "ReLU"}, "twin": {"act": "SiLU"}}


def test_of_names_that_nothing_tells_apart_the_shortest_is_chosen():
    assert make_index(net={}, twin={}).find(SHAPES).chosen == "net"


def test_tensors_of_the_same_names_but_other_shapes_are_near():
    match = make_index().find({**SHAPES, "conv.weight": (8, 3, 5, 5)})
    assert (match.names, match.near, match.chosen) == ((), ("net", "twin", "wide"), None)


@pytest.mark.parametrize("shapes", [{}, {"fc.weight": (10, 8)}, {**SHAPES, "extra": ()}], ids=str)
def test_other_tensors_are_not_found(shapes):
    match = make_index().find(shapes)
    assert (match.names, match.near, match.chosen) == ((), (), None)


def test_forgotten_names_are_not_found():
    index = make_index(net={"act": "ReLU"}, twin={"act": "SiLU"})
    index.unbuilt["odd"] = "why"
    index.keep({"net"})
    assert index.names == {"net"} and index.find(SHAPES).chosen == "net"
    assert index.find(WIDER).names == ()


shapes = st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3), max_size=4)


@given(st.dictionaries(st.text(min_size=1), st.tuples(shapes, st.booleans()), max_size=5))
def test_a_written_index_is_read_again(architectures):
    index = Index("1.0")
    for name, (tensors, free) in architectures.items():
        axes = {(n, 0) for n, shape in tensors.items() if shape and free}
        index.add(name, tensors, frozenset(axes))
        index.traits[name] = {"depth": name}
    again = loads(index.dumps())
    assert again.dumps() == index.dumps() and again.names == index.names
    for name, (tensors, _) in architectures.items():
        assert name in again.find(tensors).names


def test_another_timm_has_an_index_of_its_own_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(architectures, "timm_version", lambda: "9.9")
    shipped = installed_index.__wrapped__()
    assert shipped.timm != "9.9"
    path = architectures.cache_file("9.9")
    path.parent.mkdir()
    for text in ("", "[]", "{}", make_index().dumps()):  # damaged, or of a third version
        path.write_text(text)
        assert installed_index.__wrapped__().timm == shipped.timm
    path.write_text(make_index().dumps().replace('"1.0"', '"9.9"'))
    assert installed_index.__wrapped__().find(WIDER).chosen == "wide"


def test_looking_up_imports_neither_torch_nor_timm():
    code = (
        "import sys; from pnc_cli.files.architectures import installed_index; "
        "assert len(installed_index().names) > 1000; "
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_says_how_many_names_the_tensors_settle():
    index = loads(resources.files("pnc_cli.files").joinpath(architectures.SHIPPED).read_text())
    unsettled = [
        n
        for names in index.ambiguous()
        for n in names
        if len({tuple(index.traits[m].items()) for m in names}) > 1
    ]
    said = f"they settle {len(index.names) - len(unsettled):,} of timm's {len(index.names):,} names"
    assert said in (Path(__file__).parents[2] / "README.md").read_text("utf-8")
