"""data.py: labelled images become what timm's own transform would make of them."""

import io
import tarfile
import threading
import time

import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from support.networks import draw_folder
from timm.data import create_transform

from pnc_cli.data import choose, framed_like, load_images, normalize, open_images, read_images
from pnc_cli.data import reading as data
from pnc_cli.errors import BadInput, Incompatible
from pnc_cli.manifest import Preprocessing

HOW = Preprocessing(
    input_size=(3, 24, 24),
    interpolation="bicubic",
    crop_pct=0.9,
    crop_mode="center",
    mean=[0.5, 0.4, 0.6],
    std=[0.25, 0.3, 0.2],
)


@pytest.fixture
def folder(tmp_path):
    return draw_folder(tmp_path / "data", ["red", "green"], 3)


def load(folder, *views, **options):
    source = open_images(str(folder))
    return load_images(
        source, choose(source, list(source.by_class), None, 0), views or [HOW], **options
    )


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        replace(HOW, crop_pct=1.0, interpolation="bilinear"),
        replace(HOW, crop_mode="squash"),
        replace(HOW, input_size=(3, 48, 40)),
    ],
    ids=["plain", "bilinear", "squash", "larger"],
)
def test_images_are_those_of_timms_transform_bit_for_bit(folder, how):
    transform = create_transform(
        tuple(how.input_size),
        interpolation=how.interpolation,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        mean=how.mean,
        std=how.std,
    )
    source = open_images(str(folder))
    images = load_images(source, {"red": source.by_class["red"]}, [how])
    names = sorted((folder / "red").iterdir())
    expected = torch.stack([transform(Image.open(p).convert("RGB")) for p in names])
    assert normalize(images.views[0], how).numpy().tobytes() == expected.numpy().tobytes()


def make_tar(folder, path):
    with tarfile.open(path, "w") as tar:
        for label in folder.iterdir():
            tar.add(label, label.name)
    return path


def test_a_tar_is_read_like_the_folder_in_it(tmp_path, folder):
    tar = make_tar(folder, tmp_path / "data.tar")
    assert {n: len(i) for n, i in open_images(str(tar)).by_class.items()} == {"green": 3, "red": 3}
    found, expected = load(tar), load(folder)
    pairs = [
        sorted((n, v.numpy().tobytes()) for n, v in zip(i.labels, i.views[0]))
        for i in (found, expected)
    ]
    assert pairs[0] == pairs[1]


def test_images_beside_the_class_folders_are_of_no_class(folder):
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    assert set(open_images(str(folder)).by_class) == {"red", "green"}


def test_the_seed_alone_decides_which_images_are_drawn(tmp_path):
    source = open_images(str(draw_folder(tmp_path / "many", ["red", "green"], 20)))
    first = choose(source, ["red", "green", "unknown"], 5, seed=1)
    assert first == choose(source, ["green", "red"], 5, seed=1) and list(first) == ["red", "green"]
    assert first != choose(source, ["red", "green"], 5, seed=2)
    assert all(len(set(i)) == 5 and set(i) <= set(source.by_class[n]) for n, i in first.items())


def test_equal_views_share_one_tensor(folder):
    images = load(folder, HOW, replace(HOW, mean=[0.0] * 3), replace(HOW, crop_pct=1.0))
    assert images.views[0] is images.views[1]
    assert images.views[2] is not images.views[0]


def test_one_channel_networks_see_grey(folder):
    grey = replace(HOW, input_size=(1, 24, 24), mean=[0.5], std=[0.5])
    assert load(folder, grey).views[0].shape == (6, 1, 24, 24)
    with pytest.raises(Incompatible, match="this network reads 5"):
        load(folder, replace(HOW, input_size=(5, 24, 24)))


def test_networks_of_one_size_see_the_same_pixels():
    other = replace(HOW, interpolation="bilinear", crop_pct=0.5, mean=[0.0] * 3)
    assert framed_like(other, HOW) == replace(HOW, mean=[0.0] * 3)
    larger = replace(other, input_size=(3, 48, 48))
    assert framed_like(larger, HOW) == replace(larger, crop_pct=0.9)


