"""Training the target with new rows in its classifier, as the rivals do it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnc_cli.branch.refine import warm_cosine
from pnc_cli.data import batches, normalize
from pnc_cli.manifest import Preprocessing
from pnc_cli.network.load import Network

from .scenario import Skipped

SHIFT = 8  # images are shifted by at most an eighth of their size

# The budget of a rival that is trained, in steps of the optimiser (README.md, "The rivals' budget").
WORK = 1e12  # multiply-accumulates of training: about 40 CPU seconds on small networks
FEWEST, MOST = 500, 1000  # steps that it is at least and at most
TRAINING = 3  # forward passes that the training of an image costs: forward, and twice that back

# Images that are run together: as many pixels as memory holds, whatever the images' size.
PIXELS = 800_000  # of a training batch
LARGEST, SMALLEST = 50, 16  # images of one
ANSWERED = 4  # times as many where no gradients are kept

Rows = tuple[Tensor, Tensor]  # of a classifier: weight (K, D) and bias (K,)


def batch_of(height: int, width: int) -> int:
    """Images of a training batch: 50 of 32 x 32 pixels, 16 of 224 x 224."""
    return min(LARGEST, max(SMALLEST, PIXELS // (height * width)))


def affordable(macs: int, height: int, width: int) -> int:
    """Steps that ``WORK`` pays for, of a network of ``macs`` an image; no fewest and no most."""
    return max(1, round(WORK / (TRAINING * batch_of(height, width) * macs)))


def budget(macs: int, height: int, width: int) -> int:
    """The most steps that a rival may take."""
    return min(MOST, max(FEWEST, affordable(macs, height, width)))


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
    pre: Tensor, z_old: Tensor, label: Tensor, rows: int, *, decay: float, start: Rows | None = None
) -> Rows:
    """Rows (K, D), (K,) by cross-entropy over [the classes of ``z_old`` (N, old), as they are, the
    K classes of the rows]; without columns in ``z_old`` over those of the rows alone.

    ``pre`` (N, D) are the pre-logits.  Convex, solved by L-BFGS, from the solution ``start`` where
    one is near; ``decay`` is for features of unit variance.
    """
    centre, scale = pre.mean(0), pre.std(0).clamp(min=1e-6)
    x = (pre - centre) / scale
    weight, bias = torch.zeros(rows, x.shape[1]), torch.zeros(rows)
    if start is not None:
        weight, bias = start[0] * scale, start[1] + start[0] @ centre
    weight.requires_grad_(True), bias.requires_grad_(True)
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
    index: Tensor,
    how: Preprocessing,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    learning_rate: float,
    steps: int,
    seed: int,
    flip: bool,
    train_norms: bool,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Trains the parameters of ``model`` that require gradients on ``images[index]``.

    ``loss`` takes the batch (B, C, H, W), its logits and its labels.  ``train_norms`` lets
    batch normalisation use and move its statistics.  Channels-last, which is a fifth to a third
    faster on a CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    model.train(train_norms).to(memory_format=torch.channels_last)
    for drawn in drawings(len(index), steps, batch_of(*images.shape[2:]), generator):
        picked = index[drawn]
        x = normalize(shifted(images[picked], generator, flip=flip), how)
        x = x.contiguous(memory_format=torch.channels_last)
        value = loss(x, model(x), label[picked])
        if penalty is not None:
            value = value + penalty()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def drawings(count: int, steps: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of indices below ``count``, ``steps`` of them: pass after pass, each in a new order.

    What is left over of a pass and too little to tell its statistics (under half a batch) is left
    out, but where it is the whole of it.
    """
    made = 0
    while made < steps:
        for drawn in torch.randperm(count, generator=generator).split(batch):
            if made < steps and (2 * len(drawn) >= min(batch, count)):
                made += 1
                yield drawn


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
    together = ANSWERED * batch_of(*images.shape[2:])
    return torch.cat([model(normalize(images[b], how)) for b in batches(len(images), together)])
