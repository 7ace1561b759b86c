"""files/against_source.py: promise 3, checked by anybody who has the source."""

import pytest
from support.handmade import clone_tensors, make_clone, make_target, numbers, rewrite_manifest

from pnc_cli.errors import Incompatible
from pnc_cli.files.against_source import verify_source
from pnc_cli.files.clone_file import RawTensor, open_clone
from pnc_cli.files.opened import open_checkpoint


@pytest.fixture
def source(tmp_path):
    tensors = {
        "a.weight": ("F32", (3, 4, 2), numbers(96, 1)),
        "b.weight": ("BF16", (2, 5), numbers(20, 2)),
        "rest": ("F32", (1,), numbers(4, 3)),
    }
    return make_target(tmp_path / "s.safetensors", tensors)


def rows(data, *picked):
    return b"".join(data[at : at + 8] for at in picked)


def clone_of(tmp_path, change=lambda d: None, a=None):
    """A clone that has channels 2, 0 and inputs 3, 1 of ``a.weight``, and all of ``b.weight``."""
    data = numbers(96, 1)
    a = rows(data, 88, 72, 24, 8) if a is None else a
    tensors = {n: t for n, t in clone_tensors().items() if not n.startswith("module.")}
    tensors["module.a.weight"] = RawTensor("F32", (2, 2, 2), a)
    tensors["module.b.weight"] = RawTensor("BF16", (2, 5), numbers(20, 2))
    target = make_target(tmp_path / "t.safetensors")
    path = make_clone(tmp_path / "c.safetensors", target, tensors=tensors)

    def slices(document):
        document["module"]["a.weight"]["kept"] = [
            {"axis": 0, "indices": [2, 0]},
            {"axis": 1, "indices": [3, 1]},
        ]
        change(document)

    return open_clone(rewrite_manifest(path, slices))


def test_3_slices_of_the_source_are_found_to_be_its_own(tmp_path, source):
    found = verify_source(clone_of(tmp_path), open_checkpoint(source))
    assert (found.tensors, found.bytes, found.same_source) == (2, 32 + 20, False)


@pytest.mark.parametrize("bit", [0, 13 * 8 + 3, 31 * 8 + 7])
def test_3_a_copied_tensor_with_noise_is_told_by_name(tmp_path, source, bit):
    data = bytearray(rows(numbers(96, 1), 88, 72, 24, 8))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Incompatible, match="'module.a.weight' is not copied from .*s.safetensors"):
        verify_source(clone_of(tmp_path, a=bytes(data)), open_checkpoint(source))


def test_3_so_are_indices_that_are_not_the_slices(tmp_path, source):
    def swap(document):
        document["module"]["a.weight"]["kept"][0]["indices"] = [0, 2]

    with pytest.raises(Incompatible, match="its bytes are not the source's"):
        verify_source(clone_of(tmp_path, swap), open_checkpoint(source))

    def beyond(document):
        document["module"]["a.weight"]["kept"][0]["indices"] = [0, 3]

    with pytest.raises(Incompatible, match=r"kept beyond the source's \[3, 4, 2\]"):
        verify_source(clone_of(tmp_path, beyond), open_checkpoint(source))


def test_3_and_a_source_without_the_tensor(tmp_path):
    other = make_target(tmp_path / "o.safetensors")
    with pytest.raises(Incompatible, match="the source has no such tensor") as e:
        verify_source(clone_of(tmp_path), open_checkpoint(other))
    assert "--source" in e.value.hint