def spoil(folder, how):
    path = folder / "red" / "1.png"
    whole = path.read_bytes()
    path.unlink()
    if how == "dangling link":
        path.symlink_to(folder / "nowhere.png")
    else:
        path.write_bytes(
            {"text": b"no image", "truncated": whole[: len(whole) // 2], "empty": b""}[how]
        )


@pytest.mark.parametrize("how", ["text", "truncated", "empty", "dangling link"])
def test_an_image_that_does_not_decode_is_named_or_skipped_on_request(folder, how):
    spoil(folder, how)
    with pytest.raises(BadInput, match=r"red/1.png: does not decode as an image") as e:
        load(folder)
    assert "--skip-bad" in e.value.hint and "0x" not in e.value.message
    images = load(folder, skip_bad=True)
    assert (len(images), images.skipped) == (5, 1)


def test_images_are_the_same_however_many_are_decoded_at_a_time(folder, monkeypatch):
    spoil(folder, "text")
    whole = load(folder, skip_bad=True)
    monkeypatch.setattr(data, "CHUNK", 1)  # the spoilt image is all of its chunk
    source = open_images(str(folder))
    chosen = choose(source, list(source.by_class), None, 0)
    parts = list(read_images(source, chosen, [HOW], skip_bad=True))
    assert sorted(map(len, parts)) == [0, 1, 1, 1, 1, 1]
    images = load(folder, skip_bad=True)
    assert (images.labels, images.skipped) == (whole.labels, 1)
    assert torch.equal(images.views[0], whole.views[0])


def parts_of(folder, how=HOW, **options):
    source = open_images(str(folder))
    return read_images(source, choose(source, list(source.by_class), None, 0), [how], **options)


@pytest.mark.parametrize(
    "sizes, together",
    [
        ([(3, 24, 24)], 256),
        ([(3, 224, 224)], 64),
        ([(3, 224, 224), (3, 224, 224)], 32),
        ([(3, 448, 448)], 16),
        ([(3, 4000, 4000)], 1),
    ],
)
def test_chunks_are_bounded_by_images_and_by_bytes(sizes, together):
    assert data._together([replace(HOW, input_size=size) for size in sizes]) == together


def test_the_next_images_are_decoded_while_the_caller_works_but_no_more(folder, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 1)
    begun, allowed = [], threading.Semaphore(0)
    read = data.ImageSource.read

    def noted(source, index):
        begun.append(index)
        allowed.release()
        return read(source, index)

    monkeypatch.setattr(data.ImageSource, "read", noted)
    parts = parts_of(folder)
    time.sleep(0.05)
    assert not begun  # nothing is read before it is asked for
    for asked in range(6):
        next(parts)
        for _ in range(1 + data.AHEAD if asked == 0 else asked + data.AHEAD < 6):
            assert allowed.acquire(timeout=10)  # read without being asked for
        time.sleep(0.05)
        assert len(begun) == min(6, asked + 1 + data.AHEAD)


def test_an_error_comes_after_the_images_before_it(folder, monkeypatch):
    (folder / "green" / "1.png").write_bytes(b"no image")
    monkeypatch.setattr(data, "CHUNK", 1)
    source = open_images(str(folder))
    red, green = source.by_class["red"], source.by_class["green"]
    parts = read_images(source, {"red": red, "green": green}, [HOW])
    assert [next(parts).labels for _ in red] == [["red"]] * 3
    found = []
    with pytest.raises(BadInput, match="green/1.png: does not decode"):
        found += parts
    assert len(found) == [i for i, n in enumerate(green) if "1.png" in source.read(n)[0]][0]


def test_threads_end_with_the_reading(folder, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 1)
    before = threading.active_count()
    parts = parts_of(folder)
    next(parts)
    assert threading.active_count() > before
    parts.close()
    assert threading.active_count() == before
    (folder / "red" / "0.png").write_bytes(b"no image")
    (folder / "green" / "0.png").write_bytes(b"no image")
    with pytest.raises(BadInput) as kept:  # and its traceback, which holds the frames
        list(parts_of(folder))
    assert threading.active_count() == before and kept


def test_progress_tells_of_all_images_in_order(folder, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 2)
    told = []
    list(parts_of(folder, progress=lambda *said: told.append(said), what="looking"))
    assert told == [("looking", n, 6) for n in (0, 2, 4, 6)]


def test_a_truncated_tar_names_the_image_it_breaks_in(tmp_path, folder):
    tar = make_tar(folder, tmp_path / "data.tar")
    with tarfile.open(tar) as t:
        last = max(t.getmembers(), key=lambda m: m.offset_data)
    tar.write_bytes(tar.read_bytes()[: last.offset_data + 10])
    with pytest.raises(BadInput):
        load(tar)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: d / "nowhere", "no such folder or tar"),
        (
            lambda d: (d / "empty").mkdir() or d / "empty",
            "no images found",
        ),
        (
            lambda d: (d / "only" / "red").mkdir(parents=True) or d / "only",
            "no images found",
        ),
        (lambda d: (d / "x.zip").write_bytes(b"PK") and d / "x.zip", "is not a folder or a .tar"),
        (
            lambda d: (d / "x.tar").write_bytes(b"no tar") and d / "x.tar",
            "cannot be read as a tar",
        ),
    ],
    ids=["missing", "empty", "empty class", "zip", "broken tar"],
)
def test_a_data_source_without_images_is_refused(tmp_path, make, message):
    with pytest.raises(BadInput, match=message):
        open_images(str(make(tmp_path)))


def test_when_no_image_is_left_that_is_an_error(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(BadInput, match="no image could be read"):
        load(folder, skip_bad=True)


def test_a_palette_image_with_transparency_becomes_plain_rgb(tmp_path):
    (tmp_path / "d" / "a").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGBA", (30, 30), (10, 20, 30, 0)).quantize().save(buffer, "PNG")
    (tmp_path / "d" / "a" / "x.png").write_bytes(buffer.getvalue())
    assert load(tmp_path / "d").views[0][0, :, 5, 5].tolist() == [10, 20, 30]
