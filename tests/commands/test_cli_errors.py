"""The error table, through the real command: file work, which needs no torch.

Each row: what was done to a good folder, the arguments, the exit code, and what stderr says.
Always checked as well: on stdout is one JSON object that says the same, and the folder is as it
was.
"""

import json
import resource
import subprocess
import sys

import pytest
from support.command import give_up_root, pnc
from support.handmade import (
    flip,
    make_clone,
    make_target,
    raw_file,
    rewrite_manifest,
    rewrite_metadata,
    snapshot,
    target_tensors,
)

from pnc_cli.cli import COMMANDS
from pnc_cli.files.header import read_header
from pnc_cli.files.patch import inject

INJECT = ["inject", "t.safetensors", "c.safetensors", "-o", "out.safetensors"]
EJECT = ["eject", "p.safetensors", "-o", "out.safetensors"]


@pytest.fixture
def files(tmp_path):
    """t (target), c (clone), p (patched), w (other weights) and v (other architecture)."""
    folder = tmp_path / "files"
    folder.mkdir()
    target = make_target(folder / "t.safetensors")
    clone = make_clone(folder / "c.safetensors", target)
    inject(target, [clone], folder / "p.safetensors")
    make_target(
        folder / "w.safetensors", {**target_tensors(), "fc.bias": ("BF16", (5,), bytes(10))}
    )
    make_target(folder / "v.safetensors", {"blocks.0.weight": ("F32", (1,), bytes(4))})
    yield folder
    folder.chmod(0o755)


def cut(name, count):
    return lambda d: (d / name).write_bytes((d / name).read_bytes()[:count])


def write(name, data):
    return lambda d: (d / name).write_bytes(data)


def header(**tensors):
    return raw_file(json.dumps(tensors).encode(), bytes(8))


def entry(start, end):
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


def manifest(change):
    return lambda d: rewrite_manifest(d / "c.safetensors", change)


def relabel(file, **changes):
    return lambda d: make_clone(d / file, d / "t.safetensors", **changes)


def nothing(folder):
    pass


def folder(name):
    def make(files):
        (files / "f").mkdir()
        make_target(files / "f" / name)

    return make


def average(files):
    tensors = target_tensors().items()
    twice = {prefix + n: t for prefix in ("model.", "model_ema.") for n, t in tensors}
    make_target(files / "t.safetensors", twice)


