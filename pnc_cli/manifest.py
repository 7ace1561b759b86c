"""The patch manifest: the JSON document that says all there is to know of a clone.

A field that comes later has a default and is left out where it has that, so what an older pnc wrote
reads and digests as it did.

The types below are the schema (``pnc info --schema`` prints it as JSON Schema).  Reading is strict: a newer
version, an unknown field or a wrong type is refused.  Writing is canonical: sorted keys, two
spaces, a final newline, no NaN, and no time, host or path, so equal clones have equal manifests.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from .errors import BadInput
from .plan import Plan, Side
from .schema import Kind, KnownAs, Label, Natural, Sha256, Strict

CLONE_SCHEMA: Final = "pnc.clone/1"
PATCHED_SCHEMA: Final = "pnc.patched/1"
PLAN_SCHEMA: Final = "pnc.plan/1"

_FORBIDDEN_ARGS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
    "model_name",
    "num_classes",
    "in_chans",
}

MAX_DOCUMENT = 32_000_000  # bytes; kept indices of the largest networks take some 10 MB
CLONE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class Preprocessing(Strict, frozen=True):
    """How an image becomes a network's input; the names are timm's."""

    input_size: tuple[int, int, int]  # channels, height, width
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: list[float]
    std: list[float]


class NetworkRef(Strict, frozen=True, omit_defaults=True):
    """A timm classifier: enough to rebuild it and to recognise its weights."""

    architecture: str  # a plain name of timm's registry
    model_args: dict[str, Any]
    num_classes: Natural
    label_names: list[Label]
    preprocessing: Preprocessing
    file_sha256: Sha256
    tensors_sha256: Sha256  # see files.digest.combined_sha256; of the network's own names
    tensor_prefix: str = ""  # in front of each of those names in the file: "module."


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the features of one image are laid out.

    ``shape`` is the feature shape without the batch axis; ``prefix`` counts the class and
    register tokens in front of a token grid of ``grid`` = (height, width) cells.
    """

    kind: Kind
    shape: tuple[Natural, ...]
    grid: tuple[int, int]
    prefix: Natural = 0

    @property
    def channels(self) -> int:
        return self.shape[0] if self.kind in ("NCHW", "NC") else self.shape[-1]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def at(self, resolution: float) -> Layout | None:
        """The layout of the same map with so much of its cells along each axis, at least one;
        None for tokens and vectors, which have no other."""
        if resolution == 1.0:
            return self
        if self.kind not in ("NCHW", "NHWC"):
            return None
        h, w = (max(1, round(n * resolution)) for n in self.grid)
        shape = (self.channels, h, w) if self.kind == "NCHW" else (h, w, self.channels)
        return msgspec.structs.replace(self, shape=shape, grid=(h, w))


class Features(Layout, frozen=True, kw_only=True):
    """The features at a position, for one image."""

    position: str

    @classmethod
    def at_position(cls, position: str, layout: Layout) -> Features:
        return cls(position=position, **{f: getattr(layout, f) for f in Layout.__struct_fields__})


class Kept(Strict, frozen=True):
    """The indices of a source tensor's ``axis`` that were copied, in their order."""

    axis: Natural
    indices: list[Natural]


class ModuleTensor(Strict, frozen=True):
    """Tensor ``module.<name>`` is the source's ``<name>``, sliced by ``kept`` (all if empty).

    In the source's file it is called ``<tensor_prefix><name>``.
    """

    kept: list[Kept]


class CloneClass(Strict, frozen=True):
    name: Label  # the label in the patched checkpoint
    source_name: Label
    source_index: Natural  # the class's index in the source
    position: Natural  # the class's place among this clone's logits


class Adapter(Strict, frozen=True, omit_defaults=True):
    """tap features -> cut features: resampling and a ``kernel`` x ``kernel`` convolution.

    ``modulation`` names the module's normalisation layers whose channels the adapter scales and
    shifts besides, ``mixing`` those layers whose inputs it mixes; the module's own tensors stay as
    they were copied.
    """

    kind: Literal["conv"]
    kernel: Natural
    parameters: Natural
    modulation: list[str] = msgspec.field(default_factory=list)
    mixing: list[str] = msgspec.field(default_factory=list)


