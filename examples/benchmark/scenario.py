"""Scenarios: small JSON files that say which checkpoints, images and classes a run is about.

Paths may begin with ``{data}`` (``--data``) or ``{cache}`` (``--cache``, where the harness keeps
what it makes itself); others are relative to the scenario file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

BUILT_IN = Path(__file__).parent / "scenarios"


class Skipped(Exception):
    """A scenario or a row that cannot be run here, and why."""


@dataclass(frozen=True)
class Source:
    """A source and the classes to clone from it, as ``pnc clone --classes`` takes them."""

    checkpoint: str
    classes: list[str]
    input_size: list[int] | None = None  # the resolution to use it at, if not the checkpoint's own


@dataclass(frozen=True)
class Variant:
    """One row of pnc: its label and what it may add: shares of the target's MACs and parameters,
    or ``of_pair``, a share of what the whole source would add of both."""

    label: str
    max_macs: float | None = None
    max_params: float | None = None
    of_pair: float | None = None
    originals: bool = True
    epochs: int | None = None
    taps: list[str] = field(default_factory=list)  # of the search; all when empty
    cuts: list[str] = field(default_factory=list)
    head_only: bool = False  # no copied part
    unlabelled: int = 0  # images of all classes whose labels are not looked at


@dataclass(frozen=True)
class Trained:
    """A checkpoint that the harness trains itself, on the scenario's training images."""

    checkpoint: str
    architecture: str
    model_args: dict
    classes: list[str]
    input_size: list[int]
    epochs: int
    seed: int


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    target: str
    sources: list[Source]
    train: list[str]
    test: list[str]
    images_per_class: int = 100  # of clone and original classes alike, for every method
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    test_images: int = 2000  # at most; the same for every seed
    flip: bool = True  # whether a mirrored image is still of its class
    steps: int | None = (
        None  # that a trained rival may take at most; None: by the work (training.py)
    )
    pnc: list[Variant] = field(default_factory=lambda: list(DEFAULT_PNC))
    methods: list[str] | None = None  # None: all
    make: str | None = None  # "digits": the harness writes the images and both checkpoints
    networks: list[Trained] = field(default_factory=list)
    amounts: list[int] | None = None  # run once for each of these images_per_class

    def expanded(self) -> list[Scenario]:
        """One scenario per amount of images."""
        if not self.amounts:
            return [self]
        return [replace(self, images_per_class=n, amounts=None) for n in self.amounts]


DEFAULT_PNC = (
    Variant("pnc"),
    Variant("pnc, half", of_pair=0.5),
    Variant("pnc, quarter", of_pair=0.25),
    Variant("pnc, no originals", originals=False),
    Variant("pnc, 400 unlabelled", originals=False, unlabelled=400),
    Variant("pnc, no copied part", head_only=True),
)


def load(name: str, data: Path, cache: Path) -> Scenario:
    """The scenario called ``name``, or in the file ``name``.

    Raises ``Skipped`` where the files it names are missing and the harness does not make them.
    """
    path = Path(name) if name.endswith(".json") else BUILT_IN / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.json")))
        raise SystemExit(f"no scenario '{name}': give a .json file or one of {known}")
    given = json.loads(path.read_text(encoding="utf-8"))

    def place(text: str) -> str:
        text = text.replace("{data}", str(data)).replace("{cache}", str(cache))
        return str(path.parent / text)  # an absolute path stays what it is

    try:
        sources = [Source(**s) for s in given.pop("sources")]
        networks = [Trained(**n) for n in given.pop("networks", [])]
        extra = {"pnc": [Variant(**v) for v in given.pop("pnc")]} if "pnc" in given else {}
        scenario = Scenario(
            name=path.stem,
            target=place(given.pop("target")),
            sources=[replace(s, checkpoint=place(s.checkpoint)) for s in sources],
            networks=[replace(n, checkpoint=place(n.checkpoint)) for n in networks],
            train=[place(p) for p in given.pop("train")],
            test=[place(p) for p in given.pop("test")],
            **extra,
            **given,
        )
    except (TypeError, KeyError) as e:
        raise SystemExit(f"{path}: not a scenario: {e}") from None
    made = {n.checkpoint for n in scenario.networks}
    needed = [
        scenario.target,
        *(s.checkpoint for s in scenario.sources),
        *scenario.train,
        *scenario.test,
    ]
    for file in needed:
        if scenario.make is None and file not in made and not Path(file).exists():
            raise Skipped(f"{scenario.name}: no {file} (--data says where the data lie)")
    return scenario
