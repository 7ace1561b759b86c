"""Small timm networks and drawn images, for tests that need real ones."""

import json

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pnc_cli.manifest import Preprocessing

torch.set_num_threads(1)  # the networks are tiny, and the machine may be busy
SIZE = 32
RESNET = {"channels": [8, 8, 16, 16]}  # a resnet18 of 37,000 parameters
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 60, 230),
    "yellow": (230, 220, 50),
    "purple": (170, 50, 200),
    "grey": (120, 120, 120),
}
MEAN, STD = [0.5, 0.4, 0.6], [0.25, 0.3, 0.2]


def plain_view(size, interpolation="bicubic"):
    """How images become inputs of ``size`` pixels, with nothing cut off."""
    return Preprocessing(
        input_size=(3, size, size),
        interpolation=interpolation,
        crop_pct=1.0,
        crop_mode="center",
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )


def draw(label, seed):
    """One image: a square of the class's colour somewhere, on a noisy background."""
    rng = np.random.default_rng([seed, *label.encode()])
    image = rng.integers(60, 120, (SIZE, SIZE, 3))
    y, x = rng.integers(0, SIZE - 20, 2)
    image[y : y + 20, x : x + 20] = COLOURS[label] + rng.integers(-25, 26, (20, 20, 3))
    return image.clip(0, 255).astype(np.uint8)


def draw_folder(folder, labels, count, *, first=0):
    """``count`` PNG files for each label, in a sub-folder of its own."""
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            Image.fromarray(draw(label, i)).save(folder / label / f"{i}.png")
    return folder


def make_network(architecture, classes, *, seed=0, size=SIZE, **model_args):
    """An untrained network in eval mode, built with timm alone, with lively BatchNorm statistics."""
    torch.manual_seed(seed)
    model = timm.create_model(
        architecture,
        num_classes=classes,
        pretrained_cfg_overlay={"input_size": (3, size, size)},
        **model_args,
    )
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def train(model, labels, *, count=40, epochs=8):
    """Teaches ``model`` the drawn classes, which takes seconds."""
    torch.manual_seed(0)
    x = torch.stack([torch.from_numpy(draw(n, i)) for n in labels for i in range(count)])
    x = preprocess(x.permute(0, 3, 1, 2))
    y = torch.arange(len(labels)).repeat_interleave(count)
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(32):
            loss = torch.nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def preprocess(images):
    """uint8 (N, 3, H, W) -> what the networks here read."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (images / 255 - mean) / std


def save_checkpoint(path, model, architecture, labels, *, size=SIZE, **model_args):
    """The network's file, and the document beside it that says what it is."""
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, path)
    document = {
        "architecture": architecture,
        "num_classes": len(labels),
        "label_names": list(labels),
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": MEAN,
            "std": STD,
        },
    }
    path.with_suffix(".json").write_text(json.dumps(document))
    return path
