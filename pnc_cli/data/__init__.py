"""Labelled images: which there are (``listing``, ``folders``, ``hub``), how they become tensors
(``reading``), and what becomes of folders and labels (``reconcile``)."""

from ..progress import Progress, no_progress
from .listing import (
    LEAST,
    PER_CLASS,
    TOGETHER,
    ImageSource,
    LeftOut,
    choose,
    images_per_class,
    open_images,
)
from .reading import (
    Images,
    batches,
    framed_like,
    load_images,
    normalize,
    read_images,
    spread,
)
from .reconcile import Reconciled, likely, reconcile

__all__ = [
    "LEAST",
    "PER_CLASS",
    "TOGETHER",
    "ImageSource",
    "Images",
    "LeftOut",
    "Progress",
    "Reconciled",
    "batches",
    "choose",
    "framed_like",
    "images_per_class",
    "likely",
    "load_images",
    "no_progress",
    "normalize",
    "open_images",
    "read_images",
    "reconcile",
    "spread",
]
