"""Two small classifiers of real handwritten digits, for the quickstart and the benchmark.

scikit-learn ships 1,797 scanned digits (Optical Recognition of Handwritten Digits, E. Alpaydin
and C. Kaynak, UCI), so nothing is downloaded.  Half of them are for training.

    python examples/digits.py FOLDER

writes FOLDER/train and FOLDER/test (PNG images in class folders), and two checkpoints with their
configs: target.safetensors knows 0 to 5, source.safetensors knows 4 to 9.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

SIZE = 32  # pixels a side; the scans have 8
ARGS = {"channels": [16, 32, 64, 128]}  # a slim resnet18
EPOCHS = 12
BATCH = 64


def write_images(folder: Path) -> None:
    """PNG images, every other one for training."""
    digits = load_digits()
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target)):
        place = folder / ("train" if i % 2 else "test") / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(place / f"{i:04}.png")


def train(folder: Path, name: str, labels: list[str], seed: int) -> None:
    """Trains a slim resnet18 on the training images of ``labels``; writes <name>.safetensors."""
    torch.manual_seed(seed)
    config = {
        "architecture": "resnet18",
        "num_classes": len(labels),
        "label_names": labels,
        "model_args": ARGS,
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    model = timm.create_model("resnet18", num_classes=len(labels), **ARGS)
    transform = timm.data.create_transform(
        (3, SIZE, SIZE), interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    files = [(f, k) for k, n in enumerate(labels) for f in sorted((folder / "train" / n).iterdir())]
    x = torch.stack([transform(Image.open(f).convert("RGB")) for f, _ in files])
    y = torch.tensor([k for _, k in files])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = EPOCHS * (-(-len(x) // BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(BATCH):
            shift = torch.randint(-3, 4, (2,)).tolist()
            images = x[index].roll(shift, (2, 3))
            loss = F.cross_entropy(model(images), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder)
    print("training the target on 0 1 2 3 4 5", file=sys.stderr)
    train(folder, "target", list("012345"), seed=1)
    print("training the source on 4 5 6 7 8 9", file=sys.stderr)
    train(folder, "source", list("456789"), seed=2)


if __name__ == "__main__":
    main()
