"""Several image sources as one, as ``pnc_cli.data`` reads them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from pnc_cli.data import ImageSource


class Pool:
    """A dataset over several sources; ``source`` is it as one ``ImageSource``."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.items = [(s, i) for s in sources for indices in s.by_class.values() for i in indices]
        by_class: dict[str, list[int]] = {}
        place = {(id(s), i): k for k, (s, i) in enumerate(self.items)}
        for s in sources:
            for label, indices in s.by_class.items():
                by_class.setdefault(label, []).extend(place[id(s), i] for i in indices)
        self.source = ImageSource("+".join(s.name for s in sources), by_class, self)

    def __getitem__(self, index: int) -> tuple[Image.Image, None]:
        source, i = self.items[index]
        data = source.read(i)[1]
        return (data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))), None
