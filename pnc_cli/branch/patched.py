"""A target with clones on top, as one ordinary module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..channels.groups import prunable_groups, shrink_graph, what_stays
from ..data import Images, ImageSource, Reconciled, normalize, reconcile
from ..errors import BadInput, OutOfMemory, UsageError, in_words
from ..files.clone_file import Clone, open_clone, verify_clone
from ..files.forms import is_counter
from ..files.header import read_header
from ..files.opened import open_checkpoint
from ..files.patch import check_fit
from ..manifest import Features, Manifest, ModuleTensor, Preprocessing
from ..network.finite import check_features
from ..network.fitting import same_tensors
from ..network.graph import trace
from ..network.head import classifier_names, find_head, target_pre_logits
from ..network.load import Network, build_architecture, check_device, load_network
from ..network.part import Module, _part, resize
from ..network.record import Recorder
from ..network.tensors import read_tensors
from ..progress import Note, no_note
from .adapter import Adapter
from .branches import Branches
from .claimed import check_cost
from .compensation import Compensation
from .join import Join, from_tensors

MIRROR = "mirror"  # what can be averaged over at test time

# Which clones of which model (its recorder) are enabled in this thread or task; the last one counts.
_ENABLED: ContextVar[tuple[tuple[Recorder, tuple[str, ...]], ...]] = ContextVar(
    "enabled", default=()
)


@dataclass(frozen=True)
class View:
    """What the target makes of one view of the images, as they are or mirrored.

    ``features`` are those at each tap; ``pre`` are the pre-logits (B, D_T), ``z`` the logits.
    """

    features: dict[str, Tensor]
    pre: Tensor
    z: Tensor


class Branch(nn.Module):
    """Reads the target's features at ``tap`` and answers for its clone classes."""

    def __init__(self, tap: str, adapter: Adapter, module: Module, join: Join) -> None:
        super().__init__()
        self.taps: tuple[str, ...] = (tap,)
        self.adapter, self.module, self.join = adapter, module, join

    def forward(self, views: Sequence[View], z_t: Tensor) -> Tensor:
        """Logits (B, K) from the means over ``views``, beside the target's ``z_t`` (B, C)."""
        answers = [self.module(self.adapter(v.features[self.taps[0]])) for v in views]
        pre, z_b = (_mean(each) for each in zip(*answers))
        return self.join(_mean([v.pre for v in views]), pre, z_t, z_b)


class HeadOnly(nn.Module):
    """Answers for its clone classes from the target's pre-logits alone: nothing is copied."""

    def __init__(self, join: Join, classes: int) -> None:
        super().__init__()
        self.taps: tuple[str, ...] = ()
        self.join, self.classes = join, classes

    def forward(self, views: Sequence[View], z_t: Tensor) -> Tensor:
        """Logits (B, K), as :class:`Branch` has them."""
        target_pre = _mean([v.pre for v in views])
        nothing = z_t.new_zeros(z_t.shape[0], self.classes)
        return self.join(target_pre, target_pre[:, :0], z_t, nothing)


