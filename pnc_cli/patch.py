"""Inject and eject: clones into and out of a checkpoint, as header work and byte copies.

A patched checkpoint is the target's data region verbatim, then the clones' tensors under
``pnc.<clone>.``.  Its header lists both; its metadata keeps the target's own and adds the target
file's header, verbatim, and the patch manifest.  So eject gives the target *file* back, whoever
wrote it, and injecting A and B and ejecting A gives the bytes of injecting B alone.
No torch, constant memory; nothing appears under the output's name before it is verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .checkpoint.atomic import Outputs
from .checkpoint.digest import TensorDigest, combined_sha256, file_sha256, read_span, tensor_digests
from .checkpoint.forms import checkpoint_file, name_prefix, own_names
from .checkpoint.header import Header, TensorEntry, format_header, parse_header, read_header
from .checkpoint.write import end_of, lay_out, padding
from .clone_file import MANIFEST_KEY, TARGET_HEADER_KEY, Clone, corrupt, open_clone, sidecar_of
from .errors import BadInput, Incompatible, UsageError
from .manifest import PATCHED_SCHEMA, Manifest, Patched, canonical_json, parse

RESERVED = "pnc."  # tensors and metadata keys of ours begin with it


@dataclass(frozen=True)
class Checkpoint:
    """A target, with the clones that have been injected into it (none for a plain file)."""

    path: Path
    header: Header  # of the file
    target: Header  # of the target file; the same object for a plain file
    clones: tuple[Clone, ...]
    target_sha256: str | None  # as recorded in a patched file
    names: dict[str, str]  # of the target's tensors, in the file -> in the network

    @property
    def prefix(self) -> str:
        """What is in front of every tensor's name in the file."""
        return name_prefix(self.names)

    @property
    def weights(self) -> dict[str, TensorEntry]:
        """The target's tensors by the names they have in the network."""
        return {own: self.target.tensors[n] for n, own in self.names.items()}

    def target_digests(self) -> dict[str, TensorDigest]:
        """By the names in the network, so wrapped names do not make it another target."""
        return tensor_digests(self.path, self.header, self.names)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a plain or patched checkpoint, or a folder with one.  Raises ``BadInput``."""
    path = checkpoint_file(path)
    header = read_header(path)
    metadata = header.metadata or {}
    if TARGET_HEADER_KEY not in metadata:
        if MANIFEST_KEY in metadata:
            raise BadInput(
                f"{path}: is a clone, not a checkpoint", hint="give the target's own file"
            )
        for name in [*header.tensors, *metadata]:
            if name.startswith(RESERVED):
                raise BadInput(f"{path}: '{name}' uses the reserved prefix '{RESERVED}'")
        return Checkpoint(path, header, header, (), None, own_names(path, header.tensors))

    where = f"{path} ({TARGET_HEADER_KEY})"
    target = parse_header(metadata[TARGET_HEADER_KEY].encode("utf-8"), where)
    if MANIFEST_KEY not in metadata:
        raise BadInput(f"{path}: a patched checkpoint without '{MANIFEST_KEY}'")
    patched = parse(metadata[MANIFEST_KEY], Patched, str(path))
    own = {n: t for n, t in header.tensors.items() if not n.startswith(RESERVED)}
    if own != target.tensors:
        raise BadInput(
            f"{path}: its tensors are not laid out as in the target file",
            hint="another tool has rewritten it since it was patched; inject into the target again",
        )
    clones, strangers = [], set(header.tensors) - set(own)
    for manifest in patched.clones:
        prefix = f"{RESERVED}{manifest.name}."
        ours = {
            n.removeprefix(prefix): t for n, t in header.tensors.items() if n.startswith(prefix)
        }
        strangers -= {prefix + n for n in ours}
        ours.pop("padding", None)
        clones.append(Clone(manifest, path, header.data_start, ours, prefix))
    if strangers:
        raise BadInput(f"{path}: tensor '{min(strangers)}' belongs to no clone of its manifest")
    if len({c.name for c in clones}) != len(clones):
        raise BadInput(f"{path}: two clones have the same name")
    names = own_names(path, target.tensors)
    return Checkpoint(path, header, target, tuple(clones), patched.target_sha256, names)


def inject(
    target: Path,
    clones: Sequence[Path],
    output: Path,
    *,
    rename: dict[str, str] | None = None,
    force: bool = False,
) -> Patched:
    """Writes ``target`` with the ``clones`` applied to ``output``; returns its manifest.

    ``target`` may be patched already; ``rename`` maps labels of the new clones to other names.
    Raises ``Incompatible`` for a clone of another target, a clone that is there already, and a
    label that is taken; nothing has been written then.
    """
    target = checkpoint_file(target)
    sidecars = [p.with_suffix(".json") for p in (target, *clones)]
    with Outputs(force=force, inputs=[target, *clones, *sidecars]) as outputs:
        f = outputs.open(output)
        checkpoint = open_checkpoint(target)
        new = _renamed([open_clone(p) for p in clones], rename or {})
        check_fit(checkpoint, new)
        sha256 = checkpoint.target_sha256 or file_sha256(target)
        patched = _write(f, checkpoint, [*checkpoint.clones, *new], sha256)
        outputs.open(sidecar_of(output)).write(canonical_json(patched))
    return patched


def eject(
    path: Path, output: Path, *, names: Sequence[str] | None = None, force: bool = False
) -> Patched | None:
    """Writes ``path`` without the named clones (all if None) to ``output``.

    With no clone left the output is the target file, byte for byte, and None is returned.
    Raises ``UsageError`` for a name that is not in it, ``BadInput`` for a file that is not patched
    or cannot give the target back.
    """
    path = checkpoint_file(path)
    with Outputs(force=force, inputs=[path]) as outputs:
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
            outputs.open(sidecar_of(output)).write(canonical_json(patched))
            return patched
        f.write(checkpoint.target.raw)
        for chunk in _target_data(checkpoint, checkpoint.target_sha256):
            f.write(chunk)
    if output.with_suffix(".json").resolve() != path.with_suffix(".json").resolve():
        _drop_stale_sidecar(output)
    return None


def _drop_stale_sidecar(output: Path) -> None:
    """Removes the manifest of a patched checkpoint that a plain target has just replaced."""
    sidecar = output.with_suffix(".json")
    if sidecar.is_file() and PATCHED_SCHEMA.encode() in sidecar.read_bytes():
        try:
            parse(sidecar.read_bytes(), Patched, str(sidecar))
        except BadInput:  # not ours after all
            return
        sidecar.unlink()


def verify_target(checkpoint: Checkpoint) -> None:
    """Checks that the target in a patched checkpoint is what was patched; raises ``BadInput``."""
    if checkpoint.target_sha256 is not None:
        for _ in _target_data(checkpoint, checkpoint.target_sha256):
            pass


def _write(f, checkpoint: Checkpoint, clones: list[Clone], target_sha256: str) -> Patched:
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
        digests = {}
        with open(clone.path, "rb") as source:
            for name in names:
                t, h = clone.tensors[name], hashlib.sha256()
                for chunk in read_span(source, clone.data_start + t.start, t.size, clone.path):
                    h.update(chunk)
                    f.write(chunk)
                digests[name] = TensorDigest(t.dtype, t.shape, h.hexdigest())
        if combined_sha256(digests) != clone.manifest.tensors_sha256:
            raise corrupt(clone)
    return patched


def _target_data(checkpoint: Checkpoint, sha256: str) -> Iterator[bytes]:
    """Yields the target's data region; ``BadInput`` unless with its header it is the target file."""
    h = hashlib.sha256(checkpoint.target.raw)
    with open(checkpoint.path, "rb") as source:
        start, size = checkpoint.header.data_start, checkpoint.target.data_size
        for chunk in read_span(source, start, size, checkpoint.path):
            h.update(chunk)
            yield chunk
    if h.hexdigest() != sha256:
        raise BadInput(
            f"{checkpoint.path}: the target in it is not what was patched: "
            f"sha256 {h.hexdigest()[:16]}…, expected {sha256[:16]}…",
            hint="the file was changed or damaged; inject into the original target again",
        )


