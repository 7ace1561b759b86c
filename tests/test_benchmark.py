"""The benchmark's harness, on the digits: what it writes, and that it goes on where it was."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("sklearn")

RIVALS = [
    "target alone",
    "source alone",
    "both, calibrated",
    "linear probe",
    "linear probe, all rows refitted",
    "fine-tuning with replay",
]
if importlib.util.find_spec("peft"):
    RIVALS.append("LoRA")
SHARES = [
    "average_accuracy",
    "original_accuracy",
    "clone_accuracy",
    "joint_accuracy",
    "locality",
    "right_to_wrong",
    "calibration_error",
    "target_accuracy",
]


def run(folder: Path, *args: str) -> str:
    command = [
        sys.executable,
        "-m",
        "examples.benchmark",
        str(folder / "tiny.json"),
        "--out",
        str(folder / "out"),
        "--cache",
        str(folder / "cache"),
        "--threads",
        "1",
        *args,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A small scenario on the digits, run once: the folder, the rows and what was printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    sys.path.insert(0, str(ROOT))
    from examples.digits import write_images

    write_images(folder)
    network = {
        "architecture": "resnet18",
        "model_args": {"channels": [8, 16, 32, 64]},
        "input_size": [3, 32, 32],
        "epochs": 10,
    }
    scenario = {
        "title": "tiny",
        "images_per_class": 20,
        "seeds": [0, 1],
        "test_images": 300,
        "steps": 8,
        "train": ["train"],
        "test": ["test"],
        "flip": False,
        "methods": RIVALS,
        "target": "{cache}/target.safetensors",
        "sources": [{"checkpoint": "{cache}/source.safetensors", "classes": ["6", "7", "8", "9"]}],
        "networks": [
            {
                **network,
                "checkpoint": "{cache}/target.safetensors",
                "classes": list("012345"),
                "seed": 1,
            },
            {
                **network,
                "checkpoint": "{cache}/source.safetensors",
                "classes": list("456789"),
                "seed": 2,
            },
        ],
        "pnc": [
            {"label": "pnc", "max_macs": 0.5, "epochs": 1, "taps": ["layer1"], "cuts": ["layer1"]}
        ],
    }
    (folder / "tiny.json").write_text(json.dumps(scenario))
    printed = run(folder)
    return folder, rows(folder), printed


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out/results.jsonl").read_text().splitlines()]


def of(made: list[dict], method: str) -> list[dict]:
    return [r for r in made if r["method"] == method]


def test_every_method_has_a_row_for_every_seed(ran):
    _, made, printed = ran
    wanted = {(m, s) for m in [*RIVALS, "pnc"] for s in (0, 1)}
    assert {(r["method"], r["seed"]) for r in made} == wanted
    assert len(made) == len(wanted) == sum("tiny@20 seed" in line for line in printed.splitlines())


def test_figures_are_shares_and_costs_are_positive(ran):
    for r in ran[1]:
        for name in SHARES:
            assert r[name] is None or 0 <= r[name] <= 1, (r["method"], name)
        if r["average_accuracy"] is not None:
            middle = (r["original_accuracy"] + r["clone_accuracy"]) / 2
            assert r["average_accuracy"] == pytest.approx(middle, abs=1e-5)
        assert min(r["seconds"], r["cpu_seconds"], r["peak_megabytes"], r["added_parameters"]) >= 0
        assert r["latency"] is None or r["latency"] > 0


def test_undoing_gives_the_targets_accuracy_back_and_costs_what_it_costs(ran):
    made = ran[1]
    for r in made:
        assert r["forgetting_undone"] in (None, 0.0), r["method"]
    for r in of(made, "fine-tuning with replay"):
        assert r["bytes_to_undo"] >= 4 * r["target_parameters"]
    for r in of(made, "pnc"):
        assert r["bytes_to_undo"] == 0 and r["forgetting"] == 0.0 and r["bytes_shipped"] > 0
        assert r["added_macs"] <= 0.5 * r["target_macs"]


def test_the_references_are_what_they_are_called(ran):
    made = ran[1]
    for r in of(made, "target alone"):
        assert r["locality"] == 1.0 and r["clone_accuracy"] == 0.0
        assert r["original_accuracy"] == r["target_accuracy"] > 0.9
    for r in of(made, "source alone"):
        assert r["average_accuracy"] is None and r["clone_accuracy"] > 0.8
    for r in of(made, "both, calibrated"):
        assert r["added_macs"] >= r["target_macs"] and r["average_accuracy"] > 0.8


def test_a_second_run_makes_only_what_is_lost(ran):
    folder, made, _ = ran
    path = folder / "out/results.jsonl"
    whole = path.read_bytes()
    kept = [r for r in made if (r["method"], r["seed"]) != ("linear probe", 1)]
    cut_short = '{"scenario": "ti'
    path.write_text("".join(json.dumps(r) + "\n" for r in kept) + cut_short)
    try:
        printed = run(folder)
        *before, _, again = path.read_text().splitlines()
    finally:
        path.write_bytes(whole)
    made_now = [line for line in printed.splitlines() if " seed " in line]
    assert len(made_now) == 1 and "tiny@20 seed 1 linear probe" in made_now[0]
    assert [json.loads(line) for line in before] == kept
    for name in SHARES:
        assert json.loads(again)[name] == of(made, "linear probe")[1][name]


def test_tables_and_plots_are_written(ran):
    folder, _, printed = ran
    table = (folder / "out/RESULTS.md").read_text()
    assert "## tiny, 20 images a class" in table and "| linear probe |" in table and "±" in table
    if importlib.util.find_spec("matplotlib"):
        for name in ("cost", "locality"):
            picture = (folder / f"out/plots/tiny-{name}.png").read_bytes()
            assert picture.startswith(b"\x89PNG")
    else:
        assert "no plots" in printed


def test_a_scenario_without_its_files_is_skipped_with_a_word(tmp_path):
    command = [
        sys.executable,
        "-m",
        "examples.benchmark",
        "cifar10",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped cifar10: no " in done.stdout


def test_means_are_over_scenarios_whatever_their_amounts(ran, tmp_path):
    """A scenario run at several amounts of images is one of the others over again."""
    from examples.benchmark.report import write

    out = tmp_path / "out"
    out.mkdir()
    worse = [
        {**r, "scenario": "amounts", "images_per_class": n, "average_accuracy": 0.1}
        for r in ran[1]
        for n in (10, 50)
        if r["average_accuracy"] is not None
    ]
    for rows_of in ([], worse):
        lines = [json.dumps(r) for r in (*ran[1], *rows_of)]
        (out / "results.jsonl").write_text("".join(line + "\n" for line in lines))
        write(out)
        text = (out / "RESULTS.md").read_text()
        gain, kept = [line for line in text.splitlines() if line.startswith("| **mean**")]
        figures = [
            w
            for line in (gain, kept)
            for w in line.split()
            if w.startswith("**") and w != "**mean**"
        ]
        if not rows_of:
            alone = figures
    assert figures == alone and "amounts, 10 a class" in text and "several amounts" in gain
    assert (out / "plots" / "amounts.png").read_bytes().startswith(b"\x89PNG")
