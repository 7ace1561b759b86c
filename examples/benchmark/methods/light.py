"""Tuning with few parameters: LoRA, kernel modulation, visual prompts.

The target's weights and batch statistics are frozen; old rows of the classifier too.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from ..problem import Problem
from ..scenario import Skipped
from ..training import fit, grown, head_of
from .base import Made, Method, Settings, first_rows, tuned
from .tuning import shipped_apart

RATES = [{"learning_rate": r} for r in (1e-3, 3e-3, 1e-2)]  # three times as much breaks LoRA
HIGHER = [{"learning_rate": r} for r in (3e-3, 1e-2, 3e-2)]
RANK = 8
SHARE = 0.014  # of the network's parameters, for kernel modulation
PROMPTS = 10


def lora(problem: Problem, known: Settings | None) -> Made:
    """Low-rank updates of convolutions and linear layers (of a transformer: qkv and proj), by peft."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise Skipped("peft is not installed: pip install peft") from None

    def make(problem: Problem, index: Tensor, settings: Settings) -> Made:
        model = grown(problem.target, *first_rows(problem, index))
        places = [
            n
            for n, m in model.named_modules()
            if (isinstance(m, nn.Conv2d) and m.groups == 1 or isinstance(m, nn.Linear))
            and not n.startswith(problem.target.classifier[0])
            and (not isinstance(model, VisionTransformer) or n.endswith((".qkv", ".proj")))
        ]
        torch.manual_seed(problem.seed)
        wrapped = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=places)
        )
        extra = {n: p for n, p in wrapped.named_parameters() if "lora_" in n}
        train_some(problem, wrapped, [*extra.values()], index, settings)
        merged = copy.deepcopy(wrapped).merge_and_unload()
        return shipped_apart(problem, merged, list(extra.values()), wrapped.unload)

    return tuned(problem, known, RATES, make)


class Modulator(nn.Module):
    """A kernel W (out, in, ...) becomes W * (1 + B A): B (out, r) and A (r, in) are learned.

    After Hu and Liu, "Kernel Modulation" (ICPR 2022): small task-specific modulators adapt every
    kernel of a frozen network.  The form is ours; the share of parameters is theirs.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        out, into = weight.shape[:2]
        rank = max(1, round(SHARE * weight.numel() / (out + into)))
        self.b = nn.Parameter(torch.zeros(out, rank))
        self.a = nn.Parameter(torch.randn(rank, into) * rank**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        scale = 1 + self.b @ self.a
        return weight * scale.reshape(*scale.shape, *[1] * (weight.ndim - 2))


class Modulated(nn.Module):
    """``model``, which stays as it is, run with modulated kernels of all its convolutions and
    linear layers but the classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        head = head_of(model)
        self.model = model
        self.names = [
            n
            for n, m in model.named_modules()
            if isinstance(m, (nn.Conv2d, nn.Linear)) and m not in (head.old, head.new)
        ]
        self.modulators = nn.ModuleList(
            Modulator(model.get_submodule(n).weight) for n in self.names
        )

    def kernels(self) -> dict[str, Tensor]:
        return {
            f"{n}.weight": m(self.model.get_submodule(n).weight)
            for n, m in zip(self.names, self.modulators)
        }

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.model, self.kernels(), (x,))

    def merged(self) -> nn.Module:
        merged = copy.deepcopy(self.model)
        merged.load_state_dict(self.kernels(), strict=False)
        return merged


def modulation(problem: Problem, known: Settings | None) -> Made:
    """Kernel modulation of every convolution and linear layer."""

    def make(problem: Problem, index: Tensor, settings: Settings) -> Made:
        torch.manual_seed(problem.seed)
        model = Modulated(grown(problem.target, *first_rows(problem, index)))
        extra = list(model.modulators.parameters())
        train_some(problem, model, extra, index, settings)
        return shipped_apart(problem, model.merged(), extra, lambda: model.model)

    return tuned(problem, known, HIGHER, make)


class Prompted(nn.Module):
    """A vision transformer that reads learned tokens beside its patches (Jia et al., ECCV 2022)."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model, at = model, model.num_prefix_tokens
        self.prompts = nn.Parameter(torch.randn(PROMPTS, model.embed_dim) * 0.02)

        def put_in(module, args):
            x = args[0]
            return (torch.cat([x[:, :at], self.prompts.expand(len(x), -1, -1), x[:, at:]], dim=1),)

        def take_out(module, args, x):
            return torch.cat([x[:, :at], x[:, at + PROMPTS :]], dim=1)

        self.hooks = [
            model.blocks.register_forward_pre_hook(put_in),
            model.blocks.register_forward_hook(take_out),
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def without(self) -> nn.Module:
        for hook in self.hooks:
            hook.remove()
        return self.model


def prompts(problem: Problem, known: Settings | None) -> Made:
    """Visual prompt tuning, shallow."""
    if not isinstance(problem.target.model, VisionTransformer):
        raise Skipped("the target is not a vision transformer")

    def make(problem: Problem, index: Tensor, settings: Settings) -> Made:
        torch.manual_seed(problem.seed)
        model = Prompted(grown(problem.target, *first_rows(problem, index)))
        train_some(problem, model, [model.prompts], index, settings)
        cost = macs(model, problem) - macs(problem.target.model, problem)
        return shipped_apart(problem, model, [model.prompts], model.without, cost)

    return tuned(problem, known, HIGHER, make)


def macs(model: nn.Module, problem: Problem) -> int:
    """Multiply-accumulates of one image, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *problem.target.input_size))
    return counter.get_total_flops() // 2


def train_some(
    problem: Problem, model: nn.Module, extra: list[Tensor], index: Tensor, settings
) -> None:
    """Trains ``extra`` and the new rows by cross-entropy over all classes."""
    model.requires_grad_(False)
    for p in [*extra, *head_of(model).new.parameters()]:
        p.requires_grad_(True)
    few = problem.few
    fit(
        model,
        few.target,
        few.label,
        index,
        problem.target.ref.preprocessing,
        lambda x, z, y: F.cross_entropy(z, y),
        seed=problem.seed,
        flip=problem.scenario.flip,
        train_norms=False,
        **settings,
    )
    model.requires_grad_(False)


METHODS = [
    Method("LoRA", lora, "tuning"),
    Method("kernel modulation", modulation, "tuning"),
    Method("visual prompts", prompts, "tuning"),
]
