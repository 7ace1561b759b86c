"""data/hub.py: ``hfds/…``, from files that lie here; nothing is fetched."""

import sys

import pytest
from support.networks import draw_folder, plain_view

from pnc_cli.data import choose, load_images, open_images
from pnc_cli.errors import BadInput, UsageError

HOW = plain_view(24)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)


@pytest.fixture
def folder(tmp_path):
    for split, first in (("train", 0), ("test", 50)):
        draw_folder(tmp_path / "d" / split, ["red", "green"], 3, first=first)
    return tmp_path / "d"


def pixels(source):
    images = load_images(source, choose(source, ["red", "green"], None, 0), [HOW])
    return sorted((n, v.numpy().tobytes()) for n, v in zip(images.labels, images.views[0]))


def test_the_chosen_split_of_an_image_folder_is_read_and_said(folder, capfd):
    for split in ("train", "test"):
        source = open_images(f"hfds/{folder}", split=split)
        assert source.split == split
        assert pixels(source) == pixels(open_images(str(folder / split)))
    assert capfd.readouterr() == ("", "")


def test_which_of_several_splits_is_not_guessed(folder):
    with pytest.raises(UsageError, match="has the splits train, test") as refused:
        open_images(f"hfds/{folder}")
    assert refused.value.hint == "--split train"
    with pytest.raises(UsageError, match="has no split 'valid', but train, test"):
        open_images(f"hfds/{folder}", split="valid")


def test_parquet_files_are_read_alone_and_in_a_folder(folder, tmp_path):
    import datasets

    table = datasets.load_dataset(str(folder), split="train")
    (tmp_path / "p").mkdir()
    table.to_parquet(tmp_path / "p" / "train.parquet")
    expected = pixels(open_images(str(folder / "train")))
    for name in (tmp_path / "p" / "train.parquet", tmp_path / "p"):
        source = open_images(f"hfds/{name}")
        assert pixels(source) == expected and source.split == "train"


def test_a_table_without_labels_names_its_columns(folder, tmp_path):
    import datasets

    table = datasets.load_dataset(str(folder), split="train").rename_column("label", "colour_name")
    table = table.cast_column("colour_name", datasets.Value("int64"))
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(BadInput, match="colour_name"):
        open_images(f"hfds/{tmp_path / 't.parquet'}")


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="datasets cannot read it"):
        open_images(f"hfds/{tmp_path / 'nowhere'}")


def test_without_the_package_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the package 'datasets'") as refused:
        open_images(f"hfds/{folder}", split="train")
    assert refused.value.hint.startswith("pip install")
