"""What real_sizes.py compares with and measures on, each job a process of its own: random networks
and images, a plain forward pass, a plain evaluation loop, a large file.

    python -m examples.benchmark.plainly JOB '{"argument": value}'

prints one JSON object.  Only timm is used, but for what loads a patched checkpoint: that is
``pnc_cli`` of the checkout it is told of.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_dataset, create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Subset

from pnc_cli.allocator import keep_freed_memory

CROP = 0.875  # of a drawn image; timm's usual share
BATCH = 64
STATISTICS = 16  # images that a random network's running statistics are of
CHUNK = 1 << 22  # numbers drawn at a time for a large file
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
SMALL = 1e-5  # weights that begin at zero, or about there, and end elsewhere in any training
WIDTH_OF_A_HEAD, BLOCKS = 64, 40


def images(folder: str, labels: list[str], each: int, size: int) -> dict[str, Any]:
    """Draws ``each`` images of every class as JPEG files: smooth colours, a part of them the
    class's own, and grain.  Those that are there already stay."""
    side = round(size / CROP)
    for label in labels:
        place = Path(folder, label)
        place.mkdir(parents=True, exist_ok=True)
        mark = zlib.crc32(label.encode())
        common = _smooth(np.random.default_rng(mark), side)
        for k in range(each):
            path = place / f"{k:05d}.jpg"
            if not path.exists():
                rng = np.random.default_rng([mark, k])
                grain = rng.normal(0, 12, (side, side, 3))
                pixels = 0.5 * common + 0.5 * _smooth(rng, side) + grain
                data = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
                part = path.with_suffix(".part")
                part.write_bytes(data.getvalue())
                part.replace(path)
    return {"images": each * len(labels)}


def _smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), float)


def network(
    path: str, architecture: str, labels: list[str], args: dict, size: int, folder: str, seed: int
) -> dict[str, Any]:
    """Writes a network with random weights, none of them dead, whose BatchNorm statistics are those
    of some of the images in ``folder``."""
    torch.manual_seed(seed)
    how = {"input_size": [3, size, size]}
    model = timm.create_model(
        architecture, num_classes=len(labels), pretrained_cfg_overlay=how, **args
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith("bias") and value.abs().max() <= SMALL:
                value.uniform_(0.2, 0.5) if value.ndim == 1 else value.normal_(0, 0.02)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # the mean of what passes, from the first batch on
        config = resolve_data_config(model=model)
        found = sorted(Path(folder).glob("*/*.jpg"))
        some = found[:: math.ceil(len(found) / STATISTICS)]
        transform = create_transform(**config)
        batch = torch.stack([transform(Image.open(p).convert("RGB")) for p in some])
        model.train()(batch)
        spread = float(model.eval()(batch).std(0).mean())
    if not math.isfinite(spread) or spread == 0:
        raise SystemExit(f"{architecture}: its answers do not differ from image to image")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, path)
    _describe(path, architecture, labels, args, size)
    return {"parameters": sum(p.numel() for p in model.parameters()), "spread": spread}


def pair(drawn: dict[str, Any], networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Draws images, and then makes networks that have seen some of them."""
    return {"images": images(**drawn), "networks": [network(**n) for n in networks]}


def _describe(path: str, architecture: str, labels: list[str], args: dict, size: int) -> None:
    document = {
        "architecture": architecture,
        "num_classes": len(labels),
        "label_names": labels,
        "model_args": args,
        "pretrained_cfg": {"input_size": [3, size, size]},
    }
    Path(path).with_suffix(".json").write_text(json.dumps(document))


def passes(source: str, target: str, data: str, classes: list[str], each: int) -> dict[str, Any]:
    """Time of one forward pass of both networks over ``each`` images of the clone classes and of
    the target's classes that ``data`` has, decoded before."""
    keep_freed_memory()  # as pnc's commands do: without it the system's time is half of it
    networks = [_open(source), _open(target)]
    configs = [config for _, config, _ in networks]
    chosen = _choose(data, [*networks[1][2], *classes], each)
    begin = time.process_time()
    views = _decode(data, chosen, configs)
    decoding = time.process_time() - begin
    resident = _resident()
    distinct = {v.data_ptr(): v.nbytes for v in views}
    states = [t.nbytes for model, _, _ in networks for t in model.state_dict().values()]
    for (model, config, _), view in zip(networks, views):
        _forward(model, view[:BATCH], config)  # the first batch of a network takes longer
    cpu, wall = time.process_time(), time.perf_counter()
    for (model, config, _), view in zip(networks, views):
        _forward(model, view, config)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "decoding": decoding,
        "images": len(views[0]),
        "held": sum(distinct.values()) + sum(states),
        "resident": resident,
        "versions": versions(),
    }


def _open(path: str) -> tuple[nn.Module, dict, list[str]]:
    """A network of a checkpoint with its document beside it, its preprocessing, its labels."""
    document = json.loads(Path(path).with_suffix(".json").read_text())
    model = timm.create_model(
        document["architecture"],
        num_classes=document["num_classes"],
        pretrained_cfg_overlay=document["pretrained_cfg"],
        **document.get("model_args", {}),
    )
    model.load_state_dict(load_file(path))
    config = resolve_data_config(model=model, pretrained_cfg=model.pretrained_cfg)
    return model.eval().requires_grad_(False), config, document["label_names"]


