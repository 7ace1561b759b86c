"""Digests of everything that fixed commands write: what a change of form must leave as it was.

    python -m examples.benchmark.digests [--root CHECKOUT] [--data SHARED] [--only NAME] > digests.txt

runs search, clone, inject, eval, info and eject of the ``pnc`` in CHECKOUT (default: this one) on
the digits, the CIFAR pair (where the data is) and three pairs of timm's ``test_*`` networks, and
prints the sha256 of each clone file, manifest, plan, patched file and JSON.  Two checkouts that
print the same behave the same on these.  Compare on one machine, one version of PyTorch and one
number of threads: float sums differ between any of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parents[2]
TINY = (
    ("resnet-convnext", "test_resnet", "test_convnext", 64),
    ("vit-efficientnet", "test_vit", "test_efficientnet", 64),
    ("byobnet-vit", "test_byobnet", "test_vit2", 64),
)  # name, source, target, pixels


class Commands:
    """Runs one checkout's ``pnc`` in a folder."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def run(self, *arguments: object, out: str | None = None) -> None:
        """``out`` names the file that stdout becomes."""
        code = (
            "import sys; sys.path.insert(0, sys.argv.pop(1)); from pnc_cli.cli import main; main()"
        )
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        ran = subprocess.run(
            [sys.executable, "-P", "-c", code, str(self.root), *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
        )
        if ran.returncode:
            raise SystemExit(f"pnc {' '.join(map(str, arguments))}:\n{ran.stderr.decode()}")
        if out:
            (self.folder / out).write_bytes(ran.stdout)

    def journey(self, source: Path, target: Path, train: Path, test: Path, limit: int) -> None:
        """Everything a user does with one pair, and some of the options on the way."""
        pair, few = (source, target), ("--limit-per-class", limit)
        self.run("search", *pair, "--json", out="probe.json")
        self.run(
            "search", *pair, "--data", train, *few, "-o", "plan.json", "--json", out="search.json"
        )
        self.run("search", *pair, "--data", train, *few, "--max-macs", "0.5", "-o", "half.json")
        self.run(
            "clone", *pair, "--data", train, *few, "--plan", "plan.json", "-o", "free.safetensors"
        )
        self.run(
            "clone",
            *pair,
            "--data",
            train,
            *few,
            "--plan",
            "half.json",
            "--name",
            "some",
            "-o",
            "half.safetensors",
            "--force",
            "--json",
            out="clone.json",
        )
        self.run(
            "clone",
            *pair,
            "--data",
            train,
            *few,
            "--no-originals",
            "--max-params",
            "0.7",
            "--epochs",
            "2",
            "-o",
            "alone.safetensors",
        )
        for name in ("free", "half", "alone"):
            self.run("inject", target, f"{name}.safetensors", "-o", f"{name}-in.safetensors")
            self.run(
                "eval",
                f"{name}-in.safetensors",
                "--data",
                test,
                *few,
                "--json",
                out=f"{name}-eval.json",
            )
        self.run("info", "half-in.safetensors", "--json", out="info.json")
        self.run("eject", "half-in.safetensors", "-o", "back.safetensors")


def digits(commands: Commands, data: Path) -> None:
    subprocess.run(
        [sys.executable, HERE / "examples" / "digits.py", commands.folder],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    f = commands.folder
    commands.journey(
        f / "source.safetensors", f / "target.safetensors", f / "train", f / "test", 60
    )


def cifar(commands: Commands, data: Path) -> None:
    c = data / "checkpoints"
    images = [data / "cifar10" / f"{part}.tar" for part in ("train", "test")]
    commands.journey(
        c / "cifar10_source_resnet18.safetensors",
        c / "cifar10_target_resnet18.safetensors",
        *images,
        50,
    )


def tiny(source: str, target: str, size: int):
    def run(commands: Commands, data: Path) -> None:
        f = commands.folder
        sys.path.insert(0, str(HERE / "examples"))
        from digits import write_images

        write_images(f)
        for name, kind, labels in (("s", source, "456789"), ("t", target, "012345")):
            _save(f / f"{name}.safetensors", kind, labels, size)
        commands.journey(f / "s.safetensors", f / "t.safetensors", f / "train", f / "test", 12)

    return run


def _save(path: Path, kind: str, labels: str, size: int) -> None:
    """A network with random weights and lively statistics."""
    torch.manual_seed(len(kind))
    args = {"img_size": size} if "vit" in kind else {}
    model = timm.create_model(kind, num_classes=len(labels), **args)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, path)
    document = {
        "architecture": kind,
        "num_classes": len(labels),
        "label_names": list(labels),
        "model_args": args,
        "pretrained_cfg": {"input_size": [3, size, size]},
    }
    path.with_suffix(".json").write_text(json.dumps(document))


CASES = {"digits": digits, "cifar": cifar, **{name: tiny(*rest) for name, *rest in TINY}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=HERE)
    parser.add_argument("--data", type=Path, default=HERE.parent / "shared" / "data")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    asked = parser.parse_args()
    for name in asked.only:
        if name == "cifar" and not asked.data.is_dir():
            print(f"cifar: left out, no {asked.data}", file=sys.stderr)
            continue
        with TemporaryDirectory() as folder:
            # paths stand in messages only, never in an output: two folders give the same digests
            CASES[name](Commands(asked.root.resolve(), Path(folder)), asked.data.resolve())
            for path in sorted(Path(folder).glob("*.*")):
                if not path.name.startswith("."):
                    print(
                        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}/{path.name}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
