"""files/atomic.py: outputs appear complete under their names, or not at all."""

import errno
import os
import signal

import pytest
from support.handmade import snapshot

from pnc_cli.errors import UsageError
from pnc_cli.files import atomic
from pnc_cli.files.atomic import Outputs, check_output
from pnc_cli.files.inputs import reading, remember


def write(folder, *, force=False, text=b"new", names=("main", "sidecar"), fail=None):
    with Outputs(force=force) as outputs:
        for name in names:
            outputs.open(folder / name).write(text)
        if fail:
            raise fail


def test_all_outputs_appear(tmp_path):
    write(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "main": b"new",
        "sidecar": b"new",
    }


def test_outputs_have_the_mode_that_the_umask_says(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path)
    finally:
        os.umask(old)
    assert (tmp_path / "main").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit()], ids=repr)
@pytest.mark.parametrize("force", [False, True])
def test_any_exception_leaves_the_folder_as_it_was(tmp_path, error, force):
    if force:
        write(tmp_path, text=b"old")
    before = snapshot(tmp_path)
    with pytest.raises(type(error)):
        write(tmp_path, force=force, fail=error)
    assert snapshot(tmp_path) == before


def test_nothing_appears_before_all_is_written(tmp_path):
    with Outputs() as outputs:
        outputs.open(tmp_path / "main").write(b"x")
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
    assert [p.name for p in tmp_path.iterdir()] == ["main"]


