"""A target with clones on top, as one ordinary module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..channels.groups import prunable_groups, shrink_graph, what_stays
from ..data import Images, ImageSource, Reconciled, normalize, reconcile
from ..errors import BadInput, UsageError, in_words
from ..files.clone_file import Clone, open_clone, verify_clone
from ..files.forms import is_counter
from ..files.header import read_header
from ..files.opened import open_checkpoint
from ..files.patch import check_fit
from ..manifest import Features, Manifest, ModuleTensor, Preprocessing
from ..network.fitting import same_tensors
from ..network.graph import trace
from ..network.head import classifier_names, find_head, target_pre_logits
from ..network.load import Network, build_architecture, check_device, load_network
from ..network.part import Module, _part, resize
from ..network.record import recording
from ..network.tensors import read_tensors
from ..progress import Note, no_note
from .adapter import Adapter
from .compensation import Compensation
from .join import Join, from_tensors

MIRROR = "mirror"  # what can be averaged over at test time


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
        nothing = z_t.new_zeros(len(z_t), self.classes)
        return self.join(target_pre, target_pre[:, :0], z_t, nothing)


def _mean(views: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape; of one alone its very bits."""
    return views[0] if len(views) == 1 else torch.stack(list(views)).mean(0)


class PatchedModel(nn.Module):
    """Images (B, C, H, W), preprocessed for the target -> logits (B, original + clone classes).

    The first ``target_classes`` logits are the target's own, bit for bit.  ``pretrained_cfg``
    is the target's, for ``timm.data.resolve_model_data_config``.

    With ``tta`` "mirror" the clones' logits are of each image and its mirror image: pre-logits and
    the branches' logits are averaged before they are joined, at the cost of a second pass of target
    and branches.  The target's logits stay those of the image as it is.  In training mode, where
    a second pass would move statistics and random numbers, it does nothing.
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
        labels = [*target.ref.label_names, *(label for m in manifests for label in m.labels)]
        config: dict[str, Any] = vars(target.model)["pretrained_cfg"]
        self.manifests = manifests
        self.tta = tta
        self.target = target.model
        self.branches = nn.ModuleDict(branches)
        self.classifier = target.classifier
        self.label_names = labels
        self.num_classes = len(labels)
        self.target_classes = target.ref.num_classes
        self.pretrained_cfg: dict[str, Any] = {**config, "num_classes": len(labels)}
        self.default_cfg = self.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        if not self.branches:
            return self.target(x)
        branches = [cast(Branch | HeadOnly, b) for b in self.branches.values()]
        taps = {tap for b in branches for tap in b.taps}
        # the image as it is comes last: that is what hooks of others on the target keep
        mirrored = [x.flip(-1)] if self.tta == MIRROR and not self.training else []
        views = [self._view(images, taps) for images in (*mirrored, x)]
        z_t = views[-1].z
        return torch.cat([z_t, *(b(views, z_t) for b in branches)], dim=1)

    def _view(self, x: Tensor, taps: set[str]) -> View:
        with recording(self.target, taps, self.classifier) as seen:
            z = self.target(x)
        return View(seen, target_pre_logits(seen, self.classifier, z), z)


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
    header = read_header(clone.path)
    entries = {n: header.tensors[clone.prefix + n] for n in clone.tensors}
    tensors = read_tensors(clone.path, header, entries)
    part = {
        g: {n.removeprefix(g + "."): t for n, t in tensors.items() if n.startswith(g + ".")}
        for g in ("adapter", "module", "join")
    }
    if sum(map(len, part.values())) != len(tensors):
        raise BadInput(
            f"{clone.path}: clone '{clone.name}' has tensors that belong to no part of it"
        )
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
    logits = model(normalize(images.views[0].to(device), how)).cpu()
    return logits, torch.tensor([number[n] for n in images.labels])


def rebuild_module(
    source: nn.Module, manifest: Manifest, cut: Features, tensors: dict[str, Tensor]
) -> Module:
    """The module of a clone file, cut at ``cut``, on the untrained architecture ``source``.

    Raises ``BadInput`` when the tensors are not those the cut architecture needs.
    """
    tr = trace(source, manifest.source.preprocessing.input_size)
    head = find_head(tr, classifier_names(source))
    part = _part(tr, tr.position(cut.position), head)
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
    if any(name.rpartition(".")[0] not in classifier_names(source) for name, _ in kept):
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
