"""What a scenario needs and the harness makes itself, once, in the cache folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pnc_cli.branch.refine import warm_cosine
from pnc_cli.data import choose, load_images, normalize, open_images
from pnc_cli.manifest import Preprocessing

from .pool import Pool
from .scenario import Scenario, Source, Trained
from .training import shifted

BATCH = 50


def prepare(scenario: Scenario, cache: Path) -> None:
    """Writes the images and checkpoints that ``scenario`` wants made and that are not there."""
    if scenario.make == "digits" and not (cache / "digits" / "source.json").exists():
        script = Path(__file__).parents[1] / "digits.py"
        env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run([sys.executable, str(script), str(cache / "digits")], check=True, env=env)
    elif scenario.make not in (None, "digits"):
        raise SystemExit(f"{scenario.name}: make: '{scenario.make}' is unknown")
    for network in scenario.networks:
        if not Path(network.checkpoint).exists():
            print(f"{scenario.name}: training {Path(network.checkpoint).name}", file=sys.stderr)
            _train(network, scenario)


def resized(source: Source, cache: Path) -> Path:
    """The source's checkpoint, in a copy that is used at another resolution where one is wanted."""
    path = Path(source.checkpoint)
    if source.input_size is None:
        return path
    name = f"{path.stem}_{'x'.join(map(str, source.input_size))}"
    copy = cache / "resized" / f"{name}.safetensors"
    if not copy.with_suffix(".json").exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        config = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        config.setdefault("pretrained_cfg", {}).update(input_size=source.input_size, crop_pct=1.0)
        copy.with_suffix(".json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def _train(network: Trained, scenario: Scenario) -> None:
    """Trains ``network`` from scratch on all training images of its classes."""
    how = Preprocessing(
        input_size=tuple(network.input_size),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    source = Pool([open_images(p) for p in scenario.train]).source
    images = load_images(source, choose(source, network.classes, None, 0), [how])
    label = torch.tensor([network.classes.index(n) for n in images.labels])
    torch.manual_seed(network.seed)
    generator = torch.Generator().manual_seed(network.seed)
    size = {"img_size": network.input_size[1]} if "img_size" in network.model_args else {}
    model = timm.create_model(
        network.architecture, num_classes=len(network.classes), **{**network.model_args, **size}
    )
    steps = network.epochs * -(-len(label) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(steps))
    model.train()
    for _ in range(network.epochs):
        for index in torch.randperm(len(label), generator=generator).split(BATCH):
            x = normalize(shifted(images.views[0][index], generator, flip=scenario.flip), how)
            loss = F.cross_entropy(model(x), label[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    path = Path(network.checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg = {k: getattr(how, k) for k in Preprocessing.__struct_fields__}
    config = {
        "architecture": network.architecture,
        "num_classes": len(network.classes),
        "label_names": network.classes,
        "model_args": network.model_args,
        "pretrained_cfg": cfg,
    }
    path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial = path.with_suffix(".partial")
    save_file(model.state_dict(), partial)
    os.replace(partial, path)
