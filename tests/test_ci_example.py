"""examples/ci-pipeline.yml: its steps, run as GitHub's runner does, fail when the gate does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.command import ENVIRONMENT

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ci-pipeline.yml"


def steps():
    """The shell steps that run pnc, by name."""
    job = yaml.safe_load(EXAMPLE.read_text("utf-8"))["jobs"]["clone"]
    return {s["name"]: s for s in job["steps"] if "name" in s and "run" in s}


@pytest.fixture(scope="module")
def runner(pair, tmp_path_factory):
    """A folder as the example wants it, and ``pnc`` on the PATH."""
    folder, tools = tmp_path_factory.mktemp("ckpt"), tmp_path_factory.mktemp("bin")
    for name in ("source", "target"):
        for suffix in (".safetensors", ".json"):
            (folder / (name + suffix)).write_bytes((pair.folder / (name + suffix)).read_bytes())
    (folder / "train").symlink_to(pair.train)
    shutil.copytree(pair.test, folder / "test")
    for image in (pair.test / "green").iterdir():  # of a wrong class: nothing is right about all
        shutil.copy(image, folder / "test" / "red" / f"wrong-{image.name}")
    root = EXAMPLE.parents[1]
    (tools / "pnc").write_text(
        f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -P -m pnc_cli "$@"\n'
    )
    (tools / "pnc").chmod(0o755)

    def run(script):
        path = tools / "step.sh"
        path.write_text(script)
        env = {**ENVIRONMENT, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", "-e", str(path)], cwd=folder, env=env, capture_output=True, text=True
        )

    made = run(steps()["search and clone"]["run"].replace("-q", "-q --limit-per-class 6"))
    assert made.returncode == 0, made.stderr
    run.folder = folder
    return run


def test_its_gate_fails_the_step_and_leaves_the_figures(runner):
    gate = steps()["gate"]["run"]
    assert "shell" not in steps()["gate"]  # so a runner uses `bash -e`, without pipefail
    strict = gate.replace("=0.70", "=0.99").replace("=0.85", "=0.99")
    assert strict != gate
    strict = strict.replace("right_to_wrong=0.10", "right_to_wrong=0")
    ran = runner(strict)
    assert ran.returncode == 1, ran.stderr
    assert "required 0.99" in ran.stderr
    assert json.loads((runner.folder / "eval.json").read_text())["error"]["code"] == "check_failed"
    easy = gate.replace("=0.85", "=0").replace("=0.70", "=0").replace("=0.10", "=1")
    ran = runner(easy)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((runner.folder / "eval.json").read_text())["ok"] is True


def test_its_other_steps_pass(runner):
    ran = runner(steps()["the patch comes off again"]["run"])
    assert ran.returncode == 0, ran.stderr


def test_no_gate_anywhere_loses_its_exit_code_in_a_pipe():
    """In the example, and in what the README shows."""
    readme = EXAMPLE.parents[1] / "README.md"
    for text in (EXAMPLE.read_text("utf-8"), readme.read_text("utf-8")):
        lines = text.replace("\\\n", " ").splitlines()
        commands = [line.strip() for line in lines if line.strip().startswith("pnc eval")]
        gates = [line for line in commands if "--fail-" in line]
        assert gates and not [line for line in gates if "|" in line]
