"""Partial Network Cloning on timm checkpoint files (Ye, Liu and Wang, CVPR 2023).

What the ``pnc`` command does, as functions: see :mod:`pnc_cli.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import clone, eject, evaluate, info, inject, load, search

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "clone",
    "eject",
    "evaluate",
    "info",
    "inject",
    "load",
    "search",
]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are asked for: ``import pnc_cli`` costs next to nothing."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
