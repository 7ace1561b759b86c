"""Networks are built without values and filled from their file, which is read once: the same networks
as timm's, bit for bit, in the memory of their weights."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.networks import RESNET, make_network, save_checkpoint
from torch import nn

from pnc_cli.errors import BadInput
from pnc_cli.files import digest
from pnc_cli.files.digest import file_sha256, read_digested, tensor_digests
from pnc_cli.files.header import TensorEntry, format_header, parse_header, read_header
from pnc_cli.files.layout import lay_out
from pnc_cli.network import tensors
from pnc_cli.network.blank import without_filling
from pnc_cli.network.load import load_network

ROOT = Path(__file__).resolve().parents[2]
SMALL = [n for n in timm.list_models("test_*")]
LARGE = [  # relative positions, rotary tables, caches, biases by index, parameters by formula
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "eva02_tiny_patch14_224"),
    *("levit_128s", "coat_tiny", "maxvit_tiny_rw_224", "coatnet_nano_rw_224", "mvitv2_tiny"),
    *("convit_tiny", "beit_base_patch16_224", "vit_small_patch16_dinov3", "vitamin_small_224"),
]


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)]
)
def test_a_network_is_timms_bit_for_bit(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    size = timm.data.resolve_model_data_config(model)["input_size"]
    path, stored = tmp_path / "net.safetensors", {}
    for i, (n, t) in enumerate(model.state_dict().items()):  # others where names share one
        stored[n] = t * (1 + i % 7 / 100) if t.is_floating_point() else t.clone()
    save_file({n: t.contiguous() for n, t in stored.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"architecture": name}))
    other = timm.create_model(name, num_classes=3).eval()
    other.load_state_dict(load_file(path))
    loaded = load_network(path).model
    x = torch.randn(2, *size)
    with torch.no_grad():
        expected, found = other(x), loaded(x)
    assert found.numpy().tobytes() == expected.numpy().tobytes()
    assert_same_constants(loaded, other)


def assert_same_constants(one, other):
    """What is in no checkpoint: buffers, tensors and numbers that constructors compute."""

    def constants(model):
        for path, module in model.named_modules():
            for name, value in [*module._buffers.items(), *vars(module).items()]:
                if isinstance(value, torch.Tensor):
                    yield f"{path}.{name}", value.numpy().tobytes()
                elif isinstance(value, (int, float)):
                    yield f"{path}.{name}", value

    assert dict(constants(one)) == dict(constants(other))


def test_nothing_is_drawn_for_weights_that_are_replaced(tmp_path):
    model = make_network("resnet18", 3, **RESNET)
    path = save_checkpoint(tmp_path / "net.safetensors", model, "resnet18", "abc", **RESNET)
    torch.manual_seed(1)
    load_network(path)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert after == torch.rand(1)


def test_constructors_compute_all_but_their_weights():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4).fill_(2.0))
            nn.init.constant_(self.weight, 7.0)
            self.register_buffer("table", torch.empty(4).fill_(3.0))
            self.plain = torch.zeros(4).add_(1)

    with without_filling():
        layer = Layer()
    assert layer.weight.tolist() == [2.0] * 4
    assert layer.table.tolist() == [3.0] * 4 and layer.plain.tolist() == [1.0] * 4
    assert Layer().weight.tolist() == [7.0] * 4


@pytest.fixture
def resnet(tmp_path):
    model = make_network("resnet18", 3, **RESNET)
    return save_checkpoint(tmp_path / "net.safetensors", model, "resnet18", "abc", **RESNET)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_types_become_the_networks_own(resnet, dtype, monkeypatch):
    stored = load_file(resnet)
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in stored.items()}, resnet)
    monkeypatch.setattr(tensors, "PIECE", 40)  # no tensor but the smallest is one piece
    model = make_network("resnet18", 3, **RESNET)
    model.load_state_dict(load_file(resnet))
    found, expected = load_network(resnet).model.state_dict(), model.state_dict()
    for name, t in expected.items():
        assert found[name].dtype == t.dtype
        assert found[name].numpy().tobytes() == t.numpy().tobytes(), name


def filled(tensor, dtype, data):
    """``tensor`` with the bytes ``data`` of numbers of type ``dtype`` in its places."""
    at = 0
    for piece in tensors.places(tensor, dtype):
        piece[:] = data[at : at + len(piece)]
        at += len(piece)
    assert at == len(data)
    return tensor


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("own", [torch.float32, torch.float16, torch.int64], ids=str)
def test_places_hold_any_type_and_shape(shape, dtype, own, monkeypatch):
    monkeypatch.setattr(tensors, "PIECE", 24)
    numbers = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    data = tensors.raw_tensor(numbers).data
    found = filled(torch.full(shape, -1, dtype=own), dtype, data)
    assert torch.equal(found, torch.zeros(shape, dtype=own).copy_(numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tensors_that_are_not_one_block_are_filled(dtype):
    numbers = torch.randn(2, 3, 4, 4).to(dtype)
    tensor = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    filled(tensor, dtype, tensors.raw_tensor(numbers).data)
    assert torch.equal(tensor, numbers.float()) and not tensor.is_contiguous()


def test_weights_lie_as_torch_lays_them_wherever_they_are_in_the_file(resnet):
    """The last bits of a product of matrices depend on it, and inject moves the tensors."""
    loaded, expected = load_network(resnet).model, make_network("resnet18", 3, **RESNET)
    for one, other in zip(loaded.parameters(), expected.parameters()):
        assert one.data_ptr() % 64 == other.data_ptr() % 64 == 0
        assert one.stride() == other.stride()


def test_a_file_that_others_write_into_later_changes_no_weight(resnet):
    model = load_network(resnet).model
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with open(resnet, "r+b") as f:
        f.write(bytes(resnet.stat().st_size))
        f.truncate(100)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_file_is_read_once(resnet, monkeypatch):
    read, size = [], resnet.stat().st_size
    fill = digest._fill
    monkeypatch.setattr(digest, "_fill", lambda f, p, w: (read.append(len(p)), fill(f, p, w)))
    monkeypatch.setattr(digest, "read_span", None)
    network = load_network(resnet)
    assert sum(read) == size - read_header(resnet).data_start
    assert network.ref.file_sha256 == hashlib.sha256(resnet.read_bytes()).hexdigest()


def test_the_digests_are_those_of_the_files(resnet):
    header = read_header(resnet)
    names = {n: f"own.{n}" for n in header.tensors}
    room = bytearray(max(t.size for t in header.tensors.values()))

    def anywhere(name):
        size = header.tensors[name.removeprefix("own.")].size
        return [memoryview(room)[:size]] if size else []

    found, sha256 = read_digested(resnet, header, header, names, anywhere)
    expected = tensor_digests(resnet, header, names)
    assert list(found.items()) == list(expected.items()) and sha256 == file_sha256(resnet)


def test_a_file_that_shrinks_meanwhile_is_refused(resnet):
    header = read_header(resnet)
    with open(resnet, "r+b") as f:
        f.truncate(resnet.stat().st_size - 10)
    with pytest.raises(BadInput, match="the file ended 10 bytes early"):
        read_digested(
            resnet,
            header,
            header,
            {n: n for n in header.tensors},
            lambda n: [memoryview(bytearray(header.tensors[n].size))],
        )


CHILD = """
import sys
from pathlib import Path
import pnc_cli, pnc_cli.branch.patched

