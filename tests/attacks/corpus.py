"""Hostile files, each with what is to be said of it.

An attack is made in a folder with ``t.safetensors`` (a target), ``c.safetensors`` (a clone of it) and
``p.safetensors`` (the two together); then the command is run.  Add to ``ATTACKS`` whatever got through.
"""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.handmade import (
    clone_tensors,
    make_clone,
    raw_file,
    rewrite_manifest,
    rewrite_metadata,
    safetensors,
)

from pnc_cli.files.clone_file import RawTensor

INFO = ["info", "x.safetensors"]
INJECT = ["inject", "t.safetensors", "c.safetensors", "-o", "out.safetensors"]
ONTO = ["inject", "x.safetensors", "c.safetensors", "-o", "out.safetensors"]
MIB = 1 << 20


@dataclass(frozen=True)
class Attack:
    """What is done to the folder, the command that is run then, and what it answers."""

    make: Callable[[Path], object]
    args: list[str]
    said: str
    code: int = 3
    memory: int = 150 * MIB  # at most


def tensor(shape, start=0, end=0, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def header(text):
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return lambda folder: (folder / "x.safetensors").write_bytes(raw_file(data))


def text_of(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def hole(name, size, begin=b""):
    """A file that has ``size`` bytes and takes no room on the disk."""

    def make(folder):
        (folder / name).write_bytes(begin)
        os.truncate(folder / name, size)

    return make


def pipe(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def link(name, to):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return make


def manifest(change):
    return lambda folder: rewrite_manifest(folder / "c.safetensors", change)


def many_clones(folder):
    def change(metadata):
        document = json.loads(metadata["pnc.manifest"])
        document["clones"] *= 2
        metadata["pnc.manifest"] = json.dumps(document)

    rewrite_metadata(folder / "p.safetensors", change)


def number(value):
    """A clone one of whose learned numbers is ``value``."""

    def make(folder):
        tensors = clone_tensors()
        tensors["join.slope"] = RawTensor("F32", (), struct.pack("<f", 0.5))
        make_clone(folder / "c.safetensors", folder / "t.safetensors", tensors=tensors)
        raw = (folder / "c.safetensors").read_bytes()
        at = raw.rindex(struct.pack("<f", 0.5))
        changed = raw[:at] + struct.pack("<f", value) + raw[at + 4 :]
        (folder / "c.safetensors").write_bytes(changed)

    return make


def names_then_twice(count):
    return b"{" + b"".join(b'"%d":{},' % i for i in range(count)) + b'"x":{},"x":{}}'


ATTACKS = {
    # shapes
    "a tensor of two million axes": Attack(header({"a": tensor([1] * 2_000_000, 0, 1)}), INFO, "2,000,006 values"),
    "a tensor of 4,000 axes": Attack(header({"a": tensor([1] * 4_000, 0, 1)}), INFO, "has 4,000 axes; pnc reads at most 16"),
    "sizes beyond a float": Attack(header({"a": tensor([2**62] * 20, 0, 1)}), INFO, "has 20 axes; pnc reads at most 16"),
    "sizes beyond counting": Attack(header({"a": tensor([2**62] * 16, 0, 1)}), ONTO, "is beyond 2^62 numbers, pnc's limit"),
    "nothing times too much": Attack(header({"a": tensor([0, 2**62, 2**62])}), ONTO, "is beyond 2^62 numbers, pnc's limit"),
    # headers
    "many names, one of them twice": Attack(header(names_then_twice(200_000)), INFO, "'x' stands twice", memory=250 * MIB),
    "forty megabytes of empty objects": Attack(header(b'{"a":[' + b"{}," * 13_000_000 + b"0]}"), INFO, "pnc reads at most 50,000 tensors", memory=400 * MIB),
    "forty megabytes of names": Attack(header(b"{" + b'"":0,' * 8_000_000 + b'"":0}'), ONTO, "pnc reads at most 50,000 tensors", memory=400 * MIB),
    "a million quotes that end no name": Attack(header(b'{"' + b'\\"' * 1_000_000), INFO, "not valid JSON"),
    "a name of a kilobyte": Attack(header({"n" * 1_001: tensor([])}), INFO, "its name has 1,001 bytes; pnc reads at most 1,000"),
    "two thousand keys of metadata": Attack(header({"__metadata__": {str(i): "" for i in range(2_000)}}), INFO, "2,000 keys in __metadata__; pnc reads at most 1,000"),
    "labels of twenty megabytes": Attack(text_of("x.safetensors", safetensors({}, {"label_names": "[" + " " * 20_000_000 + "]"})), INFO, "metadata 'label_names' has 20,000,002 characters", memory=350 * MIB),
    # manifests
    "a manifest of forty megabytes": Attack(lambda d: rewrite_metadata(d / "c.safetensors", lambda m: m.update({"pnc.manifest": "[" * 40_000_000})), INJECT, "manifest has 40,000,000 characters; pnc reads at most 32,000,000", memory=400 * MIB),
    "a manifest of brackets": Attack(manifest(lambda m: m.update(versions=json.loads("[" * 500 + "]" * 500))), INJECT, "manifest does not follow"),
    "one clone twice": Attack(many_clones, ["eject", "p.safetensors", "-o", "out.safetensors"], "two clones have the same name"),
    "NaN in a clone": Attack(number(float("nan")), INJECT, "tensor 'join.slope' has numbers that are not finite"),
    "infinity in a clone": Attack(number(float("-inf")), INJECT, "tensor 'join.slope' has numbers that are not finite"),
    # files that are none, or are not there
    "a pipe as target": Attack(pipe("x.safetensors"), ONTO, "is a pipe, expected a regular file"),
    "a pipe as clone": Attack(pipe("c.safetensors"), INJECT, "is a pipe, expected a regular file"),
    "a pipe as a file to look at": Attack(pipe("x.safetensors"), INFO, "is a pipe, expected a regular file"),
    "a pipe as document": Attack(pipe("x.json"), ["info", "x.json"], "is a pipe, expected a regular file"),
    "a pipe beside a checkpoint": Attack(pipe("t.json"), ["info", "t.safetensors"], "t.json: is a pipe, expected a regular file"),
    "a pipe as config.json": Attack(pipe("config.json"), ["info", "t.safetensors"], "config.json: is a pipe, expected a regular file"),
    "a device without an end": Attack(link("x.safetensors", "/dev/zero"), ONTO, "is a device, expected a regular file"),
    "a device beside a checkpoint": Attack(link("t.json", "/dev/zero"), ["info", "t.safetensors"], "t.json: is a device, expected a regular file"),
    "a link to itself": Attack(link("x.safetensors", "x.safetensors"), INFO, "x.safetensors: no such file"),
    # files of nothing
    "a sidecar of a terabyte": Attack(hole("t.json", 1 << 40), ["info", "t.safetensors"], "pnc reads at most 16,000,000 of such a file"),
    "a clone's sidecar of a terabyte": Attack(hole("c.json", 1 << 40), INJECT, "c.json: differs from the manifest inside c.safetensors"),
    "a document of a terabyte": Attack(hole("x.json", 1 << 40), ["info", "x.json"], "pnc reads at most 32,000,000 of such a file"),
    "a file of a terabyte": Attack(hole("x.safetensors", 1 << 40), INFO, "not a safetensors file"),
    "a document of a terabyte in the output's place": Attack(hole("out.json", 1 << 40), [*INJECT, "--force"], "out.json: exists and is not a manifest of pnc's", code=2),
}  # fmt: skip
