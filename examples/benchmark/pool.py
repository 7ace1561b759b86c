"""Several image sources as one, as ``pnc_cli.data`` reads them."""

from __future__ import annotations

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

    def read(self, index: int) -> tuple[str, bytes | Image.Image | Exception]:
        source, i = self.items[index]
        return source.read(i)
