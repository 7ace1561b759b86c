"""Inject and eject: clones into and out of a checkpoint, as header work and byte copies.

Eject gives the target *file* back, whoever wrote it, and injecting A and B and ejecting A gives the
bytes of injecting B alone (how a patched checkpoint is laid out: ``opened.py``).  No torch, constant
memory; nothing appears under the output's name before it is verified.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import BadInput, Incompatible, UsageError
from ..manifest import PATCHED_SCHEMA, Manifest, Patched, canonical_json, parse
from ..progress import Note, no_note
from .atomic import Outputs, check_output
from .clone_file import (
    MANIFEST_KEY,
    TARGET_HEADER_KEY,
    Clone,
    check_ending,
    open_clone,
    sidecar_of,
    verified_data,
)
from .digest import TensorDigest, combined_sha256, file_sha256
from .forms import checkpoint_file
from .header import TensorEntry, format_header
from .inputs import one_reading, remember
from .layout import end_of, lay_out, padding
from .opened import RESERVED, Checkpoint, _target_data, open_checkpoint
from .renames import Given, Renames, how_to_rename, renamed
from .restored import describe_restored, drop_stale_manifest


@one_reading
def inject(
    target: Path,
    clones: Sequence[Path],
    output: Path,
    *,
    rename: Renames | None = None,
    force: bool = False,
) -> Patched:
    """Writes ``target`` with the ``clones`` applied to ``output``; returns its manifest.

    ``target`` may be patched already; ``rename`` maps labels of the new clones to other names
    (:mod:`.renames`).
    Raises ``Incompatible`` for a clone of another target, a clone that is there already, and a
    label that is taken; nothing has been written then.
    """
    target = checkpoint_file(target)
    remember(*clones, *(p.with_suffix(".json") for p in clones))
    check_output(output, force=force)
    sidecar = sidecar_of(output)
    with Outputs(force=force) as outputs:
        f = outputs.open(output)
        checkpoint = open_checkpoint(target)
        given = [open_clone(p) for p in clones]
        new = renamed(given, rename or {})
        check_fit(checkpoint, new, labels=[c.manifest.labels for c in given])
        sha256 = checkpoint.target_sha256 or file_sha256(target)
        patched = _write(f, checkpoint, [*checkpoint.clones, *new], sha256)
        outputs.open(sidecar, beside=output).write(canonical_json(patched))
    return patched


@one_reading
def eject(
    path: Path,
    output: Path,
    *,
    names: Sequence[str] | None = None,
    force: bool = False,
    note: Note = no_note,
) -> Patched | None:
    """Writes ``path`` without the named clones (all if None) to ``output``.

    With no clone left the output is the target file, byte for byte, and None is returned.  What that
    is would then be said by documents that lie where the target was made: where the output has none
    that say it, ``<stem>.json`` does, from the manifest (:mod:`.restored`), and ``note`` is told.
    Raises ``UsageError`` for a name that is not in it, ``BadInput`` for a file that is not patched
    or cannot give the target back.
    """
    path = checkpoint_file(path)
    check_output(output, force=force)
    check_ending(output)
    with Outputs(force=force) as outputs:
        f = outputs.open(output)
        checkpoint = open_checkpoint(path)
        present = [c.name for c in checkpoint.clones]
        if checkpoint.target_sha256 is None:
            raise BadInput(f"{path}: is not a patched checkpoint: there is nothing to eject")
        for name in names or []:
            if name not in present:
                raise UsageError(
                    f"{path}: has no clone '{name}'", hint="it has: " + ", ".join(present)
                )
        left = [c for c in checkpoint.clones if names is not None and c.name not in names]
        if left:
            patched = _write(f, checkpoint, left, checkpoint.target_sha256)
            outputs.open(sidecar_of(output), beside=output).write(canonical_json(patched))
            return patched
        f.write(checkpoint.target.raw)
        for chunk in _target_data(checkpoint, checkpoint.target_sha256):
            f.write(chunk)
        known = describe_restored(outputs, checkpoint, output, force=force, note=note)
    if not known:
        drop_stale_manifest(output)
    return None


def _write(f: BinaryIO, checkpoint: Checkpoint, clones: list[Clone], target_sha256: str) -> Patched:
    """Writes a whole patched checkpoint to the open file ``f``."""
    patched = Patched(
        schema=PATCHED_SCHEMA,
        target_sha256=target_sha256,
        clones=[c.manifest for c in clones],
    )
    document = canonical_json(patched)
    parse(document, Patched, "the new manifest")  # what could not be read again is not written
    tensors, at, plan = dict(checkpoint.target.tensors), checkpoint.target.data_size, []
    for clone in clones:
        prefix = f"{RESERVED}{clone.name}."
        if gap := padding(at):
            tensors[prefix + "padding"] = TensorEntry("U8", (gap,), at, at + gap)
        placed = lay_out(clone.tensors, at + gap)
        plan.append((clone, gap, list(placed)))
        tensors |= {prefix + n: t for n, t in placed.items()}
        at = end_of(placed.values(), at + gap)
    metadata = {
        **(checkpoint.target.metadata or {}),
        TARGET_HEADER_KEY: checkpoint.target.text.decode("utf-8"),
        MANIFEST_KEY: document.decode("utf-8"),
    }
    f.write(format_header(tensors, metadata))
    for chunk in _target_data(checkpoint, target_sha256):
        f.write(chunk)
    for clone, gap, names in plan:
        f.write(bytes(gap))
        for chunk in verified_data(clone, names):
            f.write(chunk)
    return patched


def check_fit(
    checkpoint: Checkpoint,
    clones: Sequence[Clone],
    found: dict[str, TensorDigest] | None = None,
    *,
    labels: Sequence[Sequence[str]] | None = None,
) -> None:
    """Whether ``clones`` can be added: made for this target, and with names and labels to spare.

    ``found`` are the target's digests, where they are known; ``labels`` those that the clones came
    with, where they were renamed.  Raises ``Incompatible``.
    """
    if clones:
        _check_target(checkpoint, clones, found or checkpoint.target_digests())
        came = labels or [c.manifest.labels for c in clones]
        _check_together(checkpoint, list(zip(clones, came)))


def _check_target(
    checkpoint: Checkpoint, clones: Sequence[Clone], found: dict[str, TensorDigest]
) -> None:
    sha256 = combined_sha256(found)
    for clone in clones:
        if clone.manifest.target.tensors_sha256 != sha256:
            raise Incompatible(
                f"{clone.path}: clone '{clone.name}' was made for another target than "
                f"{checkpoint.path}: {_first_difference(clone.manifest, found)}",
                hint="give the target it was made for, or make a clone for this one: "
                f"pnc clone SOURCE {checkpoint.path.name} --classes {','.join(clone.manifest.labels)} …",
            )


def _first_difference(manifest: Manifest, found: dict[str, TensorDigest]) -> str:
    """Names the first tensor that is not the clone's target's."""
    expected, name = manifest.target_tensors, manifest.target.architecture
    for tensor in found:
        if tensor not in expected:
            return f"tensor '{tensor}' is not in its target, a {name}"
    for tensor, wanted in expected.items():
        if tensor not in found:
            return f"its target, a {name}, has a tensor '{tensor}', this file has not"
        if str(found[tensor]) != wanted:
            return f"tensor '{tensor}' is {found[tensor]}, expected {wanted} (dtype, shape, digest)"
    return "the digests of all tensors together differ"


def _check_together(checkpoint: Checkpoint, given: Given) -> None:
    """Names and labels must be unique across the target and all clones."""
    new = [c for c, _ in given]
    clones, target = [*checkpoint.clones, *new], shlex.quote(str(checkpoint.path))
    every = {label for c in clones for label in c.manifest.labels}
    every |= set(clones[0].manifest.target.label_names)
    taken = {label: "the target" for label in clones[0].manifest.target.label_names}
    names: set[str] = set()
    for clone in clones:
        if clone.name in names and clone.name in {c.name for c in checkpoint.clones}:
            raise Incompatible(
                f"{clone.path}: clone '{clone.name}' is in the checkpoint already",
                hint=f"take that off first: pnc eject {target} --name {clone.name} "
                "-o without.safetensors",
            )
        if clone.name in names:
            first = next(c.path for c in new if c.name == clone.name)
            if first.resolve() == clone.path.resolve():
                raise UsageError(f"{clone.path}: given twice", hint="leave one of them out")
            raise Incompatible(
                f"{clone.path}: is called '{clone.name}', as the clone in {first} is",
                hint="make one of them again under another name: pnc clone … "
                f"--name {clone.name}_2",
            )
        names.add(clone.name)
        for label in clone.manifest.labels:
            if label in taken:
                raise Incompatible(
                    f"{clone.path}: class '{label}' of clone '{clone.name}' is a label of "
                    f"{taken[label]} already",
                    hint=how_to_rename(clone, label, every, checkpoint.path, given),
                )
            taken[label] = f"clone '{clone.name}'"
