"""One source and one target, all the way: clone, inject, run, eject, with every promise checked.

The networks are untrained and the images generated: what is checked is that it works and that
nothing of the target changes, not what the clone is worth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pnc_cli.branch.classes import CloneTarget
from pnc_cli.branch.make import Recipe, make_clone
from pnc_cli.branch.patched import load
from pnc_cli.branch.task import Task
from pnc_cli.data import Images
from pnc_cli.files.clone_file import write_clone
from pnc_cli.files.digest import file_sha256
from pnc_cli.files.header import read_header
from pnc_cli.files.opened import open_checkpoint
from pnc_cli.files.patch import eject, inject
from pnc_cli.manifest import Manifest
from pnc_cli.network.graph import trace
from pnc_cli.network.head import cuts, find_head
from pnc_cli.network.load import Network, load_network
from pnc_cli.network.part import slice_tensor
from pnc_cli.network.record import recording
from pnc_cli.network.tape import observe
from pnc_cli.network.tensors import read_tensors
from pnc_cli.placement.grid import make_grid
from pnc_cli.placement.probe import probe_images
from pnc_cli.plan import Candidate

from .structure import middle

PER_CLASS = 2
NEW = {"new-a": 0, "new-b": 2}  # labels of the clone classes, and their places in the source


class Broken(Exception):
    """A promise that did not hold."""


@dataclass(frozen=True)
class Pair:
    """What was made, and from where to where."""

    tap: str
    cut: str
    taps: int  # every one of which was recorded
    pruned: float  # share of the copied part's parameters that was left out


def run_pair(source_file: Path, target_file: Path, folder: Path, *, share: float = 1.0) -> Pair:
    """Clones two classes of one network into the other; files are written to ``folder``.

    Raises ``Broken``, or what pnc raises where it refuses.
    """
    source, target = load_network(source_file), load_network(target_file)
    taps = _every_tap(target)
    grid = make_grid(source, target, [middle(taps).name], [_middle_cut(source)])
    [place] = grid.places
    candidate = Candidate(
        tap=place.tap,
        cut=place.cut,
        share=share,
        score=0,
        branch_accuracy=None,
        joint_accuracy=None,
        average_accuracy=None,
        locality=None,
        fit=0,
        parameters=0,
        macs=0,
        bytes=0,
    )
    manifest, tensors = make_clone(
        _generated_task(source, target), grid, candidate, Recipe("clone", epochs=0, seed=0)
    )
    clone, patched, ejected = (folder / f"{n}.safetensors" for n in ("clone", "patched", "ejected"))
    write_clone(clone, manifest, tensors, force=True)
    inject(target_file, [clone], patched, force=True)
    eject(patched, ejected, force=True)

    _check(file_sha256(ejected) == file_sha256(target_file), "eject gives the file back")
    digests = open_checkpoint(patched).target_digests()
    _check(digests == target.digests, "the target's tensors are its own, byte for byte")
    _check_logits(patched, target)
    whole, kept = _check_slices(clone, source_file, manifest)
    return Pair(place.tap, place.cut, len(taps), round(1 - kept / whole, 3))


def _every_tap(target: Network) -> list:
    """The target's taps, after each has been recorded in one pass."""
    positions = observe(target.model, target.input_size).positions
    with torch.no_grad(), recording(target.model, [p.name for p in positions]) as seen:
        target.model(torch.randn(2, *target.input_size))
    for p in positions:
        _check(tuple(seen[p.name].shape) == (2, *p.layout.shape), f"tap '{p.name}' is {p.layout}")
    return list(positions)


def _middle_cut(source: Network) -> str:
    traced = trace(source.model, source.input_size)
    return middle(cuts(traced, find_head(traced, source.classifier))).name


def _generated_task(source: Network, target: Network) -> Task:
    """Two classes of each, ``PER_CLASS`` generated images a class."""
    classes = [CloneTarget(label, source.labels[i], i) for label, i in NEW.items()]
    old = target.labels[:2]
    labels = [label for label in (*old, *NEW) for _ in range(PER_CLASS)]
    views = [probe_images(len(labels), n.input_size, seed=0) for n in (target, source)]
    ids = torch.arange(len(labels)) // PER_CLASS
    return Task(source, target, classes, old, Images(views, labels), ids, torch.zeros(len(ids)) > 0)


def _check_logits(patched: Path, target: Network) -> None:
    model = load(patched)
    x = torch.randn(3, *target.input_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, alone = model(x), target.model(x)
    old = alone.shape[1]
    _check(together.shape == (3, old + len(NEW)), "the logits are the target's and the clone's")
    _check(bool(torch.isfinite(together).all()), "the logits are finite")
    _check(_hash(together[:, :old]) == _hash(alone), "the target's logits are bit-identical")
    _check(float(alone.std()) > 0, "the target looks at its images")


def _check_slices(clone: Path, source_file: Path, manifest: Manifest) -> tuple[int, int]:
    """The numbers of parameters before and after slicing."""
    copied, source = _tensors(clone), _tensors(source_file)
    whole = kept = 0
    for name, how in manifest.module.items():
        wanted = slice_tensor(source[name], how)
        found = copied[f"module.{name}"]
        same = wanted.shape == found.shape and _hash(wanted) == _hash(found)
        _check(same, f"module tensor '{name}' is a slice of the source's")
        whole, kept = whole + source[name].numel(), kept + found.numel()
    return whole, kept


def _tensors(path: Path) -> dict[str, Tensor]:
    header = read_header(path)
    return read_tensors(path, header, header.tensors)


def _hash(t: Tensor) -> str:
    return hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()


def _check(holds: bool, promise: str) -> None:
    if not holds:
        raise Broken(f"this did not hold: {promise}")
