"""files/inputs.py: whatever a call has read, by whatever route, it never writes to."""

import os

import pytest
from support.handmade import make_clone, make_target, snapshot

from pnc_cli.errors import UsageError
from pnc_cli.files.atomic import Outputs, check_output
from pnc_cli.files.inputs import reading, remember, remember_many


@pytest.mark.parametrize(
    "link", [None, os.symlink, os.link], ids=["itself", "symlink", "hard link"]
)
def test_what_was_read_is_not_written_to_under_any_name(tmp_path, link):
    read, output = tmp_path / "read", tmp_path / "read"
    read.write_bytes(b"precious")
    if link:
        link(read, output := tmp_path / "other")
    with reading():
        remember(read)
        with pytest.raises(UsageError, match="is an input"), Outputs(force=True) as outputs:
            outputs.open(output)
    assert read.read_bytes() == b"precious"
    check_output(output, force=True)  # the next call may


def test_files_of_a_data_set_count_and_are_listed_only_when_something_would_be_replaced(tmp_path):
    listed = []

    def images():
        listed.append(1)
        return [tmp_path / "gone.png", tmp_path / "1.png"]

    (tmp_path / "1.png").write_bytes(b"image")
    (tmp_path / "2.png").write_bytes(b"image")
    with reading():
        remember_many(images)
        check_output(tmp_path / "new.png", force=True)
        assert not listed
        with pytest.raises(UsageError, match="1.png: is an input"):
            check_output(tmp_path / "1.png", force=True)
        check_output(tmp_path / "2.png", force=True)


def test_calls_within_a_call_remember_for_it(tmp_path):
    (tmp_path / "read").write_bytes(b"")
    with reading() as outer:
        with reading() as inner:
            remember(tmp_path / "read")
        assert inner is outer
        assert tmp_path / "read" in outer


@pytest.mark.parametrize(
    "name", ["x.pth", "x.bin", "x.onnx", "x", "x.safetensors.bak", "x.json", "-"]
)
@pytest.mark.parametrize("command", ["inject", "eject one", "eject all", "clone"])
def test_what_is_safetensors_is_called_so_and_never_standard_output(tmp_path, name, command):
    from pnc_cli import api
    from pnc_cli.files.patch import inject

    target = make_target(tmp_path / "t.safetensors")
    clones = [
        make_clone(tmp_path / f"{n}.safetensors", target, seed=k, name=n, labels=[n])
        for k, n in enumerate("ab")
    ]
    patched = tmp_path / "p.safetensors"
    inject(target, clones, patched)
    before = snapshot(tmp_path)
    folder = os.getcwd()
    os.chdir(tmp_path)
    try:
        calls = {
            "inject": lambda: api.inject(target, clones, output=name),
            "eject one": lambda: api.eject(patched, output=name, name="a"),
            "eject all": lambda: api.eject(patched, output=name),
            "clone": lambda: api.clone(target, target, data=".", output=name),
        }
        with pytest.raises(UsageError) as e:
            calls[command]()
    finally:
        os.chdir(folder)
    if name == "-":
        assert "is not written to standard output" in e.value.message
    else:
        assert f"{name}: is not called .safetensors" in e.value.message
        assert e.value.hint.endswith(".safetensors")
    assert snapshot(tmp_path) == before
