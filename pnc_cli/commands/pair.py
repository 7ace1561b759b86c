"""What ``search`` and ``clone`` have in common: two networks, classes, and images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..report import Progress, Report
from . import options as o

if TYPE_CHECKING:
    from ..branch.task import Task


@dataclass(frozen=True)
class Request:
    """The shared arguments of ``search`` and ``clone``."""

    source: Path
    target: Path
    classes: list[str]
    data: str | None
    limit: int | None
    originals: bool
    skip_bad: bool
    seed: int
    device: str
    source_arch: str | None
    target_arch: str | None
    source_args: str | None
    target_args: str | None

    def load(self, report: Report, progress: Progress) -> Task:
        """Loads both networks and the images, and says on stderr what will be used."""
        from ..allocator import keep_freed_memory
        from ..branch.task import default_classes, gather, parse_classes
        from ..data import open_images
        from ..network.load import check_device, load_network

        keep_freed_memory()
        device = check_device(self.device)
        source = load_network(
            self.source,
            architecture=self.source_arch,
            what="--source-arch",
            device=device,
            model_args=o.model_args(self.source_args, "--source-args"),
        )
        target = load_network(
            self.target,
            architecture=self.target_arch,
            what="--target-arch",
            device=device,
            model_args=o.model_args(self.target_args, "--target-args"),
        )
        classes = parse_classes(self.classes or default_classes(source, target), source, target)
        task = gather(
            source,
            target,
            classes,
            open_images(self.data) if self.data else None,
            limit=self.limit,
            originals=self.originals,
            seed=self.seed,
            skip_bad=self.skip_bad,
            progress=progress,
        )
        report.note(
            f"source: {source.ref.architecture}, {len(source.labels)} classes ({self.source.name})"
        )
        report.note(
            f"target: {target.ref.architecture}, {len(target.labels)} classes ({self.target.name})"
        )
        report.note("clone classes: " + ", ".join(c.name for c in classes))
        if task.images is not None:
            new = int(task.is_new.sum())
            report.note(
                f"images: {new} of clone classes, {len(task.ids) - new} of {task.old} original classes"
            )
            if task.images.skipped:
                report.note(f"skipped {task.images.skipped} images that do not decode")
            if not task.old:
                report.note(
                    "no images of original classes: the clone is told from them by the networks' "
                    "evidence alone, which is weaker; a few images of each would help"
                )
        return task
