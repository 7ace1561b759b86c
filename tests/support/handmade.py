"""Checkpoints and clones made by hand, byte by byte.

No torch, so tests of file work are quick; and no use of pnc's own writer for checkpoints, so its
mistakes cannot hide here.
"""

import hashlib
import json
import math
import struct
from pathlib import Path

from pnc_cli import manifest as m
from pnc_cli.files.clone_file import RawTensor, raw_sha256, write_clone
from pnc_cli.files.digest import combined_sha256, file_sha256, tensor_digests
from pnc_cli.files.forms import own_names
from pnc_cli.files.header import read_header

LABELS = ["red", "green"]  # of every target made here


def safetensors(tensors, metadata=None, pad=b""):
    """The bytes of a file with ``tensors`` {name: (dtype, shape, data)} and header padding."""
    fields, at = {}, 0
    if metadata is not None:
        fields["__metadata__"] = metadata
    for name, (dtype, shape, data) in tensors.items():
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    return raw_file(json.dumps(fields).encode() + pad, b"".join(t[2] for t in tensors.values()))


def raw_file(text, data=b""):
    """Any header text, with its length in front."""
    return len(text).to_bytes(8, "little") + text + data


def target_tensors(seed=0):
    """Some tensors of odd sizes: the data region does not end on a multiple of 8."""
    return {
        "conv.weight": ("F32", (2, 3), numbers(24, seed)),
        "bn.num_batches_tracked": ("I64", (), numbers(8, seed + 1)),
        "fc.bias": ("BF16", (5,), numbers(10, seed + 2)),
        "empty": ("F16", (0, 7), b""),
        "mask": ("BOOL", (3,), b"\x00\x01\x01"),
    }


def numbers(count, seed):
    """``count`` bytes that depend on ``seed`` alone."""
    out = b""
    while len(out) < count:
        out += hashlib.sha256(f"{seed}:{len(out)}".encode()).digest()
    return out[:count]


def make_target(path, tensors=None, metadata=None, pad=b""):
    path.write_bytes(safetensors(tensors or target_tensors(), metadata, pad))
    return path


def make_manifest(target, tensors, *, name="frogs", labels=("frog",), target_labels=LABELS):
    """A manifest that fits ``target``, a file, and the clone's ``tensors``."""
    header = read_header(target)
    digests = tensor_digests(target, header, own_names(target, header.tensors))

    def network(architecture, names, digests, file_sha256):
        return m.NetworkRef(
            architecture=architecture,
            model_args={},
            num_classes=len(names),
            label_names=list(names),
            file_sha256=file_sha256,
            tensors_sha256=combined_sha256(digests),
            preprocessing=m.Preprocessing(
                input_size=(3, 32, 32),
                interpolation="bicubic",
                crop_pct=1.0,
                crop_mode="center",
                mean=[0.5] * 3,
                std=[0.5] * 3,
            ),
        )

    def features(position):
        return m.Features(position=position, kind="NCHW", shape=(4, 8, 8), grid=(8, 8), prefix=0)

    return m.Manifest(
        schema=m.CLONE_SCHEMA,
        name=name,
        versions={"pnc": "0"},
        source=network("resnet18", labels, {}, "0" * 64),
        target=network("resnet18", target_labels, digests, file_sha256(target)),
        tap=features("layer1"),
        cut=features("layer2"),
        classes=[
            m.CloneClass(name=n, source_name=n, source_index=k, position=k)
            for k, n in enumerate(labels)
        ],
        target_tensors={n: str(d) for n, d in digests.items()},
        module={
            n.removeprefix("module."): m.ModuleTensor(kept=_first_row(t))
            for n, t in tensors.items()
            if n.startswith("module.")
        },
        columns=list(range(len(labels))),
        adapter=m.Adapter(kind="conv", kernel=1, parameters=20),
        join=m.Join(kind="one-sided-gate", target_features=4, branch_features=4, parameters=7),
        method=m.Method(seed=0, epochs=0, share=1.0, images_per_class={}, original_images=0),
        measured=m.Measured(
            images=0,
            branch_accuracy=None,
            source_accuracy=None,
            original_accuracy=None,
            clone_accuracy=None,
            joint_accuracy=None,
            locality=None,
        ),
        cost=m.Cost(parameters=1, macs=1, target_parameters=1, target_macs=1, bytes=1),
        tensors_sha256=raw_sha256(tensors),
    )


def _first_row(tensor):
    return [m.Kept(axis=0, indices=[0])] if tensor.shape[:1] == (1,) else []


def clone_tensors(seed=0):
    """Tensors of a clone that nothing is wrong with, of several widths and odd sizes."""

    def floats(shape, seed):
        count = math.prod(shape)
        finite = (byte / 256 for byte in numbers(count, seed))
        return RawTensor("F32", shape, struct.pack(f"<{count}f", *finite))

    return {
        "adapter.weight": floats((4, 4, 1, 1), seed + 10),
        "adapter.bias": floats((4,), seed + 14),
        "module.fc.weight": RawTensor("BF16", (1, 5), numbers(10, seed + 11)),
        "module.fc.empty": RawTensor("F32", (0, 2), b""),
        "module.bn.num_batches_tracked": RawTensor("I64", (), numbers(8, seed + 12)),
        "join.mean_weight": floats((4,), seed + 13),
        "join.mean_bias": floats((), seed + 15),
        "join.slope": floats((), seed + 16),
        "join.offset": floats((), seed + 17),
    }


def make_clone(path, target, *, seed=0, tensors=None, **manifest):
    """Writes a clone for the file ``target``, with its sidecar."""
    tensors = clone_tensors(seed) if tensors is None else tensors
    write_clone(path, make_manifest(target, tensors, **manifest), tensors, force=True)
    return path


def rewrite_metadata(path, change):
    """Applies ``change`` to the file's metadata dictionary, in place; tensors stay."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    fields = json.loads(raw[8 : 8 + length])
    change(fields["__metadata__"])
    path.write_bytes(raw_file(json.dumps(fields).encode(), raw[8 + length :]))
    return path


def rewrite_manifest(path, change):
    """Applies ``change`` to the manifest inside a clone, and takes its sidecar away."""

    def edit(metadata):
        document = json.loads(metadata["pnc.manifest"])
        document.pop("sha256", None)  # as whoever changes it on purpose would
        change(document)
        metadata["pnc.manifest"] = json.dumps(document)

    path.with_suffix(".json").unlink(missing_ok=True)
    return rewrite_metadata(path, edit)


def flip(path, offset):
    """Flips one bit of the byte at ``offset`` (from the end when negative)."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    return path


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def snapshot(folder):
    """Everything in ``folder``, hidden files too: path -> digest of its bytes."""
    return {
        str(p.relative_to(folder)): sha256(p) if p.is_file() else None
        for p in sorted(Path(folder).rglob("*"))
    }
