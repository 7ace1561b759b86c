"""README.md: the lines of Python in it run as they stand."""

import hashlib
import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(pair, tmp_path, monkeypatch):
    """A folder with the files that the README speaks of."""
    for name in ("source.safetensors", "source.json", "target.safetensors", "target.json"):
        (tmp_path / name).write_bytes((pair.folder / name).read_bytes())
    for name in ("train", "test"):
        (tmp_path / name).symlink_to(pair.folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_of_python_do_the_whole_journey(folder, capsys):
    assert len(BLOCKS) == 1
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "['yellow', 'purple']" in out
    assert "['red', 'green', 'blue', 'yellow', 'purple']" in out
    files = [folder / f"{n}.safetensors" for n in ("target", "restored")]
    assert len({hashlib.sha256(f.read_bytes()).hexdigest() for f in files}) == 1