def _choose(data: str, labels: Sequence[str], each: int | None) -> list[int]:
    """Indices of the first images of each label in the data set (None: of all its images)."""
    reader = create_dataset("", root=data).reader
    tar = getattr(reader, "targets", None) is not None
    targets = [int(t) for t in reader.targets] if tar else [t for _, t in reader.samples]
    number = {label: i for label, i in _numbers(reader).items() if label in set(labels)}
    of = {i: [k for k, t in enumerate(targets) if t == i][:each] for i in number.values()}
    if not any(of.values()):
        raise SystemExit(f"{data}: has no images of these classes")
    return [k for indices in of.values() for k in indices]


def _numbers(reader: Any) -> dict[str, int]:
    """The classes of a folder or of a tar, as timm's readers of these know them."""
    tar = hasattr(reader, "class_name_to_idx")
    return reader.class_name_to_idx if tar else reader.class_to_idx


def _decode(data: str, chosen: list[int], configs: list[dict]) -> list[Tensor]:
    """uint8 images for source and target, one tensor for both where their sizes are the same."""
    source, target = configs
    reader = create_dataset("", root=data).reader

    def read(config: dict) -> Tensor:
        names = ("input_size", "interpolation", "crop_pct", "crop_mode")
        transform = create_transform(**{n: config[n] for n in names}, normalize=False)
        result = torch.empty((len(chosen), *config["input_size"]), dtype=torch.uint8)
        for n, k in enumerate(chosen):
            with reader[k][0] as file:
                result[n] = transform(Image.open(file).convert("RGB"))
        return result

    view = read(target)
    if source["input_size"] == target["input_size"]:
        return [view, view]
    frame = {n: target[n] for n in ("crop_pct", "crop_mode")}
    return [read({**source, **frame}), view]


@torch.inference_mode()
def _forward(model: nn.Module, view: Tensor, config: dict) -> None:
    mean, std = (torch.tensor(config[n])[:, None, None] for n in ("mean", "std"))
    for start in range(0, len(view), BATCH):
        model(view[start : start + BATCH].float().div_(255).sub_(mean).div_(std))


def loop(root: str, patched: str, data: str, each: int, workers: int) -> dict[str, Any]:
    """What a user of timm would write to evaluate a patched model."""
    model = _pnc(root).load(patched)
    config = resolve_data_config(model=model, pretrained_cfg=model.pretrained_cfg)
    dataset = create_dataset("", root=data, transform=create_transform(**config))
    number = {i: model.label_names.index(n) for n, i in _numbers(dataset.reader).items()}
    some = Subset(dataset, _choose(data, model.label_names, each))
    right, begin = 0, time.perf_counter()
    with torch.inference_mode():
        for x, label in DataLoader(some, batch_size=BATCH, num_workers=workers):
            wanted = torch.tensor([number[int(k)] for k in label])
            right += int((model(x).argmax(1) == wanted).sum())
    seconds = time.perf_counter() - begin
    return {"images": len(some), "joint_accuracy": right / len(some), "seconds": seconds}


def large(path: str, parameters: int, dtype: str, labels: list[str], size: int) -> dict[str, Any]:
    """Writes a vision transformer of about so many parameters straight to disk."""
    width = max(1, round(math.sqrt(parameters / (12 * BLOCKS)) / WIDTH_OF_A_HEAD)) * WIDTH_OF_A_HEAD
    heads = width // WIDTH_OF_A_HEAD
    args = {"img_size": size, "embed_dim": width, "depth": BLOCKS, "num_heads": heads}
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=len(labels), **args)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * np.dtype(TYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            middle = float("norm" in name and name.endswith("weight"))
            for start in range(0, math.prod(shape), CHUNK):
                count = min(CHUNK, math.prod(shape) - start)
                drawn = rng.standard_normal(count, np.float32) * np.float32(0.02) + middle
                file.write(_stored(drawn.astype(np.float32), dtype).tobytes())
    _describe(path, "vit_base_patch16_224", labels, args, size)
    total = sum(map(math.prod, shapes.values()))
    return {"parameters": total, "bytes": Path(path).stat().st_size, "versions": versions()}


def _stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of each number
        return (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(TYPES[dtype])


def load(root: str, path: str) -> dict[str, Any]:
    """Loads a checkpoint as a user does."""
    pnc = _pnc(root)
    before, begin = _resident(), time.perf_counter()
    model = pnc.load(path)
    seconds = time.perf_counter() - begin
    weights = sum(t.nbytes for t in model.state_dict().values())
    return {"seconds": seconds, "weights": weights, "before": before}


def _pnc(root: str) -> Any:
    """The ``pnc_cli`` of a checkout, and no other."""
    sys.path.insert(0, root)
    import pnc_cli

    if not Path(pnc_cli.__file__).resolve().is_relative_to(Path(root).resolve()):
        raise SystemExit(f"{pnc_cli.__file__} was imported, not that in {root}")
    return pnc_cli


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "timm": timm.__version__}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job for job in (images, pair, passes, loop, large, load)
}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](**json.loads(sys.argv[2])), allow_nan=False))
