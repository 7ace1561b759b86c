"""Standard streams that are closed, full or not read: exit codes of the table, no traceback, and
nothing of others between the results."""

import json
import os
import subprocess
import sys

import pytest
from support.command import COMMAND, ENVIRONMENT, pnc
from support.handmade import make_clone, make_target, snapshot

from pnc_cli.streams import libraries_apart

CODES = {0, 1, 2, 3, 4, 70, 130}


@pytest.fixture
def files(tmp_path):
    target = make_target(tmp_path / "t.safetensors")
    make_clone(tmp_path / "c.safetensors", target)
    return tmp_path


def shell(line, cwd):
    """Runs ``line`` in bash; ``$pnc`` is the command, and PIPESTATUS of it is the code."""
    pnc = " ".join(COMMAND)
    ran = subprocess.run(
        ["bash", "-c", f'pnc="{pnc}"; {line}; exit ${{PIPESTATUS[0]}}'],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ran.stderr and "Exception ignored" not in ran.stderr, ran.stderr
    assert ran.returncode in CODES - {70}
    return ran


INJECT = "inject t.safetensors c.safetensors -o p.safetensors"


@pytest.mark.parametrize(
    "line, code",
    [
        ("$pnc frob --json | true", 2),
        ("$pnc frob 2>&1 | true", 2),
        ("$pnc info no.safetensors --json | true", 3),
        ("$pnc --help >/dev/full", 2),
        ("$pnc info --help >/dev/full", 2),
        ("$pnc --version >/dev/full", 2),
        ("$pnc info --schema >/dev/full", 2),
        ("$pnc info c.safetensors >/dev/full", 2),
        ("$pnc info c.safetensors --json >/dev/full", 2),
        ("$pnc frob --json >/dev/full", 2),
        ("$pnc frob 2>/dev/full", 2),
        ("$pnc >/dev/full 2>&1", 2),
        ("$pnc frob --json 2>&-", 2),
        ("$pnc info no.safetensors >/dev/full 2>/dev/full", 3),
        ("$pnc frob >&- 2>&- <&-", 2),
        (f"$pnc {INJECT} 2>&-", 0),
        (f"$pnc {INJECT} 2>/dev/full", 0),
        (f"$pnc {INJECT} <&-", 0),
        ("$pnc info c.safetensors 2>&- <&-", 0),
    ],
)
def test_codes_are_those_of_the_table(files, line, code):
    assert shell(line, files).returncode == code


def test_a_closed_standard_output_is_refused_before_any_work(files):
    before = snapshot(files)
    ran = shell(f"$pnc {INJECT} >&-", files)
    assert ran.returncode == 2
    assert "pnc: error: standard output is closed\n  try: send it to /dev/null" in ran.stderr
    assert snapshot(files) == before


def test_a_full_standard_output_is_named(files):
    ran = shell("$pnc info c.safetensors >/dev/full", files)
    assert "standard output cannot be written: No space left on device" in ran.stderr


def test_closed_streams_do_not_give_their_numbers_to_files(files):
    """A file that got number 2 would have the notes in it."""
    shell(f"$pnc {INJECT} 2>&- <&-", files)
    assert pnc("eject", "p.safetensors", "-o", "back.safetensors", cwd=files).code == 0
    assert (files / "back.safetensors").read_bytes() == (files / "t.safetensors").read_bytes()


def test_json_is_whole_where_standard_error_is_closed(files):
    ran = shell("$pnc info no.safetensors --json 2>&-", files)
    assert json.loads(ran.stdout)["error"]["code"] == "bad_input"


@pytest.mark.parametrize("end", ["<&-", "</dev/null"])
def test_a_plan_from_a_standard_input_with_nothing_in_it(files, end):
    arguments = "t.safetensors t.safetensors --data . --plan - -o new.safetensors"
    ran = shell(f"$pnc clone {arguments} {end}", files)
    assert ran.returncode == 3
    assert "standard input: is empty, expected a plan" in ran.stderr
    assert "try: pnc search SRC TGT --data DATA -o -" in ran.stderr


@pytest.mark.parametrize("package, get", [("torch", "torch"), ("timm", "timm"), ("PIL", "pillow")])
def test_a_package_that_is_not_there_is_named(files, package, get):
    (files / "without").mkdir()
    (files / "without" / f"{package}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    )
    (files / "data").mkdir()
    env = {"PYTHONPATH": f"{files / 'without'}{os.pathsep}{os.getcwd()}"}
    ran = pnc("eval", "t.safetensors", "--data", "data", "--json", cwd=files, env=env)
    assert ran.code == 2, ran.err
    assert ran.json["error"]["code"] == "usage"
    assert f"pnc eval needs {package}, which cannot be imported" in ran.err
    assert f"try: pip install {get}, in the environment of" in ran.err
    assert pnc("info", "c.safetensors", cwd=files, env=env).code == 0  # file work needs none


LOUD = """
import os, sys, warnings, logging
from pnc_cli.report import Report
report = Report("eval", as_json=True, quiet=QUIET)
with report.progress() as progress:
    print("a library prints")
    print("and warns", file=sys.stderr)
    os.write(1, b"C code prints\\n")
    os.write(2, b"C code warns\\n")
    warnings.warn("careful")
    logging.getLogger("x").warning("logged")
    os.system("echo a child prints")
report.note("a note")
report.result({"figure": 1}, "text")
"""


@pytest.mark.parametrize("quiet", [False, True])
def test_what_libraries_print_stays_out_of_the_results_and_under_q_unsaid(quiet):
    ran = subprocess.run(
        [sys.executable, "-c", LOUD.replace("QUIET", str(quiet))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert json.loads(ran.stdout) == {"schema": "pnc.eval/1", "ok": True, "figure": 1}
    if quiet:
        assert ran.stderr == ""
    else:
        said = (
            "a library prints",
            "and warns",
            "C code prints",
            "C code warns",
            "a note",
            "a child",
        )
        assert all(text in ran.stderr for text in said)


def test_streams_are_themselves_again_after_an_error(capfd):
    with pytest.raises(ZeroDivisionError), libraries_apart(quiet=True):
        print("unsaid")
        raise ZeroDivisionError
    print("said")
    os.write(2, b"said too\n")
    assert capfd.readouterr() == ("said\n", "said too\n")
