"""pyproject.toml and README.md: what is installed, under which name, with what."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_distribution_is_not_called_like_another_projects():
    assert re.search(r'^name = "partial-network-cloning"$', PYPROJECT, re.MULTILINE)
    assert 'pnc = "pnc_cli.cli:main"' in PYPROJECT  # the command and the package stay
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "`pnc-cli`" in readme and "cannot be installed together" in readme


def test_no_hint_would_replace_us_by_that():
    asking = [
        str(path)
        for path in (ROOT / "pnc_cli").rglob("*.py")
        if re.search(r"install[^\n]*pnc-cli", path.read_text("utf-8"))
    ]
    assert asking == []


def test_typer_is_new_enough():
    """With 0.26 ``pnc clone`` exits 1."""
    [bound] = re.findall(r'"typer>=(\d+)\.(\d+)"', PYPROJECT)
    assert tuple(map(int, bound)) >= (0, 28)