class Join(Strict, frozen=True):
    """Branch features -> logits of the clone classes, comparable with the target's.

    ``mixture``: by Gaussians, one a class, with one shrunk covariance, on the pre-logits of target
    and branch, and by what both networks answer.  ``gaussian-gate`` and ``one-sided-gate`` are
    of clones made before it.  See ``pnc_cli.branch.join``.
    """

    kind: Literal["mixture", "gaussian-gate", "one-sided-gate"]
    target_features: Natural
    branch_features: Natural
    parameters: Natural


class Method(Strict, frozen=True, omit_defaults=True):
    """What made the clone: with the same inputs, versions and ``threads``, the same bytes."""

    seed: int
    epochs: Natural
    share: float  # of the copied part's cost (parameters and MACs) kept
    images_per_class: dict[Label, Natural]
    original_images: Natural
    unlabelled_images: Natural = 0  # that stood in for images of originals
    threads: Natural | None = None  # of PyTorch: sums of floats are added up in another order
    unlabelled_new: float | None = None  # the share of them that was taken for clone classes
    # other clones that the join was recalibrated with, at injection
    recalibrated_with: list[Label] = msgspec.field(default_factory=list)


class WithoutOriginals(Strict, frozen=True):
    """Why accuracy on original classes and locality are null in :class:`Measured`, and what clone
    images tell of the gate all the same.  How many original images it loses is unknown."""

    reason: str
    images: Natural  # clone images that the figures below are of
    held_out: (
        bool  # whether these were held out; where there are too few, nothing was fitted without
    )
    clone_won: float  # share of them that a clone class wins against all of the target's
    target_confidence: float  # mean probability that the target alone gives a class of its own


class Measured(Strict, frozen=True, omit_defaults=True):
    """Figures at cloning time, on training images held out from every fit; shares 0 to 1.

    Those of the sides in ``fitted`` are of images that were fitted on, as none could be held out.
    """

    images: Natural
    branch_accuracy: float | None  # the branch alone among the clone classes
    source_accuracy: float | None  # the whole source, likewise
    original_accuracy: float | None
    clone_accuracy: float | None
    joint_accuracy: float | None
    locality: float | None
    without_originals: WithoutOriginals | None = None  # where no original image was given
    fitted: list[Side] = msgspec.field(default_factory=list)
    # classes with too few images for any to be held out: how many they have
    not_held_out: dict[Label, Natural] = msgspec.field(default_factory=dict)
    # clone classes whose images the target answers with one of its own, nearly all of them
    known_already: list[KnownAs] = msgspec.field(default_factory=list)


class Cost(Strict, frozen=True):
    """What the clone adds to the target, per image where that applies."""

    parameters: Natural
    macs: Natural
    target_parameters: Natural
    target_macs: Natural
    bytes: Natural


class Manifest(Strict, frozen=True, omit_defaults=True):
    """The patch manifest of one clone.

    One without a copied part has no ``tap``, ``cut``, ``module`` and ``adapter``: its join alone
    tells the clone classes, from the target's pre-logits.
    """

    schema: Literal["pnc.clone/1"]
    name: Annotated[str, msgspec.Meta(pattern=CLONE_NAME)]
    versions: dict[str, str]
    source: NetworkRef
    target: NetworkRef
    tap: Features | None
    cut: Features | None
    classes: list[CloneClass]
    target_tensors: dict[str, str]  # what the target's tensors must be: dtype, shape, digest
    module: dict[str, ModuleTensor]
    columns: list[Natural]  # of the module's logits, one a clone class
    adapter: Adapter | None
    join: Join
    method: Method
    measured: Measured
    cost: Cost
    tensors_sha256: Sha256
    sha256: Sha256 | None = None  # of this document without this field; None: made before it

    def sealed(self) -> Manifest:
        """The same with the digest of what it says."""
        return msgspec.structs.replace(self, sha256=self.digest())

    def digest(self) -> str:
        """sha256 of the canonical document without its own digest."""
        bare = msgspec.structs.replace(self, sha256=None)
        return hashlib.sha256(canonical_json(bare)).hexdigest()

    @property
    def labels(self) -> list[str]:
        return [c.name for c in self.classes]

    def renamed(self, names: dict[str, str]) -> Manifest:
        """The same clone under other labels (``names``: old to new)."""
        classes = [msgspec.structs.replace(c, name=names.get(c.name, c.name)) for c in self.classes]
        renamed = msgspec.structs.replace(self, classes=classes)
        return renamed if self.sha256 is None else renamed.sealed()


