"""Partial Network Cloning on timm checkpoint files (Ye, Liu and Wang, CVPR 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from .branch.patched import load


def __getattr__(name: str):
    """``pnc_cli.load`` without importing torch for those who only want the file tools."""
    if name == "load":
        from .branch.patched import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