def memory(which):
    [line] = [s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(which)]
    return int(line.split()[1]) * 1024

before = memory("VmRSS")
model = pnc_cli.load(sys.argv[1])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype, copies", [("F32", 1), ("BF16", 2)])
def test_loading_takes_the_memory_of_the_weights_once(tmp_path, dtype, copies):
    """``copies`` of the file's size: numbers of half the size become float32."""
    path, args = tmp_path / "vit.safetensors", {"img_size": 32, "embed_dim": 768, "depth": 8}
    with torch.device("meta"):
        shapes = timm.create_model("vit_base_patch16_224", num_classes=3, **args).state_dict()
    width = {"F32": 4, "BF16": 2}[dtype]
    entries = lay_out(
        {n: TensorEntry(dtype, tuple(t.shape), 0, width * t.numel()) for n, t in shapes.items()}
    )
    header = format_header(entries, {})
    assert parse_header(header[8:], "").tensors == entries
    with open(path, "wb") as f:
        f.write(header)
        f.truncate(len(header) + max(t.end for t in entries.values()))  # zeros
    document = {"architecture": "vit_base_patch16_224", "model_args": args}
    path.with_suffix(".json").write_text(json.dumps(document))
    command = [sys.executable, "-c", CHILD, str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    weights = copies * path.stat().st_size
    assert weights > 200e6
    assert 0.9 * weights < int(ran.stdout) < weights + 60e6