def _renamed(clones: list[Clone], rename: dict[str, str]) -> list[Clone]:
    known = {label for c in clones for label in c.manifest.labels}
    for label in rename:
        if label not in known:
            raise UsageError(
                f"--rename {label}=…: no clone has a class '{label}'",
                hint="classes are: " + ", ".join(sorted(known)),
            )
    return [replace(c, manifest=c.manifest.renamed(rename)) for c in clones]


def check_fit(
    checkpoint: Checkpoint, clones: Sequence[Clone], found: dict[str, TensorDigest] | None = None
) -> None:
    """Whether ``clones`` can be added: made for this target, and with names and labels to spare.

    ``found`` are the target's digests, where they are known.  Raises ``Incompatible``.
    """
    if clones:
        _check_target(checkpoint, clones, found or checkpoint.target_digests())
        _check_together([*checkpoint.clones, *clones])


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


def _check_together(clones: list[Clone]) -> None:
    """Names and labels must be unique across the target and all clones."""
    taken = {label: "the target" for label in clones[0].manifest.target.label_names}
    names: set[str] = set()
    for clone in clones:
        if clone.name in names:
            raise Incompatible(
                f"{clone.path}: clone '{clone.name}' is in the checkpoint already",
                hint=f"take it off first: pnc eject --name {clone.name}",
            )
        names.add(clone.name)
        for label in clone.manifest.labels:
            if label in taken:
                raise Incompatible(
                    f"{clone.path}: class '{label}' of clone '{clone.name}' is a label of "
                    f"{taken[label]} already",
                    hint=f"inject it under another name: --rename {label}={label}_2",
                )
            taken[label] = f"clone '{clone.name}'"
