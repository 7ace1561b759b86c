"""Images as tensors.

They become uint8 tensors by timm's own evaluation transforms, one per network that looks at them;
:func:`normalize` finishes the job on a batch, bit for bit as timm would.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from msgspec.structs import replace
from PIL import Image, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

from ..errors import BadInput, Incompatible, in_words
from ..manifest import Preprocessing
from ..progress import Progress, no_progress
from .bounds import BYTES_TOGETHER, PIXELS_TOGETHER, Allowance, check_pixels, is_out_of_memory
from .listing import ImageSource

CHUNK = 256  # images are decoded at a time, fewer where they have more than
CHUNK_BYTES = 64 * 3 * 224 * 224  # of pixels together: networks run on a chunk as it is
Undecoded = tuple[str, bytes | Image.Image | Exception]  # name, and what there is of the image
FORMATS = "PNG JPEG WEBP BMP DIB TIFF GIF PPM TGA ICO JPEG2000 AVIF".split()  # MPO is read as JPEG
AHEAD = 2  # chunks are decoded while the caller works on one


@dataclass(frozen=True)
class Images:
    """N images as uint8 tensors (M, C, H, W), one per view, and their labels.

    The images are the ``rows`` (N,) of the views, or all of them: a part of many images
    (:meth:`part`) shares their pixels.
    """

    views: list[Tensor]
    labels: list[str]
    skipped: int = 0
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor, view: int = 0) -> Tensor:
        """(n, C, H, W): the images ``index`` (n,) as one view shows them."""
        return self.views[view][index if self.rows is None else self.rows[index]]

    def part(self, index: Tensor) -> Images:
        """The images ``index`` (n,)."""
        rows = index if self.rows is None else self.rows[index]
        return Images(self.views, [self.labels[i] for i in index.tolist()], rows=rows)


def load_images(
    source: ImageSource,
    chosen: dict[str, list[int]],
    views: Sequence[Preprocessing],
    *,
    skip_bad: bool = False,
    progress: Progress = no_progress,
) -> Images:
    """Decodes images, in the order chosen, into one uint8 tensor a view.

    Equal views share one tensor.  Raises ``BadInput`` naming an image that does not decode,
    unless ``skip_bad``.
    """
    wanted = sum(map(len, chosen.values()))
    tensors = {_key(v): torch.empty((wanted, *v.input_size), dtype=torch.uint8) for v in views}
    labels: list[str] = []
    skipped = 0
    for part in read_images(source, chosen, views, skip_bad=skip_bad, progress=progress):
        for how, images in zip(views, part.views):
            tensors[_key(how)][len(labels) : len(labels) + len(part)] = images
        labels += part.labels
        skipped += part.skipped
    tensors = {key: images[: len(labels)] for key, images in tensors.items()}
    return Images([tensors[_key(v)] for v in views], labels, skipped)


def read_images(
    source: ImageSource,
    chosen: dict[str, list[int]],
    views: Sequence[Preprocessing],
    *,
    skip_bad: bool = False,
    progress: Progress = no_progress,
    what: str = "reading images",
) -> Iterator[Images]:
    """What :func:`load_images` gives, a few images at a time, read as they are asked for.

    They are at most ``CHUNK``, and ``CHUNK_BYTES`` of pixels or one image.  While the caller works
    on them the next are decoded, ``AHEAD`` times as many.  How much is decoded at a time is bounded
    too, whatever the images (:mod:`.bounds`).  Raises ``MemoryError`` where the machine has too little:
    that is no fault of an image's.
    """
    distinct = {_key(v): v for v in views}
    transforms = [_transform(v) for v in distinct.values()]
    allowance = Allowance(PIXELS_TOGETHER)

    def decode(item: Undecoded) -> list[Tensor] | Exception:
        name, data = item
        try:
            if isinstance(data, Exception):
                raise data
            image = data if isinstance(data, Image.Image) else _opened(data)
            with allowance.of(check_pixels(name, image)):
                return [t(image) for t in transforms]
        except BadInput as e:
            return e
        except Exception as e:  # Pillow's decoders raise nearly anything on broken files
            if is_out_of_memory(e):
                raise MemoryError(f"{name}: {e or 'no memory is left'}") from e
            return BadInput(
                f"{name}: does not decode as an image: {_why(e, data)}",
                hint="remove it, or give --skip-bad to go on without it",
            )

    wanted = [(label, i) for label, indices in chosen.items() for i in indices]

    def read(part: slice) -> Images:
        decoded: list[list[Tensor] | Exception] = []
        for items in _read(source, [i for _, i in wanted[part]]):
            decoded += pool.map(decode, items)
        if bad := [d for d in decoded if isinstance(d, Exception)]:
            if not skip_bad:
                raise bad[0]
        pairs = zip(wanted[part], decoded)
        good = [(label, d) for (label, _), d in pairs if not isinstance(d, Exception)]
        tensors = {
            key: _stack([d[n] for _, d in good], view)
            for n, (key, view) in enumerate(distinct.items())
        }
        return Images([tensors[_key(v)] for v in views], [label for label, _ in good], len(bad))

    parts = batches(len(wanted), _together(distinct.values()))
    found = 0
    with ThreadPoolExecutor() as pool, closing(_ahead(read, parts)) as chunks:
        for part, images in chunks:
            progress(what, part.start, len(wanted))
            found += len(images.result())
            yield images.result()
    progress(what, len(wanted), len(wanted))
    if not found:
        raise BadInput(
            f"{source.name}: no image could be read",
            hint="are the folder names the classes' labels?",
        )


def _read(source: ImageSource, indices: Iterable[int]) -> Iterator[list[Undecoded]]:
    """The images ``indices``, undecoded, as many at a time as may be held."""
    items, held = [], 0
    for i in indices:
        name, data = source.read(i)
        items.append((name, data))
        held += len(data) if isinstance(data, bytes) else 0
        if held > BYTES_TOGETHER:
            yield items
            items, held = [], 0
    yield items


def _opened(data: bytes) -> Image.Image:
    """The image in ``data``, of one of ``FORMATS``, whatever its file is called: Pillow would try every
    format it has, among them those that start another program (EPS starts Ghostscript)."""
    return Image.open(io.BytesIO(data), formats=_formats())


@cache
def _formats() -> list[str]:
    """Those of ``FORMATS`` that this Pillow has: asked for another it fails on every file."""
    Image.init()
    return [f for f in FORMATS if f in Image.OPEN]


def _why(error: Exception, data: bytes | Image.Image | Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # it names an object of ours
        return "the file is empty" if data == b"" else "no kind of image that Pillow knows"
    return in_words(error)


def _together(views: Iterable[Preprocessing]) -> int:
    """How many images, each seen in all ``views``, make a chunk."""
    each = sum(math.prod(v.input_size) for v in views)
    return min(CHUNK, max(1, CHUNK_BYTES // each))


def _ahead(
    read: Callable[[slice], Images], parts: Iterable[slice]
) -> Generator[tuple[slice, Future[Images]], None, None]:
    """Each of ``parts`` and what ``read`` will have made of it, one after another in a thread beside
    the caller's; no more than ``AHEAD`` are begun before they are asked for."""
    waiting: deque[tuple[slice, Future[Images]]] = deque()
    with ThreadPoolExecutor(1) as beside:
        try:
            for part in parts:
                waiting.append((part, beside.submit(read, part)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def normalize(images: Tensor, how: Preprocessing) -> Tensor:
    """uint8 (B, C, H, W) -> the network's input, with the very operations timm's transform uses."""
    mean = torch.tensor(how.mean, device=images.device)[:, None, None]
    std = torch.tensor(how.std, device=images.device)[:, None, None]
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def framed_like(view: Preprocessing, frame: Preprocessing) -> Preprocessing:
    """``view`` cut out of the image as ``frame`` is: two networks then look at the same thing."""
    if view.input_size[1:] == frame.input_size[1:] and view.input_size[0] == frame.input_size[0]:
        # same size: the very same pixels, so that only the normalisation differs
        return replace(frame, mean=view.mean, std=view.std)
    return replace(view, crop_pct=frame.crop_pct, crop_mode=frame.crop_mode)


def batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def spread(count: int, wanted: int) -> Tensor:
    """Indices of ``wanted`` of ``count`` things in a row (at most all of them), evenly drawn."""
    return torch.linspace(0, count - 1, min(wanted, count)).round().long()


def _stack(images: list[Tensor], view: Preprocessing) -> Tensor:
    if not images:
        return torch.empty((0, *view.input_size), dtype=torch.uint8)
    # by numpy: torch would have every thread of the pool start threads of its own
    return torch.from_numpy(np.stack([i.numpy() for i in images]))


def _key(v: Preprocessing) -> tuple[object, ...]:
    return tuple(v.input_size), v.interpolation, v.crop_pct, v.crop_mode


def _transform(how: Preprocessing) -> Callable[[Image.Image], Tensor]:
    channels, height, width = how.input_size
    if channels not in (1, 3):
        raise Incompatible(f"images have 1 or 3 channels, this network reads {channels}")
    transform = create_transform(
        (channels, height, width),
        is_training=False,
        interpolation=how.interpolation,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        normalize=False,
    )
    mode = "RGB" if channels == 3 else "L"
    return lambda image: transform(image.convert(mode))
