"""Memory does not grow with the number of images: the real commands, and what the kernel says of them."""

import sys

import pytest
from support.command import pnc_peak
from support.networks import SIZE, draw_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone"),
]
FEW, MANY = 60, 300  # images a class, of five: more than are decoded at a time (256) in either case
SLACK = 24 << 20  # bytes: features of so many more images, at all positions, are several times that


@pytest.fixture(scope="module")
def images(pair, tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("many"), [*pair.old, *pair.new], MANY, first=300)


@pytest.mark.parametrize("command", ["search", "clone"])
def test_peak_memory_is_the_same_with_few_images_and_with_many(pair, images, tmp_path, command):
    """But for the images themselves, as bytes; with little memory allowed, so that even few of them
    use it up."""

    def peak(per_class):
        args = [command, pair.source, pair.target, "--data", images, "--memory", "16MB"]
        if command == "clone":
            args += ["--epochs", "1", "-o", tmp_path / f"{per_class}.safetensors"]
        return pnc_peak(*args, "--limit-per-class", per_class, cwd=tmp_path)

    more = (MANY - FEW) * len([*pair.old, *pair.new]) * 3 * SIZE * SIZE
    assert peak(MANY) - peak(FEW) < more + SLACK
