"""data/listing.py and folders.py: every file is an image of a class, or listed with the reason."""

import io
import tarfile

import pytest
from PIL import Image
from support.networks import draw_folder, plain_view

from pnc_cli.data import load_images, open_images
from pnc_cli.errors import BadInput, UsageError

HOW = plain_view(8, "bilinear")


def image(path, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path, kind)


def tarred(folder):
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return path


def sizes(source):
    return {name: len(indices) for name, indices in source.by_class.items()}


@pytest.fixture(params=["folder", "tar"])
def given(request):
    """A folder as it is, or packed."""
    return (lambda folder: folder) if request.param == "folder" else tarred


def test_images_of_all_usual_kinds_are_read(tmp_path, given):
    kinds = "png jpg JPEG jfif webp bmp tif tiff gif".split()
    for i, kind in enumerate(kinds):
        image(tmp_path / "d" / "cat" / f"{i}.{kind}", {"jfif": "JPEG"}.get(kind))
    source = open_images(str(given(tmp_path / "d")))
    assert sizes(source) == {"cat": len(kinds)} and not source.left_out
    assert len(load_images(source, source.by_class, [HOW])) == len(kinds)


def test_what_is_no_image_is_listed_with_the_reason(tmp_path, given):
    folder = tmp_path / "d"
    image(folder / "cat" / "1.png")
    image(folder / "beside.png")
    image(folder / ".ipynb_checkpoints" / "2.png")
    image(folder / "__MACOSX" / "cat" / "3.png")
    for name in ("cat/._1.png", "cat/.DS_Store", "cat/notes.txt", "labels.csv"):
        (folder / name).write_bytes(b"x")
    source = open_images(str(given(folder)))
    assert sizes(source) == {"cat": 1}
    listed = {part.why.split(",")[0]: sorted(part.files) for part in source.left_out}
    assert listed == {
        "no image that is read": ["cat/notes.txt", "labels.csv"],
        "hidden": [
            ".ipynb_checkpoints/2.png",
            "__MACOSX/cat/3.png",
            "cat/.DS_Store",
            "cat/._1.png",
        ],
        "beside the class folders": ["beside.png"],
    }


def test_folders_without_images_are_listed(tmp_path, given):
    image(tmp_path / "d" / "cat" / "1.png")
    (tmp_path / "d" / "dog" / "raw").mkdir(parents=True)
    (tmp_path / "d" / "dog" / "raw" / "1.cr2").write_bytes(b"x")
    (tmp_path / "d" / "bird").mkdir()
    source = open_images(str(given(tmp_path / "d")))
    assert source.empty == {"dog": 1, "bird": 0}


def test_a_class_called_as_a_split_is_a_class(tmp_path, given):
    draw_folder(tmp_path / "d", ["red", "green"], 2)
    for name in ("valid", "train", "test"):
        image(tmp_path / "d" / name / "1.png")
    assert set(sizes(open_images(str(given(tmp_path / "d"))))) == {
        *("red", "green", "valid", "train", "test")
    }


@pytest.mark.parametrize(
    "splits",
    [
        ("train", "test"),
        ("train", "val"),
        ("Training", "validation"),
        ("images/train", "images/eval"),
        ("train2017", "val2017"),
        ("a", "b"),  # called anything, where both have the same classes
    ],
    ids=str,
)
def test_nested_splits_are_refused_with_the_path_to_give(tmp_path, given, splits):
    for split in splits:
        draw_folder(tmp_path / "d" / split, ["red", "green"], 1)
    with pytest.raises(BadInput) as refused:
        open_images(str(given(tmp_path / "d")))
    assert all(f"/{s}" in refused.value.message for s in splits)
    assert refused.value.hint.endswith(f"/{splits[0]}") and "--data" in refused.value.hint


def test_splits_with_other_classes_are_refused_too(tmp_path):
    draw_folder(tmp_path / "d" / "train", ["red"], 1)
    draw_folder(tmp_path / "d" / "test", ["green"], 1)
    with pytest.raises(BadInput, match="2 sets of class folders"):
        open_images(str(tmp_path / "d"))


def test_classes_that_are_split_again_are_refused(tmp_path):
    for label in ("cat", "dog"):
        draw_folder(tmp_path / "d" / label, [], 0)
        for split in ("train", "test"):
            image(tmp_path / "d" / label / split / "1.png")
    with pytest.raises(BadInput, match="split again, each into test and train"):
        open_images(str(tmp_path / "d"))


def test_groups_of_classes_are_no_splits(tmp_path):
    draw_folder(tmp_path / "d" / "warm", ["red", "yellow"], 1)
    draw_folder(tmp_path / "d" / "testudines", ["green"], 1)
    draw_folder(tmp_path / "d" / "tests" / "x", ["blue"], 1)
    assert set(sizes(open_images(str(tmp_path / "d")))) == {"red", "yellow", "green", "blue"}


def test_the_only_split_is_read(tmp_path):
    draw_folder(tmp_path / "d" / "train", ["red"], 2)
    assert sizes(open_images(str(tmp_path / "d"))) == {"red": 2}


def test_a_link_to_a_folder_above_ends(tmp_path):
    draw_folder(tmp_path / "d", ["red"], 2)
    (tmp_path / "d" / "red" / "again").symlink_to(tmp_path / "d")
    source = open_images(str(tmp_path / "d"))
    assert sizes(source) == {"red": 2}
    assert [p.files for p in source.left_out] == [["red/again"]]


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    draw_folder(tmp_path / "d", ["red"], 1)
    os.mkfifo(tmp_path / "d" / "red" / "pipe.png")
    source = open_images(str(tmp_path / "d"))
    assert sizes(source) == {"red": 1} and source.left_out[0].files == ["red/pipe.png"]


def test_hard_links_in_a_tar_are_images(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        info = tarfile.TarInfo("cat/1.png")
        info.size = len(buffer.getvalue())
        tar.addfile(info, io.BytesIO(buffer.getvalue()))
        link = tarfile.TarInfo("cat/2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "cat/1.png"
        tar.addfile(link)
    source = open_images(str(tmp_path / "d.tar"))
    assert len(load_images(source, source.by_class, [HOW])) == 2


@pytest.mark.parametrize(
    "name, data, what",
    [
        ("d.zip", b"PK\x03\x04xxxx", "a zip archive"),
        ("d.tar.gz", b"\x1f\x8bxxxxxx", "gzip"),
        ("d.tar", b"\x1f\x8bxxxxxx", "gzip"),
        ("d.parquet", b"PAR1xxxx", "a parquet file"),
        ("d.png", b"\x89PNGxxxx", "one image"),
        ("d.tar", b"", "it is empty"),
        ("d.csv", b"a,b,c", "is not a folder or a .tar"),
    ],
)
def test_files_that_are_no_tars_are_named_for_what_they_are(tmp_path, name, data, what):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=what):
        open_images(str(tmp_path / name))


@pytest.mark.parametrize("name", ["torch/cifar10", "wds/shards", "tfds/mnist", "hfids/x"])
def test_sources_that_are_not_read_say_what_to_do_instead(name):
    with pytest.raises(BadInput, match="is not read") as refused:
        open_images(name)
    assert "folder" in refused.value.hint or "hfds/" in refused.value.hint


def test_a_split_of_a_folder_is_its_folder(tmp_path):
    draw_folder(tmp_path / "d" / "train", ["red"], 1)
    with pytest.raises(UsageError, match="only hfds/") as refused:
        open_images(str(tmp_path / "d"), split="train")
    assert refused.value.hint.endswith(f"--data {tmp_path / 'd' / 'train'}")