class Patched(Strict, frozen=True):
    """The manifest of a patched checkpoint."""

    schema: Literal["pnc.patched/1"]
    target_sha256: Sha256  # the whole target file; its header is in the metadata verbatim
    clones: list[Manifest]


def to_plain(document: Any) -> Any:
    """A document as plain dictionaries and lists."""
    return msgspec.to_builtins(document)


def canonical_json(document: Any) -> bytes:
    """Canonical bytes of a manifest, plan or plain JSON value."""
    text = json.dumps(
        to_plain(document), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8") + b"\n"


Document = TypeVar("Document", bound=Manifest | Patched | Plan)


def parse(text: str | bytes, kind: type[Document], where: str) -> Document:
    """Strictly decodes a ``kind`` (Manifest, Patched, Plan) from JSON.

    Raises ``BadInput`` naming ``where``, and the field, or the version when that is the trouble.
    """
    schemas: dict[type, str] = {Manifest: CLONE_SCHEMA, Patched: PATCHED_SCHEMA, Plan: PLAN_SCHEMA}
    wanted = schemas[kind]
    if len(text) > MAX_DOCUMENT:
        raise BadInput(
            f"{where}: manifest has {len(text):,} characters; pnc reads at most {MAX_DOCUMENT:,}"
        )
    try:
        found = msgspec.json.decode(text, type=_Head).schema
        if found != wanted:
            family, _, version = str(found).partition("/")
            newer = family == wanted.partition("/")[0] and version.isdigit()
            raise BadInput(
                f"{where}: manifest is '{found}', this pnc reads '{wanted}'",
                hint="it is of a newer pnc than this one: upgrade pnc" if newer else None,
            )
        document = msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadInput(f"{where}: manifest does not follow '{wanted}': {e}") from None
    if isinstance(document, Manifest):
        _check(document, where)
    elif isinstance(document, Patched):
        for manifest in document.clones:
            _check(manifest, where)
    else:
        _check_plan(document, where)
    return document


class _Head(msgspec.Struct):
    """What kind of document it is; the rest is passed over, whatever it is."""

    schema: str | None = None


def _check_plan(plan: Plan, where: str) -> None:
    for what, index in (("chosen", plan.chosen), ("best", plan.best)):
        if index is not None and index >= len(plan.candidates):
            raise BadInput(f"{where}: {what} candidate {index} is not in the list")


def _check(m: Manifest, where: str) -> None:
    """What the types cannot say, of the manifest alone (of its tensors: ``files.sound``)."""
    if m.sha256 is not None and m.sha256 != m.digest():
        raise BadInput(
            f"{where}: clone '{m.name}': its manifest is not what was written",
            hint="the file was changed or damaged; fetch or make the clone again",
        )
    if not re.fullmatch(CLONE_NAME, m.name):  # "$" alone lets a newline pass
        raise BadInput(f"{where}: clone name {m.name!r} is not letters, digits, - and _")
    n = len(m.classes)
    parts = [m.tap is not None, m.cut is not None, m.adapter is not None, bool(m.module)]
    if len(set(parts)) != 1:
        raise BadInput(f"{where}: clone '{m.name}': tap, cut, adapter and module do not match")
    columns = n if m.module else 0
    if n == 0 or [c.position for c in m.classes] != list(range(n)) or len(m.columns) != columns:
        raise BadInput(f"{where}: clone '{m.name}': classes and columns do not match")
    if len(set(m.labels)) != n:
        raise BadInput(f"{where}: clone '{m.name}': a label stands twice")
    for ref in (m.source, m.target):
        if not re.fullmatch(r"[A-Za-z0-9_]+", ref.architecture):
            raise BadInput(f"{where}: architecture {ref.architecture!r} is not a plain timm name")
        check_model_args(ref.model_args, where)


def check_model_args(args: object, where: str) -> dict[str, Any]:
    """Arguments for the architecture's constructor; those that could fetch or read are refused."""
    if not isinstance(args, dict):
        raise BadInput(f"{where}: model_args is not an object")
    if bad := sorted(_FORBIDDEN_ARGS & set(args)):
        raise BadInput(f"{where}: model_args may not set '{bad[0]}'")
    return args


def json_schema() -> dict[str, Any]:
    """JSON Schema of all documents that pnc writes to disk."""
    documents, types = msgspec.json.schema_components(
        [Manifest, Patched, Plan], ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": list(documents),
        "$defs": types,
    }
