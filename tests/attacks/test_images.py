"""Folders and tars of images from a stranger: no waiting, no going round, no more than so much memory."""

import io
import os
import tarfile
from dataclasses import dataclass

import pytest
from PIL import EpsImagePlugin, Image
from support.networks import draw_folder, plain_view

from pnc_cli.data import load_images, open_images
from pnc_cli.data.bounds import MAX_FILE, MAX_PIXELS, Allowance
from pnc_cli.data.folders import SUFFIXES, walk
from pnc_cli.data.reading import FORMATS
from pnc_cli.errors import BadInput

VIEW = plain_view(32)


@pytest.fixture
def folder(tmp_path):
    return draw_folder(tmp_path / "data", ["red", "green"], 2)


def read(source, **options):
    images = open_images(str(source))
    return load_images(images, dict(sorted(images.by_class.items())), [VIEW], **options)


def reasons(source):
    return {part.why: part.files for part in open_images(str(source)).left_out}


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(folder):
    Image.new("1", (8193, 8193)).save(folder / "red" / "large.png")
    with pytest.raises(BadInput) as e:
        read(folder)
    said = f"large.png: has 8,193 x 8,193 pixels; pnc reads at most {MAX_PIXELS:,} of an image"
    assert said in e.value.message and "--skip-bad" in e.value.hint
    found = read(folder, skip_bad=True)
    assert (len(found), found.skipped) == (4, 1)


def test_few_large_pictures_are_decoded_at_a_time():
    allowance, inside = Allowance(10), []
    with allowance.of(6), allowance.of(4):
        inside.append(allowance._free)
    with allowance.of(1_000):  # one is always let in
        inside.append(allowance._free)
    assert (inside, allowance._free) == ([0, 0], 10)


def test_a_file_that_is_too_large_is_not_read(folder):
    os.truncate(folder / "red" / "0.png", 1 << 40)
    with pytest.raises(BadInput, match=f"0.png: has .* bytes; pnc reads at most {MAX_FILE:,}"):
        read(folder)


@dataclass
class Failing:
    """A source whose first image takes more memory than there is."""

    error: Exception
    name = "data"
    by_class = {"red": [0]}

    def read(self, index):
        return "data:red/0.png", self.error


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("out of memory when reading image file")], ids=repr
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_lack_of_memory_is_no_fault_of_an_image(error, skip_bad):
    with pytest.raises(MemoryError):
        load_images(Failing(error), {"red": [0]}, [VIEW], skip_bad=skip_bad)


def test_files_are_read_a_bounded_number_of_bytes_ahead(folder, monkeypatch):
    monkeypatch.setattr("pnc_cli.data.reading.BYTES_TOGETHER", 1)
    assert len(read(folder)) == 4


def test_a_pipe_among_images_is_named_and_not_waited_for(folder):
    os.mkfifo(folder / "red" / "pipe.png")
    (folder / "red" / "zero.png").symlink_to("/dev/zero")
    assert reasons(folder)["no plain file"] == ["red/pipe.png", "red/zero.png"]
    assert len(read(folder)) == 4


def test_a_pipe_that_takes_an_images_place_is_not_waited_for(folder):
    images = open_images(str(folder))
    (folder / "red" / "0.png").unlink()
    os.mkfifo(folder / "red" / "0.png")
    with pytest.raises(BadInput, match="0.png: is a pipe, expected a regular file"):
        load_images(images, dict(images.by_class), [VIEW])


def test_links_that_lead_round_are_followed_once(folder):
    (folder / "red" / "more").symlink_to(folder / "green")
    (folder / "green" / "more").symlink_to(folder / "red")
    (folder / "red" / "self").symlink_to("self")
    found = walk(folder)
    assert sorted(found.links_up) == ["green/more/more", "red/more/more"]
    assert "red/self" in found.files and len(found.files) == 10


def test_folders_full_of_links_to_each_other_are_walked_in_no_time(tmp_path):
    names = [f"c{i}" for i in range(14)]  # 14! ways through them
    draw_folder(tmp_path / "data", ["red"], 1)
    for name in names:
        (tmp_path / "data" / name).mkdir()
    for name in names:
        for other in names:
            (tmp_path / "data" / name / other).symlink_to(tmp_path / "data" / other)
    found = reasons(tmp_path / "data")
    assert found["a link that was followed before, by another way"]


def test_two_classes_may_be_links_to_one_folder(folder):
    (folder / "crimson").symlink_to(folder / "red")
    assert sorted(open_images(str(folder)).by_class) == ["crimson", "green", "red"]


def test_a_folder_without_end_is_refused(folder, monkeypatch):
    monkeypatch.setattr("pnc_cli.data.folders.MAX_ENTRIES", 5)
    with pytest.raises(BadInput, match="has more than 5 files and folders, pnc's limit"):
        open_images(str(folder))


# tars -------------------------------------------------------------------------------------------


def make_tar(path, name, size, kind=tarfile.REGTYPE):
    """A tar with one picture and a member that is said to have ``size`` bytes, of a hole."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("green/0.png")
        info.size = len(picture.getvalue())
        tar.addfile(info, io.BytesIO(picture.getvalue()))
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        at = tar.offset
        head = info.tobuf(tarfile.GNU_FORMAT)
    with path.open("r+b") as f:
        f.seek(at)
        f.write(head)
        f.truncate(at + len(head) + -(-size // 512) * 512 + 1024)
    return path


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    tar = make_tar(tmp_path / "x.tar", "red/0.png", 1 << 32)
    with pytest.raises(BadInput, match="red/0.png: has 4,294,967,296 bytes; pnc reads at most"):
        read(tar)
    assert len(read(tar, skip_bad=True)) == 1


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["GNU", "pax"])
def test_a_members_name_of_gigabytes_is_not_read(tmp_path, kind):
    tar = make_tar(tmp_path / "x.tar", "red/0.png", 1 << 32, kind)
    with pytest.raises(BadInput, match="a member's name or attributes take 4,294,967,296 bytes"):
        open_images(str(tar))


def test_a_pipe_as_tar_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(BadInput, match="x.tar: is a pipe, expected a regular file"):
        open_images(str(tmp_path / "x.tar"))


def test_a_pipe_as_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(BadInput, match="x: is a pipe, expected a regular file"):
        open_images(str(tmp_path / "x"))


def test_5_a_drawing_that_would_start_another_program_is_no_image(tmp_path, monkeypatch):
    """PostScript called .jpg: Pillow by itself starts Ghostscript to read it."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **more: started.append(args))
    folder = tmp_path / "data" / "red"
    folder.mkdir(parents=True)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (folder / "x.jpg").write_text(text)
    with pytest.raises(BadInput, match="x.jpg: does not decode as an image"):
        read(tmp_path / "data")
    assert not started


def test_every_suffix_that_is_listed_has_its_format_among_those_that_are_read():
    Image.init()
    for suffix in SUFFIXES & Image.EXTENSION.keys():
        assert Image.EXTENSION[suffix] in FORMATS, suffix


def test_bytes_of_no_format_do_not_decode_and_are_no_fault_of_ours(tmp_path):
    """Each format that is listed is asked: one that this Pillow lacks would be a KeyError."""
    folder = tmp_path / "data" / "red"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"no image at all")
    with pytest.raises(BadInput, match="x.png: does not decode as an image: (?!.*(KeyError|MPO))"):
        read(tmp_path / "data")
