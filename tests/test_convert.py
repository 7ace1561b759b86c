"""convert.py: the command that messages print makes files that pnc reads, of what others pickle."""

import argparse
import json
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.networks import RESNET, make_network
from timm.utils import CheckpointSaver, ModelEmaV3

from pnc_cli.convert import convert
from pnc_cli.errors import BadInput, UsageError
from pnc_cli.files.forms import conversion
from pnc_cli.network.load import load_network


def run(hint, cwd):
    _, *rest = shlex.split(hint[hint.index("python -c") :])
    return subprocess.run([sys.executable, *rest], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("averaged", [False, True])
def test_what_timms_saver_writes_is_converted_and_read(tmp_path, averaged):
    model = make_network("resnet18", 3, **RESNET)
    ema = make_network("resnet18", 3, seed=1, **RESNET)
    args = argparse.Namespace(
        model="resnet18", num_classes=3, model_kwargs=RESNET, mean=[0.4] * 3, img_size=32, lr=0.1
    )
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        args=args,
        model_ema=ModelEmaV3(ema) if averaged else None,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=99.0)
    path = tmp_path / "model_best.pth.tar"
    ran = run(conversion(path), tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert f"the weights in '{'state_dict_ema' if averaged else 'state_dict'}'" in ran.stderr
    found = load_network(tmp_path / "model_best.safetensors")
    expected = (ema if averaged else model).state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in found.model.state_dict().items())
    assert found.input_size == (3, 32, 32) and found.ref.preprocessing.mean == [0.4] * 3


def test_the_command_never_writes_over_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.safetensors"
    torch.save({"a": torch.zeros(1)}, path)  # a pickle under that name
    before = path.read_bytes()
    assert run(conversion(path), tmp_path).returncode == 0
    assert path.read_bytes() == before and set(load_file("t-converted.safetensors")) == {"a"}
    with pytest.raises(UsageError, match="exists"):
        convert(path, tmp_path / "t-converted.safetensors")
    assert "t-converted-2.safetensors" in conversion(path)


class Evil:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": Evil()}, "more than weights"),
        ([1], "expected a dictionary"),
        ({"epoch": 3}, "no tensors"),
    ],
)
def test_nothing_in_a_pickle_is_run_and_what_has_no_weights_is_refused(
    tmp_path, monkeypatch, content, message
):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pth")
    with pytest.raises(BadInput, match=message):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    ran = run(conversion(tmp_path / "x.pth"), tmp_path)
    assert ran.returncode == 3 and ran.stderr.startswith("pnc: error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]


def test_a_pickle_in_a_folder_becomes_the_folders_own_file(tmp_path):
    torch.save(make_network("test_resnet", 3).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    with pytest.raises(BadInput) as e:
        load_network(tmp_path)
    assert run(e.value.hint, "/").returncode == 0
    assert load_network(tmp_path).ref.num_classes == 3
