"""What is expensive is made once: two trained networks, images of their classes, and a clone."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

# A shell's background jobs inherit an ignored Ctrl-C, what nohup starts an ignored hang-up, and so would
# the commands that are run here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")

OLD, NEW = ["red", "green", "blue"], ["yellow", "purple"]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Checkpoints ``source`` and ``target`` (small resnet18s) and image folders ``train``, ``test``."""
    from support.networks import RESNET, draw_folder, make_network, save_checkpoint, train

    folder = tmp_path_factory.mktemp("pair")
    files = {}
    for name, labels, seed in (("source", ["blue", *NEW], 1), ("target", OLD, 2)):
        model = train(make_network("resnet18", 3, seed=seed, **RESNET), labels)
        files[name] = save_checkpoint(
            folder / f"{name}.safetensors", model, "resnet18", labels, **RESNET
        )
    for name, count, first in (("train", 20, 100), ("test", 20, 200)):
        files[name] = draw_folder(folder / name, [*OLD, *NEW], count, first=first)
    return SimpleNamespace(folder=folder, old=OLD, new=NEW, **files)


@pytest.fixture(scope="session")
def made(pair):
    """``clone.safetensors`` and ``patched.safetensors`` of the pair, by the real command."""
    from support.command import pnc

    clone = pnc(
        "clone",
        "source.safetensors",
        "target.safetensors",
        "--data",
        "train",
        "-o",
        "clone.safetensors",
        "--epochs",
        "2",
        "--json",
        cwd=pair.folder,
    )
    assert clone.code == 0, clone.err
    inject = pnc(
        "inject",
        "target.safetensors",
        "clone.safetensors",
        "-o",
        "patched.safetensors",
        cwd=pair.folder,
    )
    assert inject.code == 0, inject.err
    return SimpleNamespace(
        clone=pair.folder / "clone.safetensors",
        ran=clone,
        patched=pair.folder / "patched.safetensors",
        **vars(pair),
    )


@pytest.fixture(scope="session")
def two(made, tmp_path_factory):
    """A folder with a second clone for the target, ``more.safetensors``, of a class under another
    label, and with ``data``: images of all classes."""
    from support.command import pnc

    folder = tmp_path_factory.mktemp("two")
    (folder / "data").mkdir()
    for label in [*made.old, *made.new]:
        (folder / "data" / label).symlink_to(made.train / label)
    (folder / "data" / "blue_2").symlink_to(made.train / "blue")
    ran = pnc(
        "clone",
        made.source,
        made.target,
        "--data",
        "data",
        "-c",
        "blue=blue_2",
        "--name",
        "more",
        "-o",
        "more.safetensors",
        "--epochs",
        "0",
        "--limit-per-class",
        "6",
        cwd=folder,
    )
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real checkpoints beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return SHARED
