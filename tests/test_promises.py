"""The promises of a patch, each with a test that can fail.

1. Nothing of the target changes.        5. No code from files.
2. Eject gives the file back.            6. All or nothing; inputs are never written to.
3. The module is copied, never trained.  7. A wrong patch is refused before anything is written.
4. Same inputs, same seed, same bytes.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.command import ENVIRONMENT, pnc, pnc_forked
from support.handmade import make_clone, sha256, snapshot
from support.networks import RESNET, make_network, preprocess, save_checkpoint
from torch import nn

import pnc_cli
from pnc_cli.branch import make
from pnc_cli.branch import recipe as making
from pnc_cli.files.patch import eject, inject
from pnc_cli.placement.probe import probe_images

QUICK = ["--epochs", "0", "--limit-per-class", "6", "-q"]


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


# 1 ----------------------------------------------------------------------------------------------


@torch.no_grad()
def check_logits_on_1000_images(patched, target):
    """``patched`` is a file, ``target`` the network itself, built by timm and safetensors alone."""
    model, old = pnc_cli.load(patched), target.get_classifier().out_features
    images = preprocess(probe_images(1000, (3, 32, 32), seed=3))
    for x in images.split(125):
        z = model(x)
        assert z.shape[1] == model.num_classes > old
        assert digest(z[:, :old]) == digest(target(x))


def test_1_target_logits_inside_the_patched_model_are_bit_identical_on_1000_images(made):
    target = timm.create_model("resnet18", num_classes=3, **RESNET).eval()
    target.load_state_dict(load_file(made.target))
    check_logits_on_1000_images(made.patched, target)


@pytest.mark.parametrize(
    "architecture, tap, source, cut",
    [
        ("test_vit", "blocks.2", "test_convnext", "stages.1"),
        ("test_mambaout", "stages.1", "test_vit", "blocks.3"),
        ("test_efficientnet", "bn1", "test_resnet", "bn1"),
        ("test_nfnet", "input", "test_nfnet", "input"),
    ],
)
def test_1_it_holds_for_other_architectures_too(tmp_path, pair, architecture, tap, source, cut):
    target = make_network(architecture, 3, seed=4)
    save_checkpoint(tmp_path / "t.safetensors", target, architecture, pair.old)
    save_checkpoint(
        tmp_path / "s.safetensors", make_network(source, 3, seed=5), source, ["blue", *pair.new]
    )
    ran = pnc_forked(
        "clone",
        "s.safetensors",
        "t.safetensors",
        "--data",
        pair.train,
        "-o",
        "c.safetensors",
        "--tap",
        tap,
        "--cut",
        cut,
        *QUICK,
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    inject(tmp_path / "t.safetensors", [tmp_path / "c.safetensors"], tmp_path / "p.safetensors")
    check_logits_on_1000_images(tmp_path / "p.safetensors", target)
    check_module_is_the_sources(tmp_path / "c.safetensors", tmp_path / "s.safetensors")


def test_1_each_target_tensor_in_a_patched_checkpoint_is_byte_for_byte_the_targets(made):
    with safe_open(made.target, "pt") as target, safe_open(made.patched, "pt") as patched:
        names = set(target.keys())
        assert names and {n for n in patched.keys() if not n.startswith("pnc.")} == names
        for name in names:
            assert target.get_tensor(name).dtype == patched.get_tensor(name).dtype
            assert digest(target.get_tensor(name)) == digest(patched.get_tensor(name))


# 2 ----------------------------------------------------------------------------------------------


def bf16_file(path):
    save_file(
        {"a": torch.randn(3, 5).bfloat16(), "b": torch.arange(7), "c": torch.zeros(0, 4)},
        path,
        metadata={"format": "pt", "second": "key"},
    )


def odd_file(path):
    text = (
        json.dumps(
            {
                "z": {"dtype": "F32", "shape": [], "data_offsets": [5, 9]},
                "__metadata__": {"b": "2", "a": "1"},
                "y": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]},
                "x": {"dtype": "F64", "shape": [3, 0], "data_offsets": [9, 9]},
            },
            indent=1,
        ).encode()
        + b" " * 13
    )
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(9)))


def check_round_trip(target, folder):
    clones = [
        make_clone(folder / f"{n}.safetensors", target, seed=k, name=n, labels=[f"{n} of pnc"])
        for k, n in enumerate("ab")
    ]
    before = sha256(target)
    inject(target, clones, folder / "ab.safetensors")
    inject(target, clones[1:], folder / "only.safetensors")
    eject(folder / "ab.safetensors", folder / "minus.safetensors", names=["a"])
    assert sha256(folder / "minus.safetensors") == sha256(folder / "only.safetensors")
    for patched in ("ab", "only", "minus"):
        eject(folder / f"{patched}.safetensors", folder / "back.safetensors", force=True)
        assert sha256(folder / "back.safetensors") == sha256(target) == before


@pytest.mark.parametrize("write", [bf16_file, odd_file])
def test_2_eject_gives_the_file_back_whoever_wrote_it(tmp_path, write):
    write(tmp_path / "t.safetensors")
    check_round_trip(tmp_path / "t.safetensors", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_target_resnet18",
        "cifar10_source_resnet18",
        "cifar10_source_convnext",
        "mobilenetv2_100_imagenet",
    ],
)
def test_2_eject_gives_real_checkpoints_back(tmp_path, shared, name):
    check_round_trip(shared / "checkpoints" / f"{name}.safetensors", tmp_path)


def test_2_a_real_clone_comes_off_again(made, tmp_path):
    ran = pnc("eject", made.patched, "-o", "back.safetensors", "--json", cwd=tmp_path)
    assert ran.json["sha256"] == sha256(made.target) == sha256(tmp_path / "back.safetensors")


# 3 ----------------------------------------------------------------------------------------------


def check_module_is_the_sources(clone, source):
    """From the manifest beside the clone and the two files alone, with numpy's own indexing."""
    manifest = json.loads(clone.with_suffix(".json").read_text())
    with safe_open(clone, "pt") as c, safe_open(source, "pt") as s:
        copied = {n.removeprefix("module.") for n in c.keys() if n.startswith("module.")}
        assert copied == set(manifest["module"]) and copied <= set(s.keys())
        for name in copied:
            expected = s.get_tensor(name)
            for kept in manifest["module"][name]["kept"]:
                index = [slice(None)] * expected.ndim
                index[kept["axis"]] = kept["indices"]
                expected = expected[tuple(index)]
            found = c.get_tensor(f"module.{name}")
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
            assert digest(found) == digest(expected), name
    return manifest


