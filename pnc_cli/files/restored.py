"""What lies beside a target that has been taken out of a patched checkpoint.

The file is the target's, byte for byte.  What it *is* (architecture, labels, preprocessing) often
stands beside the file where the target was made, and a patched checkpoint's manifest holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..manifest import PATCHED_SCHEMA, NetworkRef, Patched, canonical_json, parse, to_plain
from ..progress import Note
from .atomic import Outputs
from .clone_file import is_ours
from .identity import Identity, read_documents
from .inputs import current
from .opened import Checkpoint


def describe_restored(
    outputs: Outputs, checkpoint: Checkpoint, output: Path, *, force: bool, note: Note
) -> bool:
    """Writes ``<stem>.json`` beside the target in ``output`` where nothing else says what it is.

    Whether there is such a document now; ``note`` is told of one that was written, and of one that
    was there and says something else.
    """
    ref, sidecar = checkpoint.clones[0].manifest.target, output.with_suffix(".json")
    try:
        known = read_documents(output, checkpoint.target)
    except BadInput as e:
        note(f"{e.message}: what {output.name} is stands in no document that can be read")
        return True
    if not (missing := _missing(ref, known)):
        return sidecar.is_file() and not is_ours(sidecar)
    if sidecar.is_file() and not is_ours(sidecar):
        note(
            f"{sidecar}: is not replaced, but says nothing or something else of the target's "
            + " and ".join(missing)
        )
        return True
    outputs.open(sidecar, beside=output).write(canonical_json(document_of(ref)))
    note(f"{sidecar}: says what {output.name} is: {ref.architecture}, {ref.num_classes} classes")
    return True


def document_of(ref: NetworkRef) -> dict[str, Any]:
    """``<stem>.json`` of a classifier: what :func:`~.identity.resolve_identity` reads."""
    document: dict[str, Any] = {
        "architecture": ref.architecture,
        "num_classes": ref.num_classes,
        "label_names": list(ref.label_names),
        "model_args": ref.model_args,
        "pretrained_cfg": to_plain(ref.preprocessing),
    }
    if _are_numbers(ref):
        del document["label_names"]
    if not ref.model_args:
        del document["model_args"]
    return document


def drop_stale_manifest(output: Path) -> None:
    """Removes the manifest of a patched checkpoint that a plain target has just replaced."""
    sidecar = output.with_suffix(".json")
    if (
        sidecar.is_file()
        and sidecar not in current()
        and PATCHED_SCHEMA.encode() in sidecar.read_bytes()
    ):
        try:
            parse(sidecar.read_bytes(), Patched, str(sidecar))
        except BadInput:  # not ours after all
            return
        sidecar.unlink()


def _missing(ref: NetworkRef, known: Identity) -> list[str]:
    """What documents do not say of a network, or say otherwise."""
    labels = None if _are_numbers(ref) else tuple(ref.label_names)
    found = {
        "architecture": known.architecture == ref.architecture,
        "labels": known.label_names == labels
        or (labels is None and known.label_names == tuple(ref.label_names)),
        "model_args": known.model_args == ref.model_args,
        # what a document leaves out was timm's default before, too; none of it was said elsewhere
        "preprocessing": bool(known.preprocessing)
        and all(_same(v, getattr(ref.preprocessing, k)) for k, v in known.preprocessing.items()),
    }
    return [what for what, same in found.items() if not same]


def _same(documented: object, used: object) -> bool:
    """Whether a document says what was used: one number may stand for every channel."""
    if isinstance(documented, list) and isinstance(used, list | tuple):
        return documented * (len(used) // max(len(documented), 1)) == list(used)
    return documented == used


def _are_numbers(ref: NetworkRef) -> bool:
    """Whether nothing named the classes."""
    return list(ref.label_names) == [str(i) for i in range(ref.num_classes)]
