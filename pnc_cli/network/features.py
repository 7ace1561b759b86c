"""What a frozen network says of images: its answers, and its features at some positions.

Nothing is kept here: images come in, a batch at a time, and what the network says of them goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import batches, normalize
from .finite import check_features
from .head import target_pre_logits
from .load import Network
from .position import INPUT, tensors_in
from .record import recording


def device_of(network: Network) -> torch.device:
    return next(network.model.parameters()).device


@dataclass(frozen=True)
class Answers:
    """Pre-logits (B, D) and logits (B, C)."""

    pre: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Seen:
    """What a network says of B images: features (B, ...) by position, and its answers."""

    features: dict[str, Tensor]
    answers: Answers


@contextmanager
def watching(
    network: Network, positions: Sequence[str] = (), classifier: Sequence[str] | None = None
) -> Iterator[Callable[[Tensor], Seen]]:
    """A function from images as ``network`` reads them (:func:`prepared`) to what it says of them.

    ``classifier`` names the modules that read the pre-logits (default: the network's; none: the
    logits stand for them).
    """
    heads = network.classifier if classifier is None else tuple(classifier)
    with recording(network.model, positions, heads) as seen:

        @torch.no_grad()
        def look(x: Tensor) -> Seen:
            logits = network.model(x)
            found = Answers(target_pre_logits(seen, heads, logits), logits)
            features = {p: seen[p] for p in positions}
            _check(network, x, features, found)
            return Seen(features, found)

        yield look


def _check(
    network: Network, x: Tensor, features: Mapping[str, Tensor], answers: Answers | None = None
) -> None:
    """Raises ``BadInput`` for what a network says of images ``x`` and is no number."""
    told = {f"features at '{position}'": t for position, t in features.items()}
    if answers is not None:
        told |= {"pre-logits": answers.pre, "logits": answers.logits}
    check_features(network.path, network.model, x, told)


class _Enough(Exception):
    """All that was asked for has been seen."""


@contextmanager
def glancing(
    network: Network, positions: Sequence[str]
) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """The same for features alone: the network runs no further than the last of ``positions``."""
    seen: dict[str, Tensor] = {}
    wanted = [p for p in dict.fromkeys(positions) if p != INPUT]

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, out: object) -> None:
            [seen[name]] = [t.clone() for t in tensors_in(out)]
            if len(seen) == len(wanted):
                raise _Enough

        return hook

    @torch.no_grad()
    def glance(x: Tensor) -> dict[str, Tensor]:
        seen.clear()
        if wanted:
            try:
                network.model(x)
            except _Enough:
                pass
        found = {**seen, **({INPUT: x} if INPUT in positions else {})}
        seen.clear()
        _check(network, x, found)
        return found

    with ExitStack() as hooks:
        for name in wanted:
            handle = network.model.get_submodule(name).register_forward_hook(keep(name))
            hooks.callback(handle.remove)
        yield glance


def prepared(network: Network, images: Tensor) -> Tensor:
    """uint8 ``images`` (B, C, H, W) as the network reads them, on its device."""
    return normalize(images.to(device_of(network)), network.ref.preprocessing)


def channels_last(network: Network) -> None:
    """Lays the weights of a network's convolutions out with their channels last, on the CPU, where
    that is what they are quickest with; what they put out is laid out alike.

    The numbers are the same, their order in memory is not; so answers may differ in their last bits.
    A network that then does not run, for it takes one order for granted, is left as it was.
    """
    if device_of(network).type != "cpu":
        return
    layers = [m for m in network.model.modules() if isinstance(m, nn.Conv2d)]
    _lay_out(layers, torch.channels_last)
    try:
        with torch.no_grad():
            network.model(torch.zeros(2, *network.input_size))
    except Exception:  # networks raise what they like
        _lay_out(layers, torch.contiguous_format)


def _lay_out(layers: Sequence[nn.Conv2d], order: torch.memory_format) -> None:
    for layer in layers:
        layer.weight.data = layer.weight.data.contiguous(memory_format=order)


def answers_of(network: Network, images: Tensor, batch: int = 64) -> Answers:
    """What ``network`` says of uint8 ``images`` (N, C, H, W), on the CPU."""
    pre, logits = [], []
    with watching(network) as look:
        for part in batches(len(images), batch):
            found = look(prepared(network, images[part])).answers
            pre.append(found.pre.cpu())
            logits.append(found.logits.cpu())
    return Answers(torch.cat(pre), torch.cat(logits))
