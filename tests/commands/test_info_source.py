"""``pnc info CLONE --source SRC``: promise 3, checked by anybody with one command."""

import shutil

from support.command import pnc_forked


def test_3_a_clone_is_compared_with_its_source(made, tmp_path):
    ran = pnc_forked("info", made.clone, "--source", made.source, cwd=tmp_path)
    assert ran.code == 0 and "all of them slices of" in ran.out
    ran = pnc_forked("info", made.clone, "--source", made.source, "--json", cwd=tmp_path)
    [copied] = ran.json["copied"]
    assert copied["same_source"] and copied["tensors"] == len(ran.json["manifest"]["module"]) > 0


def test_3_another_source_is_told_by_tensor_and_exit_code(made, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(made.source, other)
    shutil.copy(made.source.with_suffix(".json"), other.with_suffix(".json"))
    raw = bytearray(other.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    for at in range(start, len(raw), 64):
        raw[at] ^= 1
    other.write_bytes(raw)
    for wrong in (other, made.target):
        ran = pnc_forked("info", made.clone, "--source", wrong, cwd=tmp_path)
        assert ran.code == 4
        assert "is not copied from" in ran.err and "give that file to --source" in ran.err


def test_a_file_without_clones_has_no_source(made, tmp_path):
    ran = pnc_forked("info", made.target, "--source", made.source, cwd=tmp_path)
    assert ran.code == 2 and "--source is for clones" in ran.err
