"""Every file that a command reads, remembered in one place: none of them is ever written to.

Whatever opens a file for reading tells it here (:func:`remember`), by whatever route it came to it:
named on the command line, beside a checkpoint, inside a data folder.  :class:`~.atomic.Outputs` asks
before anything is written, ``--force`` or not.  What is remembered lasts as long as one call of the
API (:func:`reading`): what one call wrote, the next may replace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Inputs:
    """The files that have been read so far."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self._paths: dict[str, None] = {}
        self._many: list[Callable[[], Iterable[str | Path]]] = []
        self.add(*paths)

    def add(self, *paths: str | Path) -> None:
        self._paths.update((os.fspath(p), None) for p in paths)

    def add_many(self, paths: Callable[[], Iterable[str | Path]]) -> None:
        """The files of a data set, listed only when a file that exists is about to be replaced."""
        self._many.append(paths)

    def __contains__(self, path: Path) -> bool:
        """Whether ``path`` is one of them, under this name or any other (links of both kinds)."""
        try:
            found = os.stat(path)
        except OSError:  # what is not there was not read
            return False
        many = (p for paths in self._many for p in paths())
        return any(_is(p, found) for p in chain(self._paths, many))


def _is(path: str | Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), found)
    except (OSError, ValueError):
        return False


_CURRENT: ContextVar[Inputs | None] = ContextVar("pnc_inputs", default=None)


def current() -> Inputs:
    """What the call that is running has read; nothing outside one."""
    return _CURRENT.get() or Inputs()


def remember(*paths: str | Path | None) -> None:
    """Notes that these files are read, or are what a file that is read is described by."""
    if (inputs := _CURRENT.get()) is not None:
        inputs.add(*(p for p in paths if p is not None))


def remember_many(paths: Callable[[], Iterable[str | Path]]) -> None:
    """The same of a data set's files: see :meth:`Inputs.add_many`."""
    if (inputs := _CURRENT.get()) is not None:
        inputs.add_many(paths)


@contextmanager
def reading() -> Iterator[Inputs]:
    """Within it all files that are read are remembered, those of calls inside it too."""
    outer = _CURRENT.get()
    if outer is not None:
        yield outer
        return
    inputs = Inputs()
    token = _CURRENT.set(inputs)
    try:
        yield inputs
    finally:
        _CURRENT.reset(token)


def one_reading(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as one call whose inputs are remembered: see :func:`reading`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with reading():
            return function(*args, **kwargs)

    return call