TABLE = {
    # usage
    "an unknown option": (nothing, ["info", "t.safetensors", "--nonsense"], 2, "No such option: --nonsense", "pnc info --help"),
    "an unknown command": (nothing, ["injekt"], 2, "No such command 'injekt'", "pnc --help"),
    "a missing argument": (nothing, ["inject", "-o", "out.safetensors"], 2, "Missing argument 'TGT'", "pnc inject --help"),
    "a missing option": (nothing, ["inject", "t.safetensors", "c.safetensors"], 2, "Missing option '--output' / '-o'", "pnc inject --help"),
    "a file that is not there": (nothing, ["info", "no.safetensors"], 3, "no.safetensors: no such file", "FILE is a .safetensors file"),
    "no file at all": (nothing, ["info"], 2, "Missing argument 'FILE'", "pnc info FILE"),
    "a rename without =": (nothing, [*INJECT, "--rename", "frog"], 2, "--rename 'frog'", "--rename old=new"),
    "a rename of no class": (nothing, [*INJECT, "--rename", "dog=wolf"], 2, "no clone has a class 'dog'", "classes are, with their clones: frog (frogs)"),
    "a name that is not in it": (nothing, [*EJECT, "--name", "cats"], 2, "has no clone 'cats'", "it has: frogs"),
    # outputs
    "an output that exists": (write("out.safetensors", b"x"), INJECT, 2, "out.safetensors: exists", "--force"),
    "a sidecar that exists": (write("out.json", b'{"schema": "pnc.patched/1"}'), INJECT, 2, "out.json: exists", "--force"),
    "a document in the sidecar's place": (write("out.json", b"{}"), [*INJECT, "--force"], 2, "out.json: exists and is not a manifest of pnc's", "choose another -o"),
    "an output folder that does not exist": (nothing, [*INJECT[:3], "-o", "no/out.safetensors"], 2, "does not exist", "mkdir -p"),
    "an output folder that is not writable": (lambda d: d.chmod(0o555), INJECT, 2, "is not writable", None),
    "an output that is a folder": (lambda d: (d / "out.safetensors").mkdir(), INJECT, 2, "is a folder", "-o names a file"),
    "an output that is the target": (nothing, [*INJECT[:3], "-o", "t.safetensors", "--force"], 2, "is an input", "another -o"),
    "an output that is the clone": (nothing, [*INJECT[:3], "-o", "c.safetensors", "--force"], 2, "is an input", "another -o"),
    "an ejected file over its own": (nothing, [*EJECT[:2], "-o", "p.safetensors", "--force"], 2, "is an input", "another -o"),
    # corrupt files
    "an empty file": (write("t.safetensors", b""), INJECT, 3, "t.safetensors: not a safetensors file", None),
    "text": (write("t.safetensors", b"hello, this is no checkpoint"), INJECT, 3, "not a safetensors file", None),
    "a folder of other files": (nothing, ["info", "."], 3, "a folder without model.safetensors; it has c.safetensors", "give c.safetensors"),
    "a folder of a pickle": (folder("pytorch_model.bin"), ["inject", "f", *INJECT[2:]], 3, "f: has no model.safetensors, only the pickle pytorch_model.bin", "f/pytorch_model.bin f/model.safetensors"),
    "a folder of shards": (folder("model-00001-of-00002.safetensors"), ["inject", "f", *INJECT[2:]], 3, "f: a checkpoint in several files", "f/model-00001-of-00002.safetensors"),
    "a shard": (folder("model-00001-of-00002.safetensors"), ["info", "f/model-00001-of-00002.safetensors"], 3, "00001-of-00002.safetensors: a checkpoint in several files", "put them together: python -c"),
    "the index of shards": (folder("model.safetensors.index.json"), ["info", "f/model.safetensors.index.json"], 3, "a checkpoint in several files", "put them together: python -c"),
    "a moving average beside the weights": (average, INJECT, 3, "t.safetensors: has 5 tensors twice, under 'model.…' and under 'model_ema.…'", "t.safetensors model_ema. ema.safetensors"),
    "a file that may not be read": (lambda d: (d / "t.safetensors").chmod(0), INJECT, 3, "t.safetensors: cannot be read", None),
    "a truncated target": (cut("t.safetensors", -1), INJECT, 3, "t.safetensors: truncated", None),
    "a truncated clone": (cut("c.safetensors", -1), INJECT, 3, "c.safetensors: truncated", None),
    "a truncated header": (cut("t.safetensors", 50), INJECT, 3, "or truncated: header length", None),
    "a header of duplicate names": (write("t.safetensors", raw_file(b'{"a": {}, "a": {}}')), INJECT, 3, "'a' stands twice", None),
    "a header with a hole": (write("t.safetensors", header(a=entry(0, 4), b=entry(5, 8))), INJECT, 3, "a hole before tensor 'b'", None),
    "a header with an overlap": (write("t.safetensors", header(a=entry(0, 4), b=entry(3, 8))), INJECT, 3, "an overlap before tensor 'b'", None),
    "a pickle": (write("t.safetensors", b"\x80\x04\x95" + bytes(100)), INJECT, 3, "not a safetensors file", "PyTorch pickle, which pnc never opens; convert it where you trust it: python -c"),
    "a zipped pickle": (write("c.safetensors", b"PK\x03\x04" + bytes(100)), INJECT, 3, "not a safetensors file", "PyTorch pickle, which pnc never opens"),
    "a clone with a changed byte": (lambda d: flip(d / "c.safetensors", -1), INJECT, 3, "clone 'frogs' is corrupt", "fetch or make the clone again"),
    "a patched file with a changed byte": (lambda d: flip(d / "p.safetensors", read_header(d / "p.safetensors").data_start), EJECT, 3, "is not what was patched", "inject into the original target again"),
    # manifests
    "a manifest of a newer version": (manifest(lambda m: m.update(schema="pnc.clone/2")), INJECT, 3, "manifest is 'pnc.clone/2', this pnc reads 'pnc.clone/1'", "upgrade pnc"),
    "a manifest with an unknown field": (manifest(lambda m: m.update(colour="red")), INJECT, 3, "colour", None),
    "a manifest with a hub address": (manifest(lambda m: m["source"].update(architecture="hf-hub:x/y")), INJECT, 3, "'hf-hub:x/y' is not a plain timm name", None),
    "a manifest that is pretrained": (manifest(lambda m: m["source"].update(model_args={"pretrained": True})), INJECT, 3, "may not set 'pretrained'", None),
    "a manifest with a checkpoint path": (manifest(lambda m: m["source"].update(model_args={"checkpoint_path": "x.pth"})), INJECT, 3, "may not set 'checkpoint_path'", None),
    "a sidecar that differs": (write("c.json", b"{}"), INJECT, 3, "c.json: differs from the manifest inside c.safetensors", "remove c.json"),
    "a patched manifest of a newer version": (lambda d: rewrite_metadata(d / "p.safetensors", lambda m: m.update({"pnc.manifest": '{"schema": "pnc.patched/2"}'})), EJECT, 3, "this pnc reads 'pnc.patched/1'", "upgrade pnc"),
    "a document that is not ours": (write("x.json", b'{"a": 1}'), ["info", "x.json"], 3, "not a document of pnc's", None),
    # wrong kinds of file
    "a target as clone": (nothing, ["inject", "t.safetensors", "w.safetensors", *INJECT[3:]], 3, "w.safetensors: is not a clone", "pnc clone makes one"),
    "a patched file as clone": (nothing, ["inject", "t.safetensors", "p.safetensors", *INJECT[3:]], 3, "is a patched checkpoint, not a clone", None),
    "a clone as target": (nothing, ["inject", "c.safetensors", "c.safetensors", *INJECT[3:]], 3, "is a clone, not a checkpoint", None),
    "a target that is not patched": (nothing, ["eject", "t.safetensors", "-o", "out.safetensors"], 3, "is not a patched checkpoint", None),
    # what does not fit together
    "other weights": (nothing, ["inject", "w.safetensors", *INJECT[2:]], 4, "tensor 'fc.bias' is BF16 [5]", "give the target it was made for"),
    "another architecture": (nothing, ["inject", "v.safetensors", *INJECT[2:]], 4, "tensor 'weight' is not in its target, a resnet18", "give the target it was made for"),
    "the same clone twice": (nothing, ["inject", "p.safetensors", *INJECT[2:]], 4, "clone 'frogs' is in the checkpoint already", "pnc eject p.safetensors --name frogs -o without.safetensors"),
    "the same clone twice at once": (nothing, [*INJECT[:3], "c.safetensors", *INJECT[3:]], 2, "c.safetensors: given twice", "leave one of them out"),
    "a label of the target": (relabel("c.safetensors", labels=["red"]), INJECT, 4, "'red' of clone 'frogs' is a label of the target already", "pnc inject t.safetensors c.safetensors --rename frogs:red=red_2 -o patched.safetensors"),
    "a label of another clone": (relabel("d.safetensors", name="d"), ["inject", "p.safetensors", "d.safetensors", *INJECT[3:]], 4, "a label of clone 'frogs' already", "--rename d:frog=frog_2"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, args, code, message, hint", TABLE.values(), ids=TABLE)
def test_refused_and_nothing_written(files, spoil, args, code, message, hint):
    spoil(files)
    before = snapshot_as_root(files)
    ran = pnc(*args, "--json", cwd=files, preexec=give_up_root)
    assert ran.code == code, ran.err
    first, *rest = ran.err.splitlines()
    assert first.startswith("pnc: error: ") and message in first
    assert len(rest) == (1 if rest else 0) and (hint is None or hint in rest[0])
    fault = ran.json.pop("error")
    command = args[0] if args[0] in COMMANDS else "pnc"
    assert ran.json == {"schema": f"pnc.{command}/1", "ok": False, "error": fault}
    assert first == "pnc: error: " + fault["message"]
    assert rest == ([f"  try: {fault['hint']}"] if fault["hint"] else [])
    assert snapshot_as_root(files) == before


@pytest.mark.parametrize("row", ["an unknown option", "an empty file", "other weights"])
def test_without_json_a_failure_leaves_stdout_empty(files, row):
    spoil, args, code, message, _ = TABLE[row]
    spoil(files)
    ran = pnc(*args, cwd=files)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err


def snapshot_as_root(folder):
    """A snapshot, modes aside."""
    modes = {p: p.stat().st_mode for p in folder.iterdir() if p.is_file()}
    for p in modes:
        p.chmod(0o644)
    try:
        return snapshot(folder)
    finally:
        for p, mode in modes.items():
            p.chmod(mode)


@pytest.mark.parametrize("args", [INJECT, [*EJECT, "--name", "frogs"]], ids=["inject", "eject"])
def test_a_full_disk_leaves_nothing_behind(files, args):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    before = snapshot(files)
    ran = pnc(*args, cwd=files, preexec=full)
    assert (ran.code, ran.out) == (2, "")
    assert "out.safetensors: cannot be written: File too large; nothing was left behind" in ran.err
    assert snapshot(files) == before


def test_no_arguments_at_all_print_the_help(tmp_path):
    ran = pnc(cwd=tmp_path)
    assert ran.code == 2
    assert "Usage: pnc" in ran.err and ran.out == ""


def test_a_fault_of_our_own_is_70_and_asks_for_a_report(files):
    code = (
        "import sys; from pnc_cli import cli; from pnc_cli.commands import options; "
        "options.existing = lambda *a: 1 / 0; print(cli.run(['info', 'p.safetensors', '--json']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=files, capture_output=True, text=True)
    document, end = json.JSONDecoder().raw_decode(ran.stdout)
    assert ran.stdout[end:].split() == ["70"]
    assert document["error"]["code"] == "internal"
    assert "PNC_TRACEBACK=1" in ran.stderr and "Traceback" not in ran.stderr
