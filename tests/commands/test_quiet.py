"""Under ``-q`` nothing but errors is on stderr, whatever the images and the networks give rise to."""

import io
import shutil
import warnings

import pytest
import torch
from PIL import Image
from support.command import pnc_forked
from support.networks import plain_view
from torch import fx, nn

from pnc_cli.data import choose, load_images, open_images
from pnc_cli.errors import BadInput, in_words
from pnc_cli.network.part import Module


def warned(path):
    """An image of which Pillow warns: a palette whose transparency is given in bytes."""
    image = Image.new("P", (32, 32))
    image.putpalette([7 * i % 256 for i in range(768)])
    image.info["transparency"] = bytes(range(256))
    image.save(path, transparency=bytes(range(256)))


@pytest.fixture
def data(made, tmp_path):
    shutil.copytree(made.test, tmp_path / "data")
    warned(tmp_path / "data" / "red" / "palette.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(tmp_path / "data" / "red" / "palette.png").convert("RGB")
    assert caught  # so there is something to keep out
    return tmp_path / "data"


def test_pillow_is_not_heard(made, data, tmp_path):
    ran = pnc_forked("eval", made.patched, "--data", data, "-q", "--json", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["images"] == 101


def test_an_error_is(made, data, tmp_path):
    (data / "red" / "empty.png").write_bytes(b"")
    ran = pnc_forked("eval", made.patched, "--data", data, "-q", cwd=tmp_path)
    assert ran.code == 3
    first, hint = ran.err.splitlines()
    assert first.endswith("red/empty.png: does not decode as an image: the file is empty")
    assert "--skip-bad" in hint


class Fixed(nn.Module):
    """A size stands in its graph: maps of another resolution cannot be read."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        x = x.view(2, 64)
        return x, self.fc(x)


def test_fx_does_not_print_what_goes_wrong_in_a_part(capfd):
    module = Module(fx.symbolic_trace(Fixed()), [0, 2])
    assert [t.shape[1] for t in module(torch.zeros(2, 4, 4, 4))] == [64, 2]
    with pytest.raises(RuntimeError):
        module(torch.zeros(2, 4, 2, 2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content, why",
    [
        (b"", "the file is empty"),
        (b"no image", "no kind of image that Pillow knows"),
        (None, "truncated"),
    ],
)
def test_no_message_names_an_object_at_an_address(tmp_path, content, why):
    if content is None:
        stream = io.BytesIO()
        Image.effect_noise((32, 32), 50).save(stream, "PNG")
        content = stream.getvalue()[:300]
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "1.png").write_bytes(content)
    view = plain_view(32)
    source = open_images(str(tmp_path))
    with pytest.raises(BadInput, match="red/1.png: does not decode as an image") as e:
        load_images(source, choose(source, ["red"], None, 0), [view])
    assert why in e.value.message and "0x" not in e.value.message


def test_errors_of_others_lose_their_addresses():
    error = ValueError(f"cannot identify {io.BytesIO()!r} or {test_pillow_is_not_heard!r} here")
    assert in_words(error) == "cannot identify or here"
    assert in_words(ValueError()) == "ValueError"
