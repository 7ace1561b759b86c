"""The command line, through the real command: streams, exit codes, and what it does not import."""

import json
import os
import subprocess
import sys

import pytest
from support.command import COMMAND, ENVIRONMENT, pnc
from support.handmade import make_clone, make_target, sha256, snapshot

import pnc_cli

COMMANDS = ["search", "clone", "inject", "eject", "eval", "info"]


@pytest.fixture
def files(tmp_path):
    """A folder with t.safetensors and two clones for it."""
    target = make_target(tmp_path / "t.safetensors")
    make_clone(tmp_path / "a.safetensors", target, name="a", labels=["cat", "lion"])
    make_clone(tmp_path / "b.safetensors", target, seed=5, name="b", labels=["dog"])
    return tmp_path


def test_inject_info_and_eject_in_a_row(files):
    before = snapshot(files)
    ran = pnc(
        "inject",
        "t.safetensors",
        "a.safetensors",
        "b.safetensors",
        "-o",
        "p.safetensors",
        cwd=files,
    )
    assert (ran.code, ran.out) == (
        0,
        "p.safetensors: 2 original classes + cat, lion, dog  (clones: a, b)\n",
    )
    assert ran.err.startswith("next: pnc eval p.safetensors --data DATA")
    ran = pnc("info", "p.safetensors", cwd=files)
    assert ran.code == 0 and "clone 'a': cat, lion" in ran.out and ran.err == ""
    ran = pnc("eject", "p.safetensors", "--name", "a", "-o", "q.safetensors", cwd=files)
    assert (ran.code, ran.out) == (0, "q.safetensors: left: b\n")
    ran = pnc("eject", "q.safetensors", "-o", "back.safetensors", cwd=files)
    assert (
        ran.out == f"back.safetensors: the target again, sha256 {sha256(files / 't.safetensors')}\n"
    )
    assert (files / "back.safetensors").read_bytes() == (files / "t.safetensors").read_bytes()
    assert before.items() <= snapshot(files).items()


def test_json_prints_one_object_and_the_same_bytes_every_time(files):
    args = (
        "inject",
        "t.safetensors",
        "a.safetensors",
        "-o",
        "p.safetensors",
        "--force",
        "--json",
        "-q",
    )
    first, second = pnc(*args, cwd=files), pnc(*args, cwd=files)
    assert first == second
    assert first.err == ""
    assert first.json == {
        "schema": "pnc.inject/1",
        "ok": True,
        "output": "p.safetensors",
        "target_sha256": sha256(files / "t.safetensors"),
        "clones": [{"name": "a", "classes": ["cat", "lion"]}],
    }


def test_quiet_silences_stderr_alone(files):
    ran = pnc("inject", "t.safetensors", "a.safetensors", "-o", "p.safetensors", "-q", cwd=files)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("p.safetensors: ")


def test_force_replaces_an_output_and_its_sidecar(files):
    args = ("inject", "t.safetensors", "-o", "p.safetensors", "--force")
    assert pnc(*args, "a.safetensors", cwd=files).code == 0
    assert pnc(*args, "b.safetensors", cwd=files).code == 0
    assert json.loads((files / "p.json").read_text())["clones"][0]["name"] == "b"


def test_rename_gives_a_class_another_label(files):
    ran = pnc(
        "inject",
        "t.safetensors",
        "a.safetensors",
        "-o",
        "p.safetensors",
        "--rename",
        "cat=tom",
        "--json",
        cwd=files,
    )
    assert ran.json["clones"] == [{"name": "a", "classes": ["tom", "lion"]}]


def test_version_and_help_go_to_stdout(tmp_path):
    ran = pnc("--version", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, f"pnc {pnc_cli.__version__}\n", "")
    ran = pnc("--help", cwd=tmp_path)
    assert ran.code == 0 and ran.err == ""
    assert all(f"\n  {c} " in ran.out for c in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_its_json_and_quiet_options(tmp_path, command):
    ran = pnc(command, "--help", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert "--json" in ran.out and "--quiet" in ran.out


def test_the_console_script_is_the_same_command():
    from importlib.metadata import entry_points

    [script] = entry_points(group="console_scripts", name="pnc")
    assert script.load() is __import__("pnc_cli.cli", fromlist=["main"]).main


@pytest.mark.parametrize(
    "env",
    [
        {"GITHUB_ACTIONS": "true"},
        {"FORCE_COLOR": "1", "NO_COLOR": "1"},
        {"GITHUB_ACTIONS": "true", "NO_COLOR": "1"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "args, code", [(["--help"], 0), (["info", "--help"], 0), (["info", "--nonsense"], 2)], ids=str
)
def test_no_colours_into_files(tmp_path, env, args, code):
    ran = pnc(*args, cwd=tmp_path, env=env)
    assert ran.code == code
    assert "\x1b" not in ran.out + ran.err


def test_labels_of_any_script_pass_through_a_c_locale(files):
    make_clone(files / "c.safetensors", files / "t.safetensors", name="c", labels=["猫\x1b[31m"])
    env = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    ran = pnc("info", "c.safetensors", cwd=files, env=env)
    assert ran.code == 0
    assert "\\u732b\\x1b[31m" in ran.out


def test_the_json_schema_is_printed_as_json(tmp_path):
    ran = pnc("info", "--schema", cwd=tmp_path)
    assert ran.code == 0
    assert {"Manifest", "Patched", "Plan"} <= set(ran.json["$defs"])


@pytest.mark.parametrize("args", [["info", "t.safetensors"], ["info", "--schema"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_traceback(files, args):
    """Like ``pnc info FILE | true``, with little output and with more than a buffer of it."""
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [*COMMAND, *args], cwd=files, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (130, b"")


HEAVY = {"torch", "timm", "numpy", "torchvision", "safetensors", "PIL", "rich"}


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["clone", "--help"],
        ["inject", "t.safetensors", "a.safetensors", "-o", "p.safetensors"],
        ["eject", "given.safetensors", "-o", "back.safetensors"],
        ["info", "given.safetensors"],
        ["info", "t.safetensors"],
        ["info", "--schema"],
    ],
    ids=" ".join,
)
def test_file_work_imports_no_torch(files, args):
    pnc("inject", "t.safetensors", "a.safetensors", "-o", "given.safetensors", cwd=files)
    code = (
        "import sys; from pnc_cli.cli import run; code = run(sys.argv[1:]); "
        "print(code, *sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=files, capture_output=True, env=ENVIRONMENT
    )
    code, *modules = ran.stderr.decode().splitlines()[-1].split()
    assert code == "0"
    assert ("pnc_cli.files.opened" in modules) == (args[-1] != "--help")  # and help not even that
    assert HEAVY & set(modules) == set()
