"""The measuring of real sizes, on a tiny pair: what its rows say, and that a command which was ended
or failed is shown as such."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.benchmark.real_table import read_rows
from examples.benchmark.watched import Limits, run

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
ONE_PAIR = "--options=--tap input --cut input --share 1 --resolution 1"
MB = 10**6


def measure(folder, *args):
    """Runs the script; its rows by command, and the table."""
    rows = folder / "rows.jsonl"
    command = [sys.executable, "-m", "examples.benchmark.real_sizes", "--pairs", "tiny"]
    options = ["--rows", str(rows), "--work", str(folder / "work"), "--threads", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [*command, *options, *args], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {(r.label, r.command): r for r in read_rows(rows)}, rows.with_suffix(".md").read_text()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    few = ("--images", "4", ONE_PAIR)
    measure(folder, "--label", "after", "--only", "search", *few)
    measure(folder, "--label", "before", "--only", "search", "clone", *few, "--limit-mb", "60")
    return folder


def test_a_row_has_the_command_s_cost_in_plain_passes_and_its_memory(measured):
    rows, text = measure(measured, "--report")
    row = rows["after", "search"]
    assert row.ran.done and row.ran.cpu > 0 and row.ran.wall > 0
    assert row.plain.images == 4 * (5 + 10)
    assert row.passes == row.ran.cpu / row.plain.cpu > 1
    assert row.plain.images * 64 * 64 * 3 < row.plain.held < row.plain.resident
    assert row.ran.peak > row.above > row.above_plain
    assert row.ran.peak > row.ran.peak_own > 0
    assert 0 < row.of_aim < row.passes
    assert f"| {row.passes:.1f} |" in text


def test_a_command_beyond_the_limit_is_killed_and_said_to_be(measured):
    rows, text = measure(measured, "--report")
    for command in ("search", "clone"):
        row = rows["before", command]
        assert row.ran.outcome == "killed" and row.ran.code < 0
        assert row.ran.peak > 60 * MB and row.found == {}
        assert f"> {row.passes:.1f}, **killed at" in text
    assert text.index("before: CPU / F") < text.index("after: CPU / F")


def test_rows_that_are_there_are_not_measured_again(measured):
    before = (measured / "rows.jsonl").read_bytes()
    args = ("--label", "after", "--only", "search", "--images", "4", ONE_PAIR, "--missing")
    measure(measured, *args)
    assert (measured / "rows.jsonl").read_bytes() == before


PASSES, STARTS, SLACK = 3, 3, 2
START = "import timm, torch"  # some seconds: what a command spends before it does anything


@pytest.mark.slow
def test_a_search_takes_a_few_plain_passes_at_real_size(tmp_path):
    """Two ResNet-50 at 224 pixels and so few images that all which is allowed as little work is done.

    Measured when this was written: 6.3 F, where PASSES F + STARTS starts are 4.8 F.
    """
    new, old = ([f"{kind}{k}" for k in range(5)] for kind in ("new", "old"))
    source, target, data = (tmp_path / n for n in ("s.safetensors", "t.safetensors", "train"))
    each = 4
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def cpu(name, *command):
        """Processor seconds of a command, and what it printed."""
        ran = run(
            [sys.executable, *command],
            folder=tmp_path,
            name=name,
            environment=env,
            limits=Limits(seconds=600),
        )
        assert ran.done, f"{name}, {ran.outcome}: {ran.said}"
        return ran.cpu, (tmp_path / f"{name}.out").read_text()

    def job(name, **arguments):
        _, text = cpu(name, "-m", "examples.benchmark.plainly", name, json.dumps(arguments))
        return json.loads(text)

    def network(path, labels, seed):
        how = {"architecture": "resnet50", "args": {}, "size": 224, "folder": str(data)}
        return {"path": str(path), "labels": labels, "seed": seed, **how}

    drawn = {"folder": str(data), "labels": [*new, *old], "each": each, "size": 224}
    job("pair", drawn=drawn, networks=[network(source, new, 0), network(target, old, 1)])
    files = {"source": str(source), "target": str(target), "data": str(data)}
    plain = job("passes", **files, classes=new, each=each)
    assert plain["images"] == each * len(drawn["labels"])
    start, _ = cpu("start", "-c", START)
    spent, _ = cpu("search", "-m", "pnc_cli", "search", source, target, "--data", data, "--json")
    assert spent <= SLACK * (PASSES * plain["cpu"] + STARTS * start)


@pytest.mark.slow
def test_eval_beside_a_loop_and_a_large_target(tmp_path):
    rows, _ = measure(tmp_path, "--only", "eval", "--eval-images", "45", "--workers", "1")
    row = rows["after", "eval"]
    assert row.found["images"] == row.found["loop_images"] == 45
    assert row.found["accuracy"] == pytest.approx(row.found["loop_accuracy"], abs=1e-6)
    assert row.speed > 0 and row.plain_speed > 0
    rows, text = measure(tmp_path, "--pairs", "large", "--parameters", "2e6", "--dtype", "BF16")
    assert rows["after", "inject"].ran.done and rows["after", "inject"].beside.wall > 0
    assert rows["after", "eject"].found["same"] == 1
    loaded = rows["after", "load"]
    assert loaded.ran.peak > loaded.found["before"] > 0 and loaded.found["bytes"] > 2 * 2e6
    assert "the same file" in text and "**" not in text


@pytest.mark.parametrize(
    "script, limits, outcome",
    [
        ("print(1)", Limits(), "done"),
        ("raise SystemExit('no such thing')", Limits(), "failed"),
        ("x = b'1' * 400_000_000; raise SystemExit(3)", Limits(), "failed"),
        ("x = b'1' * 400_000_000; import time; time.sleep(60)", Limits(300 * MB), "killed"),
        ("import time; time.sleep(60)", Limits(seconds=0.5), "timed out"),
    ],
)
def test_how_a_command_ended_and_what_it_held(tmp_path, script, limits, outcome):
    command = [sys.executable, "-c", script]
    ran = run(command, folder=tmp_path, name="it", environment=os.environ, limits=limits)
    assert ran.outcome == outcome and ran.wall < 30
    assert (ran.code == 0) == ran.done
    if "400" in script:  # it may be killed before it has all of them
        assert ran.peak > (limits.memory or 400 * MB)
    if "no such" in script:
        assert ran.said == "no such thing"
