"""Training the target with new rows in its classifier, as the rivals do it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnc_cli.branch.refine import warm_cosine
from pnc_cli.data import batches, normalize
from pnc_cli.manifest import Preprocessing
from pnc_cli.network.load import Network

from .scenario import Skipped

BATCH = 50
SHIFT = 8  # images are shifted by at most an eighth of their size


class GrownHead(nn.Module):
    """The target's classifier with rows for the clone classes below its own."""

    def __init__(self, old: nn.Linear, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.old = old
        self.new = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.new.weight.copy_(weight)
            self.new.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.old(x), self.new(x)], dim=-1)


def grown(target: Network, weight: Tensor, bias: Tensor) -> nn.Module:
    """A copy of the target, frozen, whose classifier has new rows (K, D), (K,)."""
    model = copy.deepcopy(target.model)
    if len(target.classifier) != 1 or not isinstance(
        model.get_submodule(target.classifier[0]), nn.Linear
    ):
        raise Skipped("the target's classifier is not one linear layer")
    owner, _, leaf = target.classifier[0].rpartition(".")
    parent = model.get_submodule(owner)
    setattr(parent, leaf, GrownHead(getattr(parent, leaf), weight, bias))
    return model.requires_grad_(False)


def head_of(model: nn.Module) -> GrownHead:
    return next(m for m in model.modules() if isinstance(m, GrownHead))


def fit_rows(
    pre: Tensor, z_old: Tensor, label: Tensor, old: int, new: int, *, decay: float
) -> tuple[Tensor, Tensor]:
    """New rows (K, D), (K,) by cross-entropy over all classes, the old logits (N, old) as they are.

    ``pre`` (N, D) are the pre-logits.  Convex, solved by L-BFGS; ``decay`` is for features of unit
    variance.
    """
    centre, scale = pre.mean(0), pre.std(0).clamp(min=1e-6)
    x = (pre - centre) / scale
    weight = torch.zeros(new, x.shape[1], requires_grad=True)
    bias = torch.zeros(new, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        z = torch.cat([z_old, F.linear(x, weight, bias)], dim=1)
        value = F.cross_entropy(z, label) + 0.5 * decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        weight = weight / scale
        return weight, bias - weight @ centre


def fit(
    model: nn.Module,
    images: Tensor,
    label: Tensor,
    how: Preprocessing,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    learning_rate: float,
    epochs: int,
    seed: int,
    flip: bool,
    train_norms: bool,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Trains the parameters of ``model`` that require gradients.

    ``loss`` takes the batch (B, C, H, W), its logits and its labels.  ``train_norms`` lets
    batch normalisation use and move its statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    steps = epochs * math.ceil(len(label) / BATCH)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    model.train(train_norms)
    for _ in range(epochs):
        for index in torch.randperm(len(label), generator=generator).split(BATCH):
            if train_norms and len(index) == 1:
                continue
            x = normalize(shifted(images[index], generator, flip=flip), how)
            value = loss(x, model(x), label[index])
            if penalty is not None:
                value = value + penalty()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def shifted(images: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """uint8 (B, C, H, W), each image moved by a few pixels, and mirrored with chance 1/2."""
    b, _, h, w = images.shape
    reach = max(1, h // SHIFT)
    padded = F.pad(images.float(), (reach,) * 4, mode="reflect").to(torch.uint8)
    move = torch.randint(0, 2 * reach + 1, (2, b, 1), generator=generator)
    rows, columns = move[0] + torch.arange(h), move[1] + torch.arange(w)  # (B, H), (B, W)
    if flip:
        mirrored = torch.rand(b, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    picked = padded[torch.arange(b)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, how: Preprocessing) -> Tensor:
    """Logits (N, C) of uint8 ``images``."""
    return torch.cat([model(normalize(images[b], how)) for b in batches(len(images), 250)])
