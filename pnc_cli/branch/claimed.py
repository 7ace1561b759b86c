"""What a clone's manifest claims of its source is held against the clone before memory is spent on it.

The source's architecture is built to cut the copied part out of it, whole, before that is pruned to
what the file holds: a file of some kilobytes can name a source of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from ..errors import BadInput
from ..files.clone_file import Clone
from ..files.header import TensorEntry
from ..manifest import Manifest
from ..network.blank import without_memory
from ..network.bounds import PRUNED, SMALL
from ..network.graph import trace
from ..network.head import classifier_names, find_head
from ..network.load import build_architecture
from ..network.part import _part


def check_cost(clone: Clone) -> None:
    """Raises ``BadInput`` where the source that the manifest names is out of proportion to the clone, or
    not what its copied tensors are slices of.  Nothing is allocated."""
    m = clone.manifest
    if m.cut is None:
        return
    entries = {
        n.removeprefix("module."): t for n, t in clone.tensors.items() if n.startswith("module.")
    }
    try:
        with without_memory():
            source = build_architecture(m.source)
    except NotImplementedError:  # an architecture that computes while it is built
        return
    whole = sum(p.numel() for p in source.parameters())
    if whole <= SMALL + PRUNED * _numbers(entries):
        return
    try:
        _compare(clone, source, entries)
    except (RuntimeError, KeyError, ValueError) as e:
        raise _refused(clone, str(e)) from None


def _numbers(entries: Mapping[str, TensorEntry]) -> int:
    return sum(math.prod(t.shape) for t in entries.values())


def _compare(clone: Clone, source: nn.Module, entries: Mapping[str, TensorEntry]) -> None:
    """The part after the cut, on shapes alone, with the copied tensors."""
    m: Manifest = clone.manifest
    if m.cut is None:
        return
    tr = trace(source, m.source.preprocessing.input_size)
    part = _part(tr, tr.position(m.cut.position), find_head(tr, classifier_names(source)))
    heads = classifier_names(source)
    before = after = 0
    for name, tensor in part.state_dict().items():
        if name not in entries:
            continue  # that is said when it is rebuilt
        if name.rpartition(".")[0] not in heads:  # of a classifier's rows few are kept
            before, after = before + tensor.numel(), after + math.prod(entries[name].shape)
        kept = {k.axis: k.indices for k in m.module[name].kept}
        if len(tensor.shape) != len(entries[name].shape) or any(
            max(kept[axis], default=0) >= n if axis in kept else n != entries[name].shape[axis]
            for axis, n in enumerate(tensor.shape)
        ):
            raise _refused(
                clone, f"'module.{name}' is no slice of its source's, {list(tensor.shape)}"
            )
    if before > SMALL + PRUNED * after:
        raise _refused(
            clone,
            f"its copied part has {after:,} numbers, of {before:,} in a {m.source.architecture} of these "
            f"model_args; pnc builds at most {PRUNED} times as many and {SMALL:,}",
        )


def _refused(clone: Clone, what: str) -> BadInput:
    return BadInput(
        f"{clone.path}: clone '{clone.name}': {what}",
        hint="its manifest says what is not so: fetch or make the clone again",
    )
