"""Whether a clone's manifest means anything: held against its tensors before it is applied.

A manifest is data from a stranger.  What its types cannot say (``manifest.py``) is checked here
without torch and without the source: shapes, slices, sizes of adapter and join, preprocessing.  So
``inject`` and ``info`` refuse what a network could not be built from; whether the copied tensors
are the source's is checked with the source at hand (``against_source.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from ..errors import BadInput
from ..manifest import Features, Join, Manifest, NetworkRef, Preprocessing
from .finite import FLOATS
from .header import TensorEntry

COPIED = {*FLOATS, "I64"}  # of copied tensors: weights, and counters or indices
LEARNED = "F32"
LARGEST_SIDE = 16_384  # pixels, cells or channels along one axis
LARGEST_MAP = 1 << 26  # numbers of one image's features: the input of 4,096 pixels has 50 million
LARGEST_KERNEL = 15
INTERPOLATIONS = {"nearest", "bilinear", "bicubic", "lanczos", "hamming", "box", "random"}
CROP_MODES = {"center", "squash", "border", "corner"}

Tensors = Mapping[str, TensorEntry]


def check_sound(m: Manifest, tensors: Tensors, where: object) -> None:
    """Raises ``BadInput`` naming ``where``, the clone and the first thing in its manifest that does not
    fit its ``tensors`` (``adapter.*``, ``module.*``, ``join.*``), or fits nothing."""
    for fault in _faults(m, tensors):
        raise BadInput(
            f"{where}: clone '{m.name}': {fault}",
            hint="the file is damaged or was made up: fetch or make the clone again",
        )


def _faults(m: Manifest, tensors: Tensors) -> Iterator[str]:
    parts: dict[str, dict[str, TensorEntry]] = {"adapter": {}, "module": {}, "join": {}}
    for name, entry in tensors.items():
        part, _, own = name.partition(".")
        if part not in parts or not own:
            yield f"tensor '{name}' belongs to no part of a clone"
            return
        parts[part][own] = entry
    for role, ref in (("source", m.source), ("target", m.target)):
        for fault in _network(ref):
            yield f"{role}: {fault}"
    yield from _classes(m)
    yield from _module(m, parts["module"])
    yield from _adapter(m, parts["adapter"])
    yield from _join(m, parts["join"])
    yield from _figures(m)


def _network(ref: NetworkRef) -> Iterator[str]:
    if ref.num_classes < 1 or len(ref.label_names) != ref.num_classes:
        yield f"{len(ref.label_names)} label names for {ref.num_classes} classes"
    yield from preprocessing_faults(ref.preprocessing)


def preprocessing_faults(p: Preprocessing) -> Iterator[str]:
    """What of it timm could not make an input with."""
    if not all(1 <= n <= LARGEST_SIDE for n in p.input_size):
        yield f"input_size {list(p.input_size)}, expected 1 to {LARGEST_SIDE:,} along each axis"
    if p.interpolation not in INTERPOLATIONS:
        known = ", ".join(sorted(INTERPOLATIONS))
        yield f"interpolation '{p.interpolation}', expected one of {known}"
    if p.crop_mode not in CROP_MODES:
        yield f"crop_mode '{p.crop_mode}', expected one of {', '.join(sorted(CROP_MODES))}"
    if not 0 < p.crop_pct <= 4:
        yield f"crop_pct {p.crop_pct:g}, expected more than 0"
    for name, values in (("mean", p.mean), ("std", p.std)):
        if len(values) not in (1, p.input_size[0]):
            yield f"{name} has {len(values)} values for {p.input_size[0]} channels"
        if not all(math.isfinite(v) and (name == "mean" or v > 0) for v in values):
            yield f"{name} {values} is no {name}"


def _classes(m: Manifest) -> Iterator[str]:
    for c in m.classes:
        if c.source_index >= m.source.num_classes:
            yield f"class '{c.name}' is number {c.source_index} of {m.source.num_classes}"
        elif m.source.label_names[c.source_index] != c.source_name:
            name = m.source.label_names[c.source_index]
            yield f"class {c.source_index} of the source is '{name}', not '{c.source_name}'"
    if m.module and (_twice(m.columns) or max(m.columns) >= m.source.num_classes):
        yield f"columns {m.columns} are not those of classes of the source"


def _module(m: Manifest, tensors: Tensors) -> Iterator[str]:
    """Slices, of which there is one for every copied tensor."""
    if missing := set(m.module) ^ set(tensors):
        name = min(missing)
        what = "is listed and not there" if name in m.module else "is not listed"
        yield f"copied tensor 'module.{name}' {what}"
        return
    for name, slices in m.module.items():
        shape, dtype = tensors[name].shape, tensors[name].dtype
        if dtype not in COPIED:
            yield f"'module.{name}' is {dtype}, no type of a weight"
        if _twice([k.axis for k in slices.kept]):
            yield f"'module.{name}': an axis is kept twice"
        for k in slices.kept:
            if k.axis >= len(shape):
                yield f"'module.{name}' has {len(shape)} axes, kept are some of axis {k.axis}"
            elif not k.indices or len(k.indices) != shape[k.axis]:
                found = f"{len(k.indices)} indices for {shape[k.axis]} numbers"
                yield f"'module.{name}': {found} along axis {k.axis}"
            elif _twice(k.indices) or max(k.indices) >= LARGEST_MAP:
                yield f"'module.{name}': indices of axis {k.axis} stand twice or are too large"


def _adapter(m: Manifest, tensors: Tensors) -> Iterator[str]:
    yield from _learned("adapter", tensors, m.adapter.parameters if m.adapter else 0)
    if m.adapter is None or m.tap is None or m.cut is None:
        return
    for name, features in (("tap", m.tap), ("cut", m.cut)):
        for fault in _features(features):
            yield f"{name}: {fault}"
    k = m.adapter.kernel
    if not 1 <= k <= LARGEST_KERNEL or k % 2 == 0:
        yield f"an adapter's kernel is odd and at most {LARGEST_KERNEL}, not {k}"
    into, out = m.tap.channels, m.cut.channels
    expected = {"weight": (out, into, k, k), "bias": (out,)}
    yield from _shapes("adapter", tensors, expected)
    own: set[str] = {n for n in tensors if "." not in n}
    if extra := own - {"weight", "bias", "prefix_weight", "prefix_bias"}:
        yield f"'adapter.{min(extra)}' is nothing of an adapter"
    if (m.cut.prefix > 0) != ("prefix_weight" in own):
        yield f"prefix tokens: {m.cut.prefix} at the cut, and adapter {sorted(own)}"
    for kind, layers in (("modulation", m.adapter.modulation), ("mixing", m.adapter.mixing)):
        found = {
            n.removeprefix(f"{kind}.").rpartition(".")[0]
            for n in tensors
            if n.startswith(f"{kind}.")
        }
        if found != set(layers) or _twice(layers):
            yield f"{kind} of {sorted(found)[:3]}, listed is {sorted(layers)[:3]}"
        inside = {n.rpartition(".")[0] for n in m.module}
        if strange := found - inside:
            yield f"{kind} of '{min(strange)}', which is no layer of the module"


def _features(f: Features) -> Iterator[str]:
    sizes = (*f.shape, *f.grid)
    if not f.shape or not all(1 <= n <= LARGEST_SIDE for n in sizes) or f.elements > LARGEST_MAP:
        yield f"features of shape {list(f.shape)} on a grid of {list(f.grid)}"
        return
    expected = {
        "NCHW": (f.channels, *f.grid),
        "NHWC": (*f.grid, f.channels),
        "NLC": (f.prefix + f.grid[0] * f.grid[1], f.channels),
        "NC": (f.channels,),
    }[f.kind]
    if f.shape != expected:
        yield f"{f.kind} features of shape {list(f.shape)}, expected {list(expected)}"


def _join(m: Manifest, tensors: Tensors) -> Iterator[str]:
    yield from _learned("join", tensors, m.join.parameters)
    yield from _shapes("join", tensors, _join_shapes(m.join, tensors), exactly=True)
    rows = tensors["weight"].shape[0] if "weight" in tensors else len(m.classes)
    if rows < len(m.classes):
        yield f"the join has scores of {rows} classes, the clone has {len(m.classes)}"


def _join_shapes(join: Join, tensors: Tensors) -> dict[str, tuple[int, ...]]:
    both, own = join.target_features + join.branch_features, join.branch_features
    if join.kind == "one-sided-gate":
        return {"mean_weight": (own,), "mean_bias": (), "slope": (), "offset": ()}
    weight = tensors.get("weight")
    rows = weight.shape[0] if weight is not None and weight.shape else 0
    scores = {"weight": (rows, both), "bias": (rows,)}
    if join.kind == "gaussian-gate":
        return {**scores, "calibration": (2,)}
    return {**scores, "gating": (3,), "ranking": (2,), "mean_weight": (own,), "mean_bias": ()}


def _learned(part: str, tensors: Tensors, parameters: int) -> Iterator[str]:
    for name, entry in tensors.items():
        if entry.dtype != LEARNED:
            yield f"'{part}.{name}' is {entry.dtype}, expected {LEARNED}"
    count = sum(math.prod(t.shape) for t in tensors.values())
    if count != parameters:
        yield f"the {part} has {count:,} numbers, the manifest says {parameters:,}"


def _shapes(
    part: str, tensors: Tensors, expected: Mapping[str, tuple[int, ...]], exactly: bool = False
) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in tensors:
            yield f"'{part}.{name}' is missing"
        elif tensors[name].shape != shape:
            found = list(tensors[name].shape)
            yield f"'{part}.{name}' has shape {found}, expected {list(shape)}"
    if exactly and (extra := set(tensors) - set(expected)):
        yield f"'{part}.{min(extra)}' is nothing of its kind"


def _figures(m: Manifest) -> Iterator[str]:
    measured = m.measured
    known = {
        "branch_accuracy": measured.branch_accuracy,
        "source_accuracy": measured.source_accuracy,
        "original_accuracy": measured.original_accuracy,
        "clone_accuracy": measured.clone_accuracy,
        "joint_accuracy": measured.joint_accuracy,
        "locality": measured.locality,
        "share": m.method.share,
    }
    for name, value in known.items():
        if value is not None and not 0 <= value <= 1:
            yield f"{name} is {value:g}, expected 0 to 1"


def _twice(values: Iterable[object]) -> bool:
    found = list(values)
    return len(set(found)) != len(found)