def _mean(views: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape; of one alone its very bits."""
    return views[0] if len(views) == 1 else torch.stack(list(views)).mean(0)


class PatchedModel(nn.Module):
    """Images (B, C, H, W), preprocessed for the target -> logits (B, original + clone classes).

    The first ``target_classes`` logits are the target's own, bit for bit, from any number of
    threads.  ``pretrained_cfg`` is the target's, for ``timm.data.resolve_model_data_config``.

    Target and branches stay in eval mode, whatever ``train`` is called: nothing in them is to be
    trained.  With ``tta`` "mirror" the clones' logits are of each image and its mirror image:
    pre-logits and the branches' logits are averaged before they are joined, at the cost of a second
    pass of target and branches.  The target's logits stay those of the image as it is.

    Clones come off with :meth:`eject`, and for a while with :meth:`enabled`; ``num_classes``,
    ``label_names``, ``manifests`` and ``pretrained_cfg`` are always those of the logits.
    """

    tta: str | None = None  # of the class too, for modules that were pickled before there was one

    def __init__(
        self,
        target: Network,
        branches: Mapping[str, Branch | HeadOnly],
        manifests: list[Manifest],
        tta: str | None = None,
    ) -> None:
        super().__init__()
        self.tta = tta
        self.target = target.model
        self.branches = Branches(branches)
        self.classifier = target.classifier
        self.target_classes = target.ref.num_classes
        self.target_labels = tuple(target.ref.label_names)
        self.target_cfg: dict[str, Any] = vars(target.model)["pretrained_cfg"]
        self.clone_manifests = dict(zip(branches, manifests))
        self.recorder = Recorder()
        if branches:
            taps = dict.fromkeys(tap for b in branches.values() for tap in b.taps)
            self.recorder.listen(self.target, taps, self.classifier)
        self.may_be_narrowed = False  # whether ``enabled`` was ever used
        self.only: tuple[str, ...] | None = None  # of a replica: what was enabled when it was made

    @property
    def clone_names(self) -> list[str]:
        """The clones whose logits there are, in their order."""
        return [name for name, _ in self._active()]

    @property
    def manifests(self) -> list[Manifest]:
        """Of these clones."""
        return [self.clone_manifests[name] for name in self.clone_names]

    @property
    def label_names(self) -> list[str]:
        """What each logit is of."""
        return [*self.target_labels, *(label for m in self.manifests for label in m.labels)]

    @property
    def num_classes(self) -> int:
        return self.target_classes + sum(len(m.labels) for m in self.manifests)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return {**self.target_cfg, "num_classes": self.num_classes}

    default_cfg = pretrained_cfg

    def eject(self, *names: str) -> None:
        """Takes the clones called ``names`` (all if none are given) off, for good.

        The others' logits stay as they are.  Raises ``UsageError`` for a name that is not there,
        and takes off nothing then.
        """
        for name in self._checked(names) if names else list(self.branches):
            self.branches.pop(name)  # its manifest stays: another thread may be reading it

    @contextmanager
    def enabled(self, *names: str) -> Iterator[PatchedModel]:
        """Within it the model has the logits of the target and of the clones called ``names`` only.

        Without names it is the target alone.  Other threads, and other tasks of an event loop, are
        not concerned.  Raises ``UsageError`` for a name that is not there.
        """
        self.may_be_narrowed = True
        token = _ENABLED.set((*_ENABLED.get(), (self.recorder, self._checked(names))))
        try:
            yield self
        finally:
            _ENABLED.reset(token)

    def train(self, mode: bool = True) -> PatchedModel:
        """Sets ``training``, and no more: target and branches stay as they are, in eval mode."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        self._keep_still()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self._keep_still()
        branches = [branch for _, branch in self._active()]
        if not branches:
            return self.target(x)
        # the image as it is comes last: that is what hooks of others on the target keep
        mirrored = [x.flip(-1)] if self.tta == MIRROR else []
        taps = list(dict.fromkeys(tap for b in branches for tap in b.taps))
        views = [self._view(images, taps) for images in (*mirrored, x)]
        z_t = views[-1].z
        return torch.cat([z_t, *(b(views, z_t) for b in branches)], dim=1)

    def _view(self, x: Tensor, taps: list[str]) -> View:
        z, seen = self.recorder.run(
            self.target, x, [*taps, *(f"{name}:input" for name in self.classifier)]
        )
        if missing := [tap for tap in taps if tap not in seen]:
            raise UsageError(
                f"the target ran, but nothing was seen of its '{missing[0]}': it was replaced, or compiled alone",
                hint="compile the patched model, not the target in it: torch.compile(model)",
            )
        return View(seen, target_pre_logits(seen, self.classifier, z), z)

    def _active(self) -> list[tuple[str, Branch | HeadOnly]]:
        """The clones that answer here and now, with their names."""
        present, only = list(self.branches.items()), self.only
        if self.may_be_narrowed:
            for owner, names in _ENABLED.get():
                only = names if owner is self.recorder else only
        return [(n, b) for n, b in present if only is None or n in only]

    def _checked(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.branches:
                there = ", ".join(self.branches) or "no clones"
                raise UsageError(f"the model has no clone '{name}'", hint=f"it has: {there}")
        return tuple(dict.fromkeys(names))

    def _keep_still(self) -> None:
        """Puts what was set to training, by whatever way, back into eval mode."""
        for part in (self.target, self.branches):
            if _in_training(part):
                part.eval()

    def _replicate_for_data_parallel(self) -> PatchedModel:
        """A replica works in a thread of its own, which has not entered ``enabled``."""
        replica = super()._replicate_for_data_parallel()
        replica.only = tuple(self.clone_names)
        return cast(PatchedModel, replica)


def _in_training(module: nn.Module) -> bool:
    """Whether ``module`` or one in it is; on the way of every forward pass, so in few steps."""
    left: list[nn.Module | None] = [module]
    while left:
        one = left.pop()
        if one is not None:
            if one.training:
                return True
            left.extend(one._modules.values())
    return False


def load(
    target: str | Path,
    clones: Sequence[str | Path] = (),
    *,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    device: str = "cpu",
    tta: str | None = None,
    note: Note = no_note,
) -> PatchedModel:
    """A patched checkpoint, or a target with ``clones`` on top, as an eval-mode ``nn.Module``.

    ``architecture`` and ``model_args`` say what the target is where its file does not; ``tta``,
    None or "mirror", is :class:`PatchedModel`'s; ``note`` is called with what was assumed of the
    target's file or passed over in it.  Nothing is written.  The module has ``label_names``,
    ``num_classes`` and ``pretrained_cfg``:

        model = pnc_cli.load("patched.safetensors")
        config = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**config)

    Raises ``pnc_cli.errors.PncError`` as the commands do.
    """
    if tta not in (None, MIRROR):
        raise UsageError(f"--tta '{tta}': there is no such averaging", hint=f"--tta {MIRROR}")
    target, where = Path(target), check_device(device)
    checkpoint = open_checkpoint(target)
    network = load_network(target, architecture=architecture, model_args=model_args)
    for remark in network.remarks:
        note(remark)
    extra = [open_clone(Path(p)) for p in clones]
    check_fit(checkpoint, extra, network.digests)
    every = [*checkpoint.clones, *extra]
    branches = {}
    for clone in every:
        verify_clone(clone)
        branches[clone.name] = _branch(clone)
    manifests = [c.manifest for c in every]
    model = PatchedModel(network, branches, manifests, tta)
    return model.eval().requires_grad_(False).to(where)


def _branch(clone: Clone) -> Branch | HeadOnly:
    m: Manifest = clone.manifest
    check_cost(clone)
    header = read_header(clone.path)
    entries = {n: header.tensors[clone.prefix + n] for n in clone.tensors}
    tensors = read_tensors(clone.path, header, entries)
    part = {
        g: {n.removeprefix(g + "."): t for n, t in tensors.items() if n.startswith(g + ".")}
        for g in ("adapter", "module", "join")
    }
    try:
        join = from_tensors(m.join.kind, part["join"], len(m.classes))
        if m.tap is None or m.cut is None or m.adapter is None:
            return HeadOnly(join, len(m.classes))
        module = rebuild_module(build_architecture(m.source), m, m.cut, part["module"])
        adapter = Adapter(m.tap, m.cut, m.adapter.kernel)
        compensation = Compensation.taken_from(part["adapter"])
        adapter.load_state_dict(part["adapter"])
        compensation.fold_into(module.part)
    except (RuntimeError, KeyError, ValueError) as e:
        if (lacking := OutOfMemory.of(e)) is not None:
            raise lacking from None
        raise BadInput(f"{clone.path}: clone '{clone.name}': {in_words(e)}") from None
    return Branch(m.tap.position, adapter, module, join)


def preprocessing_of(model: PatchedModel) -> Preprocessing:
    """How images are prepared for ``model``."""
    return Preprocessing(**{k: model.pretrained_cfg[k] for k in Preprocessing.__struct_fields__})


@torch.no_grad()
def answer(model: PatchedModel, images: Images) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of images of the model's classes, and their labels (N,) among them."""
    how, device = preprocessing_of(model), next(model.parameters()).device
    number = {name: i for i, name in enumerate(model.label_names)}
    x = normalize(images.views[0].to(device), how)
    logits = model(x).cpu()
    _check_logits(model, x, logits)
    return logits, torch.tensor([number[n] for n in images.labels])


def _check_logits(model: PatchedModel, x: Tensor, logits: Tensor) -> None:
    """Raises ``BadInput`` naming the target or the clone whose logits (N, C) of ``x`` are no numbers."""
    check_features("the target", model.target, x, {"logits": logits[:, : model.target_classes]})
    at = model.target_classes
    for m in model.manifests:
        own, at = logits[:, at : at + len(m.labels)], at + len(m.labels)
        check_features(f"clone '{m.name}'", model, x, {"logits": own})


def rebuild_module(
    source: nn.Module, manifest: Manifest, cut: Features, tensors: dict[str, Tensor]
) -> Module:
    """The module of a clone file, cut at ``cut``, on the untrained architecture ``source``.

    Raises ``BadInput`` when the tensors are not those the cut architecture needs.
    """
    tr = trace(source, manifest.source.preprocessing.input_size)
    heads = classifier_names(source)
    part = _part(tr, tr.position(cut.position), find_head(tr, heads))
    tensors, slices = completed(part, tensors, manifest.module)
    needed = {n for n in part.state_dict() if n in tensors or not is_counter(n)}
    if needed != set(tensors):
        odd = min(needed ^ set(tensors))
        raise BadInput(
            f"clone '{manifest.name}': its module does not fit the part of a "
            f"{manifest.source.architecture} after '{cut.position}': "
            f"tensor '{odd}' is {'missing' if odd in needed else 'unexpected'}"
        )
    kept = {(n, k.axis): k.indices for n, t in slices.items() for k in t.kept}
    if any(name.rpartition(".")[0] not in heads for name, _ in kept):
        groups = prunable_groups(part, torch.zeros(2, *cut.shape))
        shrink_graph(part, what_stays(groups, kept))
    resize(part, tensors)
    return Module(part, list(manifest.columns))


def labels_in(model: PatchedModel, source: ImageSource) -> Reconciled:
    """What becomes of the model's labels and a data source's folders."""
    old, new = model.label_names[: model.target_classes], model.label_names[model.target_classes :]
    there = {n: n for n in new if n in source.by_class}
    return reconcile(source, there, old, clone_without=[n for n in new if n not in there])


def completed(
    part: nn.Module, tensors: dict[str, Tensor], slices: Mapping[str, ModuleTensor]
) -> tuple[dict[str, Tensor], dict[str, ModuleTensor]]:
    """A module's tensors and how they were sliced, with those that its source's file had under
    another name alone: in ``part`` the two are one."""
    tensors, how = dict(tensors), dict(slices)
    for name, together in same_tensors(part).items():
        kept = next((n for n in together if n in tensors), None)
        if name not in tensors and kept is not None:
            tensors[name] = tensors[kept]
            if kept in how:
                how[name] = how[kept]
    return tensors, how
