"""Recording what modules output (or are given) while a network runs, by forward hooks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .position import INPUT, tensors_in


@contextmanager
def recording(
    model: nn.Module, outputs: Iterable[str] = (), inputs: Iterable[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that each forward pass fills.

    It maps the name of each module of ``outputs`` to the one tensor it returned (``"input"`` to
    what the network is given), and ``"<name>:input"`` for each of ``inputs`` to its first argument.
    Values are copies: later layers may work in place.  Passes of other threads fill it too: a
    network that several use is recorded by a :class:`Recorder`.
    """
    recorded: dict[str, Tensor] = {}
    handles = []

    def keep_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, out: object) -> None:
            [recorded[name]] = [t.clone() for t in tensors_in(out)]

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            recorded[name] = args[0].clone()

        return hook

    try:
        for name in outputs:
            if name == INPUT:
                handles.append(model.register_forward_pre_hook(keep_input(INPUT)))
            else:
                handles.append(model.get_submodule(name).register_forward_hook(keep_output(name)))
        for name in inputs:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(keep_input(f"{name}:input")))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


Record = dict[str, Tensor | None]  # None: was not seen yet


class _Pass:
    """The innermost pass that is recorded: whose it is, and what it writes to."""

    running: tuple[Recorder, Record] | None = None


class _PassOfThread(_Pass, threading.local):
    pass


_HERE = _PassOfThread()
# While a compiler traces there is one pass alone, and nothing of it is left when the code runs.
_TRACED = _Pass()


def _here() -> _Pass:
    return _TRACED if torch.compiler.is_dynamo_compiling() else _HERE


class Recorder:
    """Records what modules of a network do, in any number of threads at once.

    Its hooks are put on once, and stay; each forward pass has a record of its own, in its thread.
    Without a record they do nothing.  A copy of a network has a recorder of its own.
    """

    def listen(
        self, model: nn.Module, outputs: Iterable[str] = (), inputs: Iterable[str] = ()
    ) -> None:
        """Puts the hooks on ``model``, for the names that :func:`recording` has."""
        for name in outputs:
            if name == INPUT:
                model.register_forward_pre_hook(_KeepInput(self, INPUT))
            else:
                model.get_submodule(name).register_forward_hook(_KeepOutput(self, name))
        for name in inputs:
            key = f"{name}:input"
            model.get_submodule(name).register_forward_pre_hook(_KeepInput(self, key))

    def run(
        self, model: nn.Module, x: Tensor, names: Iterable[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``model`` makes of ``x``, and what was seen of ``names``, as :func:`recording` has it."""
        record: Record = dict.fromkeys(names)
        here = _here()
        before, here.running = here.running, (self, record)
        try:
            z = model(x)
        finally:
            here.running = before
        return z, {name: t for name, t in record.items() if t is not None}


class _Keep:
    """A hook that knows whose it is: unlike a closure it can be copied and pickled with its network."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def wanted(self) -> Record | None:
        """The record of the pass that runs here, if it is ours and asks for the name."""
        running = _here().running
        if running is None or running[0] is not self.recorder or self.name not in running[1]:
            return None
        return running[1]


class _KeepOutput(_Keep):
    def __call__(self, module: nn.Module, args: tuple, out: object) -> None:
        if (record := self.wanted()) is not None:
            [record[self.name]] = [t.clone() for t in tensors_in(out)]


class _KeepInput(_Keep):
    def __call__(self, module: nn.Module, args: tuple) -> None:
        if (record := self.wanted()) is not None:
            record[self.name] = args[0].clone()
