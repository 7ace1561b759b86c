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


def written(folder: Path, made: list[dict]) -> str:
    """The tables of the rows ``made``."""
    from examples.benchmark.report import write

    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    write(folder)
    return (folder / "RESULTS.md").read_text()


def means_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| **mean")]


def test_means_are_over_the_scenarios_that_the_fair_rivals_were_run_in(ran, tmp_path):
    tuned = of(ran[1], "fine-tuning with replay")
    made = ran[1] + [{**r, "method": m} for r in tuned for m in ("LwF", "EWC")]
    text = written(tmp_path / "out", made)
    [against, kept] = alone = means_of(text)
    assert "**mean of 1**" in against and "**" in kept
    [line] = [line for line in text.splitlines() if line.startswith("| tiny, 20 |") and "+" in line]
    assert cells(line) == [c.strip("*") for c in cells(against)]
    others = [  # another question: not all rivals, and much worse
        {**r, "scenario": "amounts", "images_per_class": n, "average_accuracy": 0.1}
        for r in ran[1]
        for n in (10, 50)
        if r["average_accuracy"] is not None
    ]
    text = written(tmp_path / "out", made + others)
    assert means_of(text) == alone and "| amounts, 10 |" in text
    assert (tmp_path / "out" / "plots" / "amounts.png").read_bytes().startswith(b"\x89PNG")


def cells(line: str) -> list[str]:
    return [c.strip() for c in line.split("|")[3:]]


def test_rivals_of_other_rules_are_in_no_table(ran, tmp_path):
    old = [{k: v for k, v in r.items() if k != "version"} for r in ran[1]]
    text = written(tmp_path / "out", old)
    assert "| linear probe |" not in text and "| LoRA |" not in text
    assert "| target alone |" in text and "| pnc |" in text


def test_rows_of_another_target_do_not_stand_beside_the_newest(ran, tmp_path):
    other = [{**r, "target_accuracy": 0.123, "method": f"old {r['method']}"} for r in ran[1]]
    text = written(tmp_path / "out", other + ran[1])
    assert "| linear probe |" in text and "old linear probe" not in text


def test_settings_are_chosen_with_the_number_of_steps(ran):
    """The first seed chooses, within the budget; the others take over what it chose."""
    for method in (m for m in RIVALS if m in ("fine-tuning with replay", "LoRA")):
        first, second = of(ran[1], method)
        assert first["settings"] == second["settings"] and first["settings"]["steps"] in (3, 8)
        assert first["tuning_seconds"] > 5 * second["tuning_seconds"]  # reads what was chosen


def test_the_budget_follows_the_work_and_the_batch_the_images():
    from examples.benchmark.training import TRAINING, WORK, batch_of, budget

    assert batch_of(32, 32) == 50 and batch_of(64, 64) == 50 and batch_of(224, 224) == 16
    macs = 12_000_000
    assert budget(macs, 32, 32) * batch_of(32, 32) * TRAINING * macs == pytest.approx(
        WORK, rel=0.01
    )
    assert budget(300_000_000, 224, 224) == 500 and budget(1_000, 32, 32) == 1000
    assert budget(2 * macs, 32, 32) < budget(macs, 32, 32) < budget(macs // 2, 32, 32)


@pytest.mark.parametrize(("count", "batch"), [(7, 50), (100, 50), (105, 50), (140, 50), (1, 50)])
def test_batches_are_as_many_as_steps_and_none_is_a_scrap(count, batch):
    import torch

    from examples.benchmark.training import drawings

    drawn = list(drawings(count, 9, batch, torch.Generator().manual_seed(0)))
    assert len(drawn) == 9 and min(map(len, drawn)) * 2 >= min(batch, count)
    assert len(torch.cat(drawn).unique()) >= min(count, 8 * batch)


def test_a_linear_probe_of_all_rows_knows_the_strength_of_its_regularisation(ran):
    for r in of(ran[1], "linear probe, all rows refitted"):
        assert r["settings"]["decay"] > 0 and r["forgetting_undone"] == 0.0
        assert r["added_macs"] < 0.01 * r["target_macs"]
        assert r["bytes_shipped"] > of(ran[1], "linear probe")[0]["bytes_shipped"]
