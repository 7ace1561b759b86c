"""``hfds/NAME``: images that Hugging Face's ``datasets`` reads, a folder, parquet files, or a
data set by name, which that package fetches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import BadInput, UsageError
from ..files.bounded import read_bounded
from .bounds import MAX_FILE

SAFE = 4  # since then the package runs no code that lies in a data set


@dataclass(frozen=True)
class Rows:
    """Images of a table's column."""

    name: str
    table: Any  # a ``datasets.Dataset`` with undecoded images
    column: str

    def read(self, index: int) -> tuple[str, bytes | Image.Image | Exception]:
        name = f"{self.name}[{index}]"
        try:
            image = self.table[index][self.column]
            if image is None:
                return name, ValueError("the row has no image")
            if image.get("path"):
                name = f"{self.name}:{Path(image['path']).name}"
            data = image.get("bytes")
            return name, read_bounded(Path(image["path"]), MAX_FILE) if data is None else data
        except Exception as e:  # a file that is gone, a broken table
            return name, e


def open_hub(name: str, split: str | None) -> tuple[dict[str, list[int]], Rows, str]:
    """Rows by class, where they are read from, and the split that they are of.

    Raises ``UsageError`` where ``datasets`` is missing or several splits are there and none is
    chosen, ``BadInput`` for what it cannot read as labelled images.
    """
    datasets = _package(name)
    how: dict[str, Any] = {"path": name}
    if (path := Path(name)).is_file():
        how = {"path": path.suffix.lstrip(".").lower() or "parquet", "data_files": str(path)}
    with quiet(datasets):
        try:
            splits = [str(s) for s in datasets.get_dataset_split_names(**how)]
            chosen = _split(name, splits, split)
            table = datasets.load_dataset(**how, split=chosen)
        except (UsageError, BadInput):
            raise
        except Exception as e:  # its readers are many, each with its own errors
            first = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise BadInput(
                f"hfds/{name}: datasets cannot read it: {first}",
                hint="hfds/ takes a folder of images or parquet files, or a data set's name",
            ) from e
        image, label = _columns(name, table, datasets)
        table = table.cast_column(image, datasets.Image(decode=False))
        by_class = _by_class(table, label, datasets)
    return by_class, Rows(f"hfds/{name}", table, image), chosen


def _package(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"hfds/{name}: needs the package 'datasets', which is not installed",
            hint=f"pip install 'datasets>={SAFE}'",
        ) from None
    if int(datasets.__version__.partition(".")[0]) < SAFE:
        raise UsageError(
            f"hfds/{name}: datasets {datasets.__version__} runs code that lies in data sets",
            hint=f"pip install 'datasets>={SAFE}'",
        )
    return datasets


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Without the package's bars and messages, which are not ours to print."""
    bars = datasets.are_progress_bars_disabled()
    level, disabled = datasets.logging.get_verbosity(), logging.root.manager.disable
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _split(name: str, splits: Sequence[str], asked: str | None) -> str:
    """The split to read: which one of several is not to be guessed."""
    known = ", ".join(splits)
    if asked is None:
        if len(splits) == 1:
            return splits[0]
        raise UsageError(
            f"hfds/{name}: has the splits {known}: which one is meant?",
            hint=f"--split {splits[0]}" if splits else None,
        )
    if asked.partition("[")[0] not in splits:  # train[:50%] is a part of one
        raise UsageError(
            f"hfds/{name}: has no split '{asked}', but {known}", hint=f"--split {splits[0]}"
        )
    return asked


def _columns(name: str, table: Any, datasets: Any) -> tuple[str, str]:
    """The columns of images and of labels."""
    features = table.features
    images = [c for c, f in features.items() if isinstance(f, datasets.Image)]
    labels = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    for column in ("label", "labels", "class"):
        if len(labels) != 1 and column in features:
            labels = [column]
            break
    for what, found in (("of images", images), ("'label' of classes", labels)):
        if len(found) != 1:
            listed = ", ".join(f"{c} ({type(f).__name__})" for c, f in features.items())
            raise BadInput(
                f"hfds/{name}: {len(found) or 'no'} columns {what}; its columns are: {listed}",
                hint="expected one column of images and one called 'label'",
            )
    return images[0], labels[0]


def _by_class(table: Any, label: str, datasets: Any) -> dict[str, list[int]]:
    feature = table.features[label]
    by_class: dict[str, list[int]] = {}
    named = isinstance(feature, datasets.ClassLabel)
    for i, value in enumerate(table[label]):
        if value is None or (named and value < 0):  # a split without labels
            continue
        name = feature.int2str(value) if named else str(value)
        by_class.setdefault(str(name), []).append(i)
    return by_class