def failing(name, nth, error):
    """A replacement for ``os.<name>`` that fails at its ``nth`` call."""
    real, calls = getattr(os, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == nth:
            raise error
        return real(*args, **kwargs)

    return call


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "step, nth, error, raised",
    [
        ("fsync", 1, FULL, UsageError),
        ("fsync", 2, FULL, UsageError),
        ("fsync", 2, KeyboardInterrupt(), KeyboardInterrupt),
        ("link", 1, KeyboardInterrupt(), KeyboardInterrupt),
        ("link", 2, KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_at_the_last_steps_leaves_the_folder_as_it_was(
    tmp_path, monkeypatch, step, nth, error, raised
):
    monkeypatch.setattr(os, step, failing(step, nth, error))
    with pytest.raises(raised):
        write(tmp_path)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_rename_leaves_the_folder_as_it_was(tmp_path, monkeypatch, nth):
    monkeypatch.setattr(os, "link", failing("link", nth, OSError(errno.EPERM, "no links")))
    monkeypatch.setattr(os, "rename", failing("rename", 1, FULL))
    with pytest.raises(UsageError, match="No space left on device; nothing was left behind"):
        write(tmp_path)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("step, nth", [("fsync", 1), ("fsync", 2), ("replace", 1)])
def test_a_failed_replacement_leaves_the_old_files(tmp_path, monkeypatch, step, nth):
    write(tmp_path, text=b"old")
    before = snapshot(tmp_path)
    monkeypatch.setattr(os, step, failing(step, nth, OSError(errno.EIO, "Input/output error")))
    with pytest.raises(UsageError, match="cannot be written: Input/output error"):
        write(tmp_path, force=True)
    assert snapshot(tmp_path) == before


def test_an_old_sidecar_never_stands_beside_a_new_main_file(tmp_path, monkeypatch):
    write(tmp_path, text=b"old")
    monkeypatch.setattr(
        os, "replace", failing("replace", 2, OSError(errno.EIO, "Input/output error"))
    )
    with pytest.raises(UsageError):
        write(tmp_path, force=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"main": b"new"}


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(UsageError, match="exists"):
        with Outputs() as outputs:
            outputs.open(tmp_path / "main").write(b"ours")
            (tmp_path / "main").write_bytes(b"theirs")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"main": b"theirs"}


def test_without_hard_links_files_are_renamed(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path)
    assert sorted(snapshot(tmp_path)) == ["main", "sidecar"]


def test_a_symlink_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path, force=True, names=["link"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def make(path, kind):
    if kind == "file":
        path.write_bytes(b"old")
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "kind, force, message",
    [
        ("file", False, "exists"),
        ("folder", True, "is a folder"),
        ("fifo", True, "not a regular file"),
    ],
)
def test_what_is_in_the_way_is_refused(tmp_path, kind, force, message):
    path = make(tmp_path / "out", kind)
    with pytest.raises(UsageError, match=message):
        write(tmp_path, force=force, names=["out"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist") as e:
        check_output(tmp_path / "no" / "out")
    assert e.value.hint.startswith("mkdir -p ")


@pytest.mark.parametrize("alias", ["same", "symlink", "hard link"])
def test_an_input_is_never_an_output_even_with_force(tmp_path, alias):
    given = make(tmp_path / "input", "file")
    output = {"same": given, "symlink": tmp_path / "s", "hard link": tmp_path / "h"}[alias]
    if alias == "symlink":
        output.symlink_to(given)
    if alias == "hard link":
        os.link(given, output)
    with reading(), pytest.raises(UsageError, match="is an input"):
        remember(given)
        check_output(output, force=True)
    assert given.read_bytes() == b"old"


def test_one_name_for_two_outputs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        write(tmp_path, names=["main", "main"])
    assert snapshot(tmp_path) == {}


def test_a_long_name_gets_a_temporary_name_that_is_not_too_long(tmp_path):
    write(tmp_path, names=["n" * 255])
    assert [p.name for p in tmp_path.iterdir()] == ["n" * 255]
    assert atomic.check_output(tmp_path / "other").name == "other"


# strays -----------------------------------------------------------------------------------------


@pytest.fixture(params=["nameless", "hidden"])
def way(request, monkeypatch):
    """How a file is kept until it is complete."""
    if request.param == "hidden":
        monkeypatch.setattr(atomic, "NAMELESS", 0)
    elif not atomic.NAMELESS:
        pytest.skip("this system has no files without a name")
    return request.param


def test_a_file_has_no_name_until_it_is_complete(tmp_path, way):
    with Outputs() as outputs:
        outputs.open(tmp_path / "main").write(b"x")
        assert len(list(tmp_path.iterdir())) == (0 if way == "nameless" else 1)
    assert [p.name for p in tmp_path.iterdir()] == ["main"]


@pytest.mark.parametrize("force", [False, True])
def test_both_ways_write_the_same(tmp_path, way, force):
    if force:
        write(tmp_path, text=b"old")
    write(tmp_path, force=force)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "main": b"new",
        "sidecar": b"new",
    }


def stray(folder, name="main", suffix="tmp"):
    path = folder / f".{name}.0123456789ab.{suffix}"
    path.write_bytes(b"left by a process that was killed")
    return path


@pytest.mark.parametrize("suffix", ["tmp", "old"])
@pytest.mark.parametrize("name", ["main", "sidecar", "n" * 255])
def test_what_a_dead_process_left_is_removed_by_the_next_run(tmp_path, way, name, suffix):
    left = stray(tmp_path, name[:200], suffix)
    write(tmp_path, names=[name])
    assert not left.exists()


def test_what_a_living_process_writes_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "NAMELESS", 0)
    with pytest.raises(UsageError, match="exists"):
        with Outputs() as first:
            first.open(tmp_path / "main").write(b"first")
            [hidden] = tmp_path.iterdir()
            atomic._hidden.clear()  # as another process would see it
            write(tmp_path)
            assert hidden.exists()
    assert (tmp_path / "main").read_bytes() == b"new"


@pytest.mark.parametrize(
    "name", [".other.0123456789ab.tmp", ".main.0123456789ab.tmp.txt", ".main.tmp", "main.old"]
)
def test_files_of_others_stay(tmp_path, name):
    (tmp_path / name).write_bytes(b"theirs")
    write(tmp_path)
    assert (tmp_path / name).read_bytes() == b"theirs"


def test_a_name_of_many_bytes_gets_a_hidden_name_that_is_not_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "NAMELESS", 0)
    write(tmp_path, names=["é" * 127])
    assert [p.name for p in tmp_path.iterdir()] == ["é" * 127]


def test_a_signal_while_a_file_is_made_comes_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "NAMELESS", 0)
    real = os.open

    def interrupted(*args, **kwargs):
        fd = real(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return fd

    with pytest.raises(KeyboardInterrupt):
        with Outputs() as outputs:
            monkeypatch.setattr(os, "open", interrupted)
            outputs.open(tmp_path / "main")
    monkeypatch.undo()
    assert snapshot(tmp_path) == {}


def test_it_is_said_what_was_replaced_before_it_failed(tmp_path, monkeypatch):
    write(tmp_path, text=b"old")
    monkeypatch.setattr(os, "replace", failing("replace", 2, FULL))
    with pytest.raises(UsageError, match="only main was replaced, and is complete"):
        write(tmp_path, force=True)
