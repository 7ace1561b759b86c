"""A target with clones on top, as one ordinary module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.header import read_header
from ..clone_file import Clone, open_clone, verify_clone
from ..errors import BadInput
from ..manifest import Manifest, Preprocessing
from ..patch import check_fit, open_checkpoint
from .adapter import Adapter
from .branch import Module, layout_of, rebuild_module
from .build import Network, build_architecture, load_network, read_tensors
from .join import Join, from_tensors
from .modulation import PREFIX, fold
from .record import as_vector, recording


class Branch(nn.Module):
    """Reads the target's features at ``tap`` and answers for its clone classes."""

    def __init__(self, tap: str, adapter: Adapter, module: Module, join: Join) -> None:
        super().__init__()
        self.tap, self.adapter, self.module, self.join = tap, adapter, module, join

    def forward(self, features: Tensor, target_pre: Tensor, z_t: Tensor) -> Tensor:
        pre, z_b = self.module(self.adapter(features))
        return self.join(target_pre, pre, z_t, z_b)


class PatchedModel(nn.Module):
    """Images (B, C, H, W), preprocessed for the target -> logits (B, original + clone classes).

    The first ``target_classes`` logits are the target's own, bit for bit.  ``pretrained_cfg``
    is the target's, for ``timm.data.resolve_model_data_config``.
    """

    def __init__(
        self, target: Network, branches: dict[str, Branch], manifests: list[Manifest]
    ) -> None:
        super().__init__()
        labels = [*target.ref.label_names, *(label for m in manifests for label in m.labels)]
        self.manifests = manifests
        self.target = target.model
        self.branches = nn.ModuleDict(branches)
        self.classifier = target.classifier
        self.label_names = labels
        self.num_classes = len(labels)
        self.target_classes = target.ref.num_classes
        self.pretrained_cfg = {**target.model.pretrained_cfg, "num_classes": len(labels)}
        self.default_cfg = self.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        if not self.branches:
            return self.target(x)
        taps = {b.tap for b in self.branches.values()}
        with recording(self.target, taps, self.classifier) as seen:
            z_t = self.target(x)
        pre = target_pre_logits(seen, self.classifier, z_t)
        return torch.cat([z_t, *(b(seen[b.tap], pre, z_t) for b in self.branches.values())], dim=1)

    def clone_costs(self) -> list[dict[str, object]]:
        """What each clone adds, as its manifest says; shares are of the target's."""
        return [
            {
                "name": m.name,
                "classes": m.labels,
                "parameters": m.cost.parameters,
                "parameters_share": m.cost.parameters / max(m.cost.target_parameters, 1),
                "macs": m.cost.macs,
                "macs_share": m.cost.macs / max(m.cost.target_macs, 1),
                "bytes": m.cost.bytes,
            }
            for m in self.manifests
        ]


def target_pre_logits(seen: dict[str, Tensor], classifier: tuple[str, ...], z_t: Tensor) -> Tensor:
    """What the target's classifier read, (B, D); its logits where no classifier can be named."""
    vectors = [as_vector(seen[f"{n}:input"]) for n in classifier if f"{n}:input" in seen]
    return torch.cat(vectors, dim=1) if vectors else z_t


def load(
    target: str | Path,
    clones: Sequence[str | Path] = (),
    *,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    device: str = "cpu",
) -> PatchedModel:
    """A patched checkpoint, or a target with ``clones`` on top, as an eval-mode ``nn.Module``.

    ``architecture`` and ``model_args`` say what the target is where its file does not.  Nothing is
    written.  The module has ``label_names``, ``num_classes`` and ``pretrained_cfg``:

        model = pnc_cli.load("patched.safetensors")
        config = timm.data.resolve_model_data_config(model)
        transform = timm.data.create_transform(**config)

    Raises ``pnc_cli.errors.PncError`` as the commands do.
    """
    target = Path(target)
    checkpoint = open_checkpoint(target)
    network = load_network(target, architecture=architecture, model_args=model_args)
    extra = [open_clone(Path(p)) for p in clones]
    check_fit(checkpoint, extra, network.digests)
    every = [*checkpoint.clones, *extra]
    branches = {}
    for clone in every:
        verify_clone(clone)
        branches[clone.name] = _branch(clone)
    manifests = [c.manifest for c in every]
    return PatchedModel(network, branches, manifests).eval().requires_grad_(False).to(device)


def _branch(clone: Clone) -> Branch:
    m: Manifest = clone.manifest
    header = read_header(clone.path)
    entries = {n: header.tensors[clone.prefix + n] for n in clone.tensors}
    tensors = read_tensors(clone.path, header, entries)
    part = {g: {n.removeprefix(g + "."): t for n, t in tensors.items() if n.startswith(g + ".")}
            for g in ("adapter", "module", "join")}  # fmt: skip
    if sum(map(len, part.values())) != len(tensors):
        raise BadInput(
            f"{clone.path}: clone '{clone.name}' has tensors that belong to no part of it"
        )
    module = rebuild_module(build_architecture(m.source), m, part["module"])
    adapter = Adapter(layout_of(m.tap), layout_of(m.cut), m.adapter.kernel)
    modulation = {n: part["adapter"].pop(PREFIX + n) for n in
                  [n.removeprefix(PREFIX) for n in part["adapter"] if n.startswith(PREFIX)]}  # fmt: skip
    try:
        adapter.load_state_dict(part["adapter"])
        fold(module.part, modulation)
        join = from_tensors(m.join.kind, part["join"], len(m.classes))
    except (RuntimeError, KeyError, ValueError) as e:
        raise BadInput(f"{clone.path}: clone '{clone.name}': {e}") from None
    return Branch(m.tap.position, adapter, module, join)


def preprocessing_of(model: PatchedModel) -> Preprocessing:
    """How images are prepared for ``model``."""
    return Preprocessing(**{k: model.pretrained_cfg[k] for k in Preprocessing.__struct_fields__})