def test_3_every_module_tensor_is_the_sources_slice_by_the_manifests_indices(made):
    manifest = check_module_is_the_sources(made.clone, made.source)
    rows = {"axis": 0, "indices": [1, 2]}  # yellow and purple, of blue yellow purple
    assert rows in manifest["module"]["fc.weight"]["kept"]
    assert manifest["source"]["file_sha256"] == sha256(made.source)
    assert manifest["target"]["file_sha256"] == sha256(made.target)


def test_3_it_holds_for_a_pruned_module_too(made, tmp_path):
    ran = pnc_forked(
        "clone",
        made.source,
        made.target,
        "--data",
        made.train,
        "-o",
        "c.safetensors",
        "--share",
        "0.5",
        "--tap",
        "maxpool",
        "--cut",
        "layer1.0",
        *QUICK,
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    manifest = check_module_is_the_sources(tmp_path / "c.safetensors", made.source)
    inner = manifest["module"]["layer4.0.conv1.weight"]["kept"]
    assert any(k["axis"] == 0 and len(k["indices"]) < RESNET["channels"][3] for k in inner)


SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [3, 6],
}


def test_3_it_holds_for_heads_and_windows_too_and_the_patched_file_runs(made, pair, tmp_path):
    source = make_network("swin_tiny_patch4_window7_224", 3, seed=5, **SWIN)
    save_checkpoint(
        tmp_path / "s.safetensors",
        source,
        "swin_tiny_patch4_window7_224",
        ["blue", *pair.new],
        **SWIN,
    )
    ran = pnc_forked(
        "clone",
        "s.safetensors",
        made.target,
        "--data",
        made.train,
        "-o",
        "c.safetensors",
        "--share",
        "0.4",
        "--tap",
        "maxpool",
        "--cut",
        "layers.0",
        *QUICK,
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    manifest = check_module_is_the_sources(tmp_path / "c.safetensors", tmp_path / "s.safetensors")
    assert any(
        k["axis"] == 1 and len(k["indices"]) < 48
        for b in (0, 1)
        for k in manifest["module"][f"layers.1.blocks.{b}.attn.proj.weight"]["kept"]
    )
    inject(made.target, [tmp_path / "c.safetensors"], tmp_path / "p.safetensors")
    z = pnc_cli.load(tmp_path / "p.safetensors")(preprocess(probe_images(2, (3, 32, 32), seed=3)))
    assert z.shape == (2, 5) and bool(z.isfinite().all())


@pytest.mark.parametrize(
    "architecture, share, layer",
    [("test_efficientnet", 0.5, nn.Conv2d), ("test_convnext", 0.5, nn.Linear)],
)
def test_3_it_holds_with_mixing_which_is_stored_apart_and_folded_in_when_it_is_loaded(
    made, pair, tmp_path, monkeypatch, architecture, share, layer
):
    """With mixing by a square matrix and by one of low rank, refined; and what is loaded is the very
    branch that was made."""
    source, clone = tmp_path / "s.safetensors", tmp_path / "c.safetensors"
    save_checkpoint(
        source, make_network(architecture, 3, seed=5), architecture, ["blue", *pair.new]
    )
    branches = []

    def make_branch(*args, **how):
        branches.append(making.make_branch(*args, **how))
        return branches[-1]

    monkeypatch.setattr(make, "make_branch", make_branch)
    manifest = pnc_cli.clone(
        source,
        made.target,
        data=made.train,
        output=clone,
        tap="input",
        cut="input",
        share=share,
        epochs=2,
        limit_per_class=6,
    )
    check_module_is_the_sources(clone, source)
    [branch] = branches
    mixing = {n for n in load_file(clone) if n.startswith("adapter.mixing.")}
    assert {f"adapter.{n}" for n in branch.compensation.tensors} >= mixing
    pruned = {n for n, t in manifest.module.items() if any(k.axis == 1 for k in t.kept)}
    kinds = set()
    for name in manifest.adapter.mixing:
        assert f"{name}.weight" in pruned
        if type(branch.module.part.get_submodule(name)) is layer:
            kinds |= {n.rpartition(".")[2] for n in mixing if f".{name}." in n}
    assert kinds == {"matrix", "left", "right"}

    loaded = pnc_cli.load(made.target, [clone]).branches[manifest.name]
    for found, expected in (
        (loaded.adapter, branch.adapter),
        (loaded.module.part, branch.module.part),
    ):
        states = found.state_dict(), expected.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(digest(states[0][n]) == digest(t) for n, t in states[1].items())
    x = preprocess(probe_images(4, (3, 32, 32), seed=3))
    with torch.no_grad():
        for found, expected in zip(*(b.module(b.adapter(x)) for b in (loaded, branch))):
            assert digest(found) == digest(expected)


# 4 ----------------------------------------------------------------------------------------------


def test_4_same_inputs_and_seed_give_the_same_bytes_in_any_folder_at_any_time(made, tmp_path):
    for name in ("source", "target"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(made.folder / (name + suffix), tmp_path / (name + suffix))
            os.utime(tmp_path / (name + suffix), (0, 0))
    (tmp_path / "train").symlink_to(made.train)
    ran = pnc(
        "clone",
        "source.safetensors",
        "target.safetensors",
        "--data",
        "train",
        "-o",
        "clone.safetensors",
        "--epochs",
        "2",
        "--json",
        cwd=tmp_path,
    )
    assert (tmp_path / "clone.safetensors").read_bytes() == made.clone.read_bytes()
    assert (tmp_path / "clone.json").read_bytes() == made.clone.with_suffix(".json").read_bytes()
    assert ran.out == made.ran.out


@pytest.mark.slow
def test_4_it_holds_with_all_the_threads_there_are(made, tmp_path):
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    for name in ("one", "two"):
        ran = pnc(
            "clone",
            made.source,
            made.target,
            "--data",
            made.train,
            "--name",
            "x",
            "-o",
            f"{name}.safetensors",
            cwd=tmp_path,
            env=threads,
        )
        assert ran.code == 0, ran.err
    assert sha256(tmp_path / "one.safetensors") == sha256(tmp_path / "two.safetensors")
    assert sha256(tmp_path / "one.json") == sha256(tmp_path / "two.json")


def test_4_files_hold_no_path_and_no_host(made):
    documents = [made.clone.with_suffix(".json"), made.patched.with_suffix(".json")]
    for path in (made.clone, made.patched, *documents):
        data = path.read_bytes()
        assert str(made.folder).encode() not in data and b"source.safetensors" not in data
    for path in documents:
        assert socket.gethostname() not in path.read_text()


# 5 ----------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_5_nothing_is_unpickled_or_built_because_a_file_says_so(tmp_path, made):
    bomb = tmp_path / "exploded"
    torch.save({"state": Bomb(bomb)}, tmp_path / "bomb.pth")
    for name in ("target.safetensors", "target.json", "clone.safetensors"):
        shutil.copy(made.folder / name, tmp_path / name)
    document = json.loads((tmp_path / "target.json").read_text())
    spoilt = [
        {"model_args": {**RESNET, "checkpoint_path": str(tmp_path / "bomb.pth")}},
        {"model_args": {**RESNET, "pretrained": True}},
        {"architecture": "hf-hub:somebody/something"},
        {"architecture": f"local-dir:{tmp_path}"},
    ]
    for changes in spoilt:
        (tmp_path / "target.json").write_text(json.dumps({**document, **changes}))
        ran = pnc_forked("eval", "target.safetensors", "--data", made.test, cwd=tmp_path)
        assert (ran.code, ran.out) == (3, "")
        assert "may not set" in ran.err or "is not a plain timm name" in ran.err
    for pickle in ("target.safetensors", "clone.safetensors"):
        shutil.copy(tmp_path / "bomb.pth", tmp_path / pickle)
        ran = pnc_forked("info", pickle, cwd=tmp_path)
        assert ran.code == 3 and "which pnc never opens" in ran.err
    assert not bomb.exists()


# 6 ----------------------------------------------------------------------------------------------


HALFWAY = """
import os, sys
from pnc_cli import cli
from pnc_cli.files import atomic, opened, patch

sent = int(sys.argv.pop())
if sent < 0:  # as where files have names from the first
    sent, atomic.NAMELESS = -sent, 0

def read_span(*args, real=opened.read_span):
    yield next(real(*args))
    os.kill(os.getpid(), sent)
    yield b""

opened.read_span = patch.read_span = read_span
cli.main()
"""


def run_halfway(folder, args, sent):
    """Runs the command, to which the signal ``sent`` comes while it writes its output."""
    args = [sys.executable, "-c", HALFWAY, *args, "-o", "out.safetensors", "--json", str(int(sent))]
    return subprocess.run(args, cwd=folder, env=ENVIRONMENT, capture_output=True)


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str
)
@pytest.mark.parametrize("command", ["inject", "eject"])
def test_6_a_signal_halfway_leaves_the_folder_as_it_was(made, tmp_path, command, sent):
    args = [command, made.target, made.clone] if command == "inject" else [command, made.patched]
    ran = run_halfway(tmp_path, args, sent)
    left = list(tmp_path.iterdir())
    if sent == signal.SIGKILL:  # nobody can clean up after that, nor has to
        assert (ran.returncode, left) == (-sent, [])
        return
    assert ran.returncode == 130 and left == []
    assert json.loads(ran.stdout)["error"]["code"] == "interrupted"
    assert ran.stderr == b"pnc: error: interrupted; nothing was left behind\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_6_without_nameless_files_the_next_run_removes_what_was_left(made, tmp_path, sent):
    args = ["eject", made.patched, "-o", "out.safetensors"]
    ran = run_halfway(tmp_path, args[:2], -sent)
    left = list(tmp_path.iterdir())
    assert ran.returncode == (-sent if sent == signal.SIGKILL else 130)
    assert [p.suffix for p in left] == ([".tmp"] if sent == signal.SIGKILL else [])
    assert pnc(*args, cwd=tmp_path).code == 0
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


AT_THE_END = """
import os, sys
from pnc_cli import cli
from pnc_cli.files import atomic

sent = int(sys.argv.pop())

def publish(self, *, replace, real=atomic._Staged.publish):
    os.kill(os.getpid(), sent)
    real(self, replace=replace)
    os.kill(os.getpid(), sent)

atomic._Staged.publish = publish
cli.main()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["new", "replaced"])
def test_6_a_signal_among_the_last_steps_comes_after_them_and_is_told_so(
    made, tmp_path, sent, force
):
    command = ["inject", made.target, made.clone, "-o", "out.safetensors"]
    if force:
        assert pnc(*command, cwd=tmp_path).code == 0
    ran = subprocess.run(
        [sys.executable, "-c", AT_THE_END, *command, *force, str(int(sent))],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
    )
    assert ran.returncode == 130
    written = b"interrupted when this had been written, complete: out.safetensors, out.json"
    assert written in ran.stderr and b"nothing was left behind" not in ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.safetensors"]
    assert sha256(tmp_path / "out.safetensors") == sha256(made.patched)


def test_6_a_hang_up_that_is_ignored_stays_so(made, tmp_path):
    def nohup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    code = HALFWAY.replace('yield b""', "yield from rest").replace(
        "yield next(real(*args))", "rest = real(*args); yield next(rest)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "eject", made.patched, "-o", "out.safetensors"]
        + [str(int(signal.SIGHUP))],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        preexec_fn=nohup,
    )
    assert ran.returncode == 0, ran.stderr
    assert sha256(tmp_path / "out.safetensors") == sha256(made.target)


def test_6_inputs_are_never_written_to(made, tmp_path):
    def state():
        return {p: (sha256(p), p.stat().st_mtime_ns, p.stat().st_ino) for p in inputs}

    source, target, clone, patched = (
        shutil.copy(p, tmp_path) for p in (made.source, made.target, made.clone, made.patched)
    )
    for name in ("source.json", "target.json"):
        shutil.copy(made.folder / name, tmp_path)
    inputs = list(tmp_path.iterdir())
    before = state()
    make = ["clone", source, target, "--data", made.train, *QUICK]
    assert pnc_forked(*make, "-o", "new.safetensors", cwd=tmp_path).code == 0
    assert pnc("inject", target, clone, "-o", "p.safetensors", cwd=tmp_path).code == 0
    assert pnc("eject", patched, "-o", "t.safetensors", cwd=tmp_path).code == 0
    for command, *outputs in (
        (make, source, target),
        (["inject", target, clone], target, clone),
        (["eject", patched], patched),
    ):
        for output in outputs:
            ran = pnc(*command, "-o", output, "--force", cwd=tmp_path)
            assert ran.code == 2 and "is an input, which is never written to" in ran.err
    assert state() == before


# 7 ----------------------------------------------------------------------------------------------


def test_7_a_wrong_patch_is_refused_before_anything_is_written(made, tmp_path):
    tensors = load_file(made.target)
    tensors["layer3.0.bn2.weight"] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors")
    before = snapshot(tmp_path)
    ran = pnc("inject", "other.safetensors", made.clone, "-o", "p.safetensors", cwd=tmp_path)
    assert (ran.code, ran.out) == (4, "")
    for part in (
        "tensor 'layer3.0.bn2.weight'",
        "is F32 [16]",
        "expected F32 [16]",
        "try: give the target it was made for",
    ):
        assert part in ran.err
    assert snapshot(tmp_path) == before
