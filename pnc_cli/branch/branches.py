"""The branches of a patched model, by the names of their clones."""

from __future__ import annotations

import keyword
from collections.abc import ItemsView, Iterator, KeysView
from typing import Any

from torch import nn

PREFIX = "_clone_"  # no clone's name begins so


class Branches(nn.ModuleDict):
    """A ``nn.ModuleDict`` whose keys may be whatever a clone can be called.

    Names that cannot be attributes of a module (``train``, ``type``, ``keys``; ``class``) are
    ``_clone_train`` among the tensors' names, all others stand there as they are.
    """

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(_key(name))

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(_key(name), module)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(_key(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter([key.removeprefix(PREFIX) for key in list(self._modules)])

    def keys(self) -> KeysView[str]:
        return dict.fromkeys(self).keys()

    def items(self) -> ItemsView[str, Any]:
        # one look at what is there: another thread may take one off meanwhile
        return {k.removeprefix(PREFIX): m for k, m in list(self._modules.items())}.items()


def _key(name: str) -> str:
    """What the branch called ``name`` is among a module's attributes."""
    return PREFIX + name if keyword.iskeyword(name) or name in _TAKEN else name


_TAKEN = frozenset(dir(nn.ModuleDict())) | {"_modules"}
