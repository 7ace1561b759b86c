"""files/header.py: the header is read strictly and written canonically."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import numpy as usual
from support.handmade import make_target, raw_file, safetensors

from pnc_cli.errors import BadInput
from pnc_cli.files.header import DTYPE_BITS, TensorEntry, format_header, parse_header, read_header

ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def test_a_written_header_has_these_bytes():
    tensors = {"b": TensorEntry("F32", (1, 2), 0, 8), "a": TensorEntry("U8", (), 8, 9)}
    text = (
        b'{"__metadata__":{"k":"\xc3\xa9","z":""},'
        b'"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}    '
    )
    assert format_header(tensors, {"z": "", "k": "é"}) == len(text).to_bytes(8, "little") + text
    assert len(text) % 8 == 0


def test_the_usual_reader_reads_a_written_header(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(format_header({"a": TensorEntry("F32", (2,), 0, 8)}, {"k": "v"}) + bytes(8))
    assert usual.load_file(path)["a"].tolist() == [0.0, 0.0]


@st.composite
def entries(draw):
    """Tensors of any dtype and shape, packed in an order of their own."""
    tensors, at = {}, 0
    names = draw(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, max_size=5
        )
    )
    for name in names:
        if name == "__metadata__":
            continue
        dtype = draw(st.sampled_from([d for d, bits in DTYPE_BITS.items() if bits >= 8]))
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        size = DTYPE_BITS[dtype] // 8
        for n in shape:
            size *= n
        tensors[name] = TensorEntry(dtype, shape, at, at + size)
        at += size
    return tensors


@given(
    entries(),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
)
def test_what_is_written_is_read_back_the_same(tensors, metadata):
    raw = format_header(tensors, metadata)
    header = parse_header(raw[8:], "x")
    assert (header.tensors, header.metadata or {}) == (tensors, metadata)
    assert list(header.tensors) == list(tensors)
    assert header.raw == raw


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except BadInput as e:
        assert "x.safetensors" in e.message


@given(st.binary(max_size=300))
def test_no_header_text_crashes_the_reader(text):
    for candidate in (text, b"{" + text, b'{"a":' + text + b"}"):
        try:
            parse_header(candidate, "x.safetensors")
        except BadInput as e:
            assert e.message.startswith("x.safetensors")


@given(st.data())
def test_a_file_with_a_changed_header_byte_is_read_whole_or_refused(tmp_path, data):
    path = make_target(tmp_path / "x.safetensors")
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except BadInput:
        return
    assert header.data_start + header.data_size == len(raw)


def header_of(**tensors):
    return json.dumps(tensors).encode()


BAD_HEADERS = {
    "not JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "not an object": (b"[]", "does not begin with"),
    "begins with a space": (b" {}", "does not begin with"),
    "a lone surrogate": (b'{"__metadata__": {"a": "\\ud800"}}', "not valid JSON"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "nested beyond reason": (b'{"a":' * 100_000, "not valid JSON"),
    "a name twice": (b'{"a": {}, "a": {}}', "'a' stands twice"),
    "a metadata key twice": (b'{"__metadata__": {"k": "1", "k": "2"}}', "'k' stands twice"),
    "metadata that is no map": (b'{"__metadata__": []}', "map from string to string"),
    "metadata that is no string": (b'{"__metadata__": {"k": 1}}', "map from string to string"),
    "an empty name": (header_of(**{"": ENTRY}), "empty name"),
    "an unknown field": (header_of(a={**ENTRY, "extra": 1}), "tensor 'a': expected exactly"),
    "a missing field": (header_of(a={"dtype": "U8", "shape": [2]}), "tensor 'a': expected exactly"),
    "an unknown dtype": (header_of(a={**ENTRY, "dtype": "Q8"}), "unknown dtype 'Q8'"),
    "a dtype that is a list": (header_of(a={**ENTRY, "dtype": []}), "unknown dtype"),
    "a negative shape": (header_of(a={**ENTRY, "shape": [-2]}), "not natural numbers"),
    "a shape of booleans": (header_of(a={**ENTRY, "shape": [True, 2]}), "not natural numbers"),
    "a shape of floats": (header_of(a={**ENTRY, "shape": [2.0]}), "not natural numbers"),
    "three offsets": (header_of(a={**ENTRY, "data_offsets": [0, 1, 2]}), "not natural numbers"),
    "a size that is not its shape's": (
        header_of(a={**ENTRY, "shape": [3]}),
        "takes 3 bytes, spans 2",
    ),
    "an end before its start": (header_of(a={**ENTRY, "data_offsets": [2, 0]}), "spans -2"),
    "a hole at the start": (
        header_of(a={**ENTRY, "data_offsets": [1, 3]}),
        "a hole before tensor 'a'",
    ),
    "a hole": (header_of(a=ENTRY, b={**ENTRY, "data_offsets": [3, 5]}), "a hole before tensor 'b'"),
    "an overlap": (
        header_of(a=ENTRY, b={**ENTRY, "data_offsets": [1, 3]}),
        "an overlap before tensor 'b'",
    ),
    "the same bytes twice": (header_of(a=ENTRY, b=ENTRY), "an overlap before tensor 'b'"),
}


@pytest.mark.parametrize("text, message", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_header_is_refused_with(text, message):
    with pytest.raises(BadInput, match=message):
        parse_header(text, "x.safetensors")


TENSORS = {"a": ("F32", (4,), bytes(16))}
BAD_FILES = {
    "an empty file": (b"", "too short"),
    "seven bytes": (bytes(7), "too short"),
    "a header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "a header of 2 GB": ((1 << 31).to_bytes(8, "little") + b"{}", "header length 2,147,483,648"),
    "one byte cut off": (safetensors(TENSORS)[:-1], "truncated"),
    "one byte more": (safetensors(TENSORS) + b"\0", "longer than its header says"),
    "no header": (raw_file(b""), "does not begin with"),
}


@pytest.mark.parametrize("data, message", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_is_refused_with(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        read_header(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is a folder, expected a regular file"):
        read_header(tmp_path)


def test_odd_padding_and_zero_sizes_are_read(tmp_path):
    tensors = {
        "empty": ("F32", (0, 3), b""),
        "scalar": ("I64", (), bytes(8)),
        "none": ("U8", (0,), b""),
    }
    path = make_target(tmp_path / "x.safetensors", tensors, pad=b" " * 5)
    header = read_header(path)
    assert {n: (t.shape, t.size) for n, t in header.tensors.items()} == {
        "empty": ((0, 3), 0),
        "scalar": ((), 8),
        "none": ((0,), 0),
    }
    assert header.raw == path.read_bytes()[:-8]
