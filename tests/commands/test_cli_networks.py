"""The commands that need torch, through the real command: search, clone, eval, and their errors."""

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from dataclasses import asdict

import pytest
from safetensors.torch import load_file
from support.command import COMMAND, ENVIRONMENT, pnc, pnc_forked
from support.handmade import sha256, snapshot
from support.networks import RESNET, draw_folder

import pnc_cli
from pnc_cli.errors import UsageError

QUICK = ["--epochs", "0", "--limit-per-class", "6"]
TTA = ["--tta", "mirror"]


@pytest.fixture
def files(made, tmp_path):
    """Copies of source, target, clone and patched, and a small folder of images, ``data``."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("source", "target", "clone", "patched"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(made.folder / (name + suffix), folder)
    draw_folder(folder / "data", ["red", "green", "yellow", "purple"], 6)
    return folder


def test_search_then_clone_then_eval_then_eject(made, files):
    ran = pnc_forked(
        "search",
        "source.safetensors",
        "target.safetensors",
        "--data",
        made.train,
        "-o",
        "plan.json",
        cwd=files,
    )
    assert ran.code == 0 and ran.out.split("\n")[0].split()[:2] == ["row", "tap"]
    plan = json.loads((files / "plan.json").read_text())
    chosen = plan["candidates"][plan["chosen"]]
    assert plan["classes"] == made.new and plan["data"] == "images"
    assert [c["score"] for c in plan["candidates"]] == sorted(
        (c["score"] for c in plan["candidates"]), reverse=True
    )

    ran = pnc_forked(
        "clone",
        "source.safetensors",
        "target.safetensors",
        "--plan",
        "plan.json",
        "--data",
        made.train,
        "-o",
        "new.safetensors",
        "--epochs",
        "1",
        "--json",
        cwd=files,
    )
    manifest = ran.json["manifest"]
    assert (manifest["tap"]["position"], manifest["cut"]["position"]) == (
        chosen["tap"],
        chosen["cut"],
    )
    assert manifest == json.loads((files / "new.json").read_text())

    ran = pnc_forked(
        "eval",
        "target.safetensors",
        "--clone",
        "new.safetensors",
        "--data",
        made.test,
        "--json",
        cwd=files,
    )
    found = ran.json
    assert (
        found["images"] == 100 and found["skipped"] == 0 and found["classes_without_images"] == []
    )
    assert (
        found["clone_accuracy"] > 0.8 and found["branch_accuracy"] > 0.9 and found["locality"] > 0.9
    )
    assert found["target_accuracy"] > 0.9
    assert found["clones"][0]["bytes"] == manifest["cost"]["bytes"]


def test_a_patched_file_and_a_target_with_the_clone_on_top_are_worth_the_same(made, tmp_path):
    alone = pnc_forked(
        "eval", made.target, "--clone", made.clone, "--data", made.test, "--json", cwd=tmp_path
    )
    patched = pnc_forked("eval", made.patched, "--data", made.test, "--json", cwd=tmp_path)
    assert alone.code == 0 and alone.json == patched.json


def test_clones_answer_for_mirror_images_too_where_it_is_asked_for(made, tmp_path):
    args = ["eval", made.patched, "--data", made.test]
    plain = pnc_forked(*args, "--json", cwd=tmp_path)
    ran = pnc_forked(*args, *TTA, "--json", cwd=tmp_path)
    assert (plain.code, ran.code) == (0, 0), ran.err
    assert (plain.json["tta"], ran.json["tta"]) == (None, "mirror")
    same = ("images", "target_accuracy", "clones")
    assert {n: plain.json[n] for n in same} == {n: ran.json[n] for n in same}
    assert ran.json["calibration_error"] != plain.json["calibration_error"]
    assert ran.json["clone_accuracy"] > 0.8 and ran.json["locality"] > 0.9
    model = pnc_cli.load(made.patched, tta="mirror")
    told = asdict(pnc_cli.evaluate(model, data=made.test))
    assert {n: ran.json[n] for n in ("tta", "per_class", "calibration_error")} == {
        n: told[n] for n in ("tta", "per_class", "calibration_error")
    }
    with pytest.raises(UsageError, match="a loaded network was given"):
        pnc_cli.evaluate(model, data=made.test, tta="mirror")
    assert (
        "tta mirror: target and clones run twice an image"
        in pnc_forked(*args, *TTA, cwd=tmp_path).out
    )


def test_averaging_that_changes_nothing_is_said(made, tmp_path):
    ran = pnc_forked("eval", made.target, "--data", made.test, *TTA, "--json", cwd=tmp_path)
    assert ran.code == 0 and ran.json["tta"] == "mirror"
    assert "--tta mirror changes nothing: the checkpoint has no clones" in ran.err


def test_search_without_data_says_so_and_pipes_its_plan(made, tmp_path):
    pair = [made.source, made.target]
    ran = pnc_forked("search", *pair, "-o", "-", "--tap", "layer1", "--cut", "layer1", cwd=tmp_path)
    assert ran.code == 0 and "judged on generated images" in ran.err
    assert json.loads(ran.out)["data"] == "generated"
    piped = pnc(
        "clone",
        *pair,
        "--plan",
        "-",
        "--data",
        made.train,
        "-o",
        "c.safetensors",
        *QUICK,
        cwd=tmp_path,
        stdin=ran.out.encode(),
    )
    assert piped.code == 0, piped.err
    assert json.loads((tmp_path / "c.json").read_text())["tap"]["position"] == "layer1"


def test_clone_images_alone_are_enough_and_that_is_announced(made, tmp_path):
    ran = pnc_forked(
        "clone",
        made.source,
        made.target,
        "--data",
        made.train,
        "--no-originals",
        "-o",
        "c.safetensors",
        *QUICK,
        cwd=tmp_path,
    )
    assert ran.code == 0 and "no images of original classes" in ran.err
    manifest = json.loads((tmp_path / "c.json").read_text())
    assert manifest["method"]["original_images"] == 0
    classes = len(manifest["classes"])
    join = load_file(tmp_path / "c.safetensors")
    assert len(join["join.weight"]) == classes and join["join.gating"][0] == 0


def test_a_cloned_class_may_get_another_label(files):
    os.rename(files / "data" / "yellow", files / "data" / "golden")
    ran = pnc_forked(
        "clone",
        "source.safetensors",
        "target.safetensors",
        "--classes",
        "yellow=golden",
        "--data",
        "data",
        "-o",
        "c.safetensors",
        *QUICK,
        cwd=files,
    )
    assert ran.code == 0, ran.err
    [cloned] = json.loads((files / "c.json").read_text())["classes"]
    assert cloned == {"name": "golden", "source_name": "yellow", "source_index": 1, "position": 0}


@pytest.mark.parametrize(
    "gate, code",
    [
        (("--fail-under", "joint_accuracy=0.5", "--fail-over", "latency=100"), 0),
        (("--fail-under", "joint_accuracy=0.5", "--fail-over", "parameters=0"), 1),
        (("--fail-over", "latency=0ms"), 1),
    ],
)
def test_bounds_make_eval_a_gate(made, tmp_path, gate, code):
    args = ["eval", made.patched, "--data", made.test, *gate]
    plain, ran = pnc_forked(*args, cwd=tmp_path), pnc_forked(*args, "--json", cwd=tmp_path)
    assert plain.code == ran.code == code
    assert plain.out.startswith("on 100 images")
    assert ran.json["ok"] is (code == 0) and ran.json["images"] == 100
    if code:
        assert ran.json["error"]["code"] == "check_failed"
        assert ran.json["error"]["message"].endswith("at most 0")
        assert ran.json["error"]["message"] in ran.err


def spoil_image(data):
    return lambda d: (d / "data" / "yellow" / "3.png").write_bytes(data)


def document(name, **changes):
    def edit(folder):
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def both(*steps):
    return lambda d: [step(d) for step in steps]


def plan(**changes):
    def write(folder):
        candidate = {
            "tap": "layer1",
            "cut": "layer1",
            "share": 1.0,
            "score": 0,
            "branch_accuracy": None,
            "joint_accuracy": None,
            "average_accuracy": None,
            "locality": None,
            "fit": 0,
            "parameters": 1,
            "macs": 1,
            "bytes": 1,
        }
        document = {
            "schema": "pnc.plan/1",
            "source_sha256": sha256(folder / "source.safetensors"),
            "target_sha256": sha256(folder / "target.safetensors"),
            "classes": ["yellow"],
            "data": "images",
            "images": 1,
            "original_images": 1,
            "target_macs": 1,
            "target_parameters": 1,
            "seed": 0,
            "chosen": 0,
            "candidates": [candidate],
            **changes,
        }
        (folder / "plan.json").write_text(json.dumps(document))

    return write


def nothing(folder):
    pass


CLONE = [
    "clone",
    "source.safetensors",
    "target.safetensors",
    "--data",
    "data",
    "-o",
    "out.safetensors",
    *QUICK,
]
SEARCH = ["search", "source.safetensors", "target.safetensors"]
EVAL = ["eval", "patched.safetensors", "--data", "data"]
PLANNED = [*CLONE, "--plan", "plan.json"]
ELSEWHERE = [*CLONE[:4], "other", *CLONE[5:]]

TABLE = {
    # classes
    "a class the source does not know": (nothing, [*CLONE, "-c", "pink"], 4, "knows no class 'pink'", "its classes are: blue, yellow, purple"),
    "a label the target has": (nothing, [*CLONE, "-c", "blue"], 4, "the target has a class 'blue' already", "--classes 'blue=blue_2'"),
    "a class named twice": (nothing, [*CLONE, "-c", "yellow,yellow"], 2, "names 'yellow' twice", None),
    "no class left to clone": (document("target", label_names=["blue", "yellow", "purple"]), CLONE, 4, "knows all classes", "--classes 'blue=blue_2'"),
    # images
    "no such folder": (nothing, ELSEWHERE, 3, "other: no such folder or tar", "one sub-folder a class"),
    "an empty folder": (lambda d: (d / "other").mkdir(), ELSEWHERE, 3, "other: no ", "one sub-folder a class"),
    "a folder of text": (both(lambda d: (d / "other" / "x").mkdir(parents=True), lambda d: (d / "other" / "x" / "a.txt").write_text("a")), ELSEWHERE, 3, "other: no ", "one sub-folder a class"),
    "a clone class without images": (lambda d: shutil.rmtree(d / "data" / "purple"), [*CLONE, "-c", "yellow,purple"], 3, "no images of clone class 'purple'", "found: green, red, yellow"),
    "an image that does not decode": (spoil_image(b"no image"), CLONE, 3, "yellow/3.png: does not decode as an image: no kind of image", "--skip-bad"),
    "the same in eval": (spoil_image(b""), EVAL, 3, "yellow/3.png: does not decode as an image: the file is empty", "--skip-bad"),
    # checkpoints
    "nothing says the architecture": (lambda d: (d / "source.json").unlink(), CLONE, 3, "nothing says which timm architecture", "--source-arch NAME"),
    "a hub address as flag": (nothing, [*CLONE, "--target-arch", "hf-hub:x/y"], 3, "'hf-hub:x/y' is not a plain timm name", None),
    "a hub address in a document": (document("source", architecture="hf-hub:x/y"), CLONE, 3, "'hf-hub:x/y' is not a plain timm name", None),
    "model_args that fetch": (document("target", model_args={**RESNET, "pretrained": True}), CLONE, 3, "may not set 'pretrained'", None),
    "model_args that fetch, as flag": (nothing, [*CLONE, "--source-args", '{"checkpoint_path": "x"}'], 3, "may not set 'checkpoint_path'", None),
    "another architecture": (document("target", architecture="resnet34"), CLONE, 3, "does not hold a resnet34", "check the architecture"),
    "an unknown architecture": (document("target", architecture="resnet181"), CLONE, 3, "has no architecture 'resnet181'", "did you mean resnet18"),
    "a clone as source": (nothing, ["search", "clone.safetensors", "target.safetensors"], 3, "is a clone, not a checkpoint", None),
    "a clone for another target": (nothing, ["eval", "source.safetensors", "--clone", "clone.safetensors", "--data", "data"], 4, "tensor 'bn1.bias' is F32", "give the target it was made for"),
    "a clone on top of itself": (nothing, [*EVAL, "--clone", "clone.safetensors"], 4, "is in the checkpoint already", "pnc eject patched.safetensors --name"),
    # positions and plans
    "an unknown tap": (nothing, [*CLONE, "--tap", "layer9"], 4, "'layer9' is not a position", "positions are: input"),
    "an impossible budget": (nothing, [*CLONE, "--max-macs", "0"], 4, "within the budget", "raise --max-macs"),
    "a plan for another target": (plan(target_sha256="0" * 64), PLANNED, 4, "the plan was made for another target", "run pnc search"),
    "a plan of a newer version": (plan(schema="pnc.plan/2"), PLANNED, 3, "this pnc reads 'pnc.plan/1'", "upgrade pnc"),
    "a plan with an unknown field": (plan(colour="red"), PLANNED, 3, "colour", None),
    "no such plan": (nothing, PLANNED, 3, "plan.json: cannot be read", None),
    # usage
    "a bad name": (nothing, [*CLONE, "--name", "a/b"], 2, "--name 'a/b'", "letters, digits"),
    "a device that is not there": (nothing, [*SEARCH, "--device", "cuda:99"], 2, "--device cuda:99", "cpu works everywhere"),
    "an unknown figure": (nothing, [*EVAL, "--fail-under", "beauty=1"], 2, "no figure 'beauty'", "joint_accuracy"),
    "an averaging there is not": (nothing, [*EVAL, "--tta", "flip"], 2, "--tta 'flip'", "--tta mirror"),
    "a figure that is no number": (nothing, [*EVAL, "--fail-under", "locality=nan"], 2, "--fail-under 'locality=nan'", "--fail-under locality=0.5"),
    "an output that exists": (lambda d: (d / "out.safetensors").touch(), CLONE, 2, "out.safetensors: exists", "--force"),
    "an output in no folder": (nothing, [*SEARCH, "-o", "no/plan.json"], 2, "does not exist", "mkdir -p"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, args, code, message, hint", TABLE.values(), ids=TABLE)
def test_refused_and_nothing_written(files, spoil, args, code, message, hint):
    spoil(files)
    before = snapshot(files)
    ran = pnc_forked(*args, "--json", cwd=files)
    assert ran.code == code, ran.err
    fault = ran.json.pop("error")
    assert ran.json == {"schema": f"pnc.{args[0]}/1", "ok": False, "error": fault}
    assert message in fault["message"] and (hint is None or hint in fault["hint"])
    assert f"pnc: error: {fault['message']}\n" in ran.err
    assert snapshot(files) == before


@pytest.mark.parametrize("args", [CLONE, EVAL], ids=["clone", "eval"])
def test_images_that_do_not_decode_are_skipped_on_request(files, args):
    spoil_image(b"no image")(files)
    ran = pnc_forked(*args, "--skip-bad", cwd=files)
    assert ran.code == 0, ran.err
    assert "skipped 1 images that do not decode" in ran.err


def test_quiet_clones_in_silence(files):
    ran = pnc_forked(*CLONE, "-q", cwd=files)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("out.safetensors: clone 'yellow-purple' of yellow, purple\n")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_an_interrupted_clone_exits_130_and_leaves_nothing(files, sent):
    args = [*COMMAND, *CLONE[:-4], "--epochs", "100000", "--tap", "layer1", "--cut", "layer1"]
    before = snapshot(files)
    process = subprocess.Popen(args, cwd=files, env=ENVIRONMENT, stderr=subprocess.PIPE)
    for line in process.stderr:
        if line.startswith(b"position:"):  # the search is over, the refinement begins
            break
    time.sleep(0.2)
    process.send_signal(sent)
    err = process.communicate()[1]
    assert process.returncode == 130
    assert err == b"pnc: error: interrupted; nothing was left behind\n"
    assert snapshot(files) == before


def test_progress_is_drawn_on_a_terminal_without_colours_if_so_wished(files):
    ours, theirs = pty.openpty()
    env = {**ENVIRONMENT, "NO_COLOR": "1", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [*COMMAND, *EVAL], cwd=files, env=env, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    drawn = b""
    while process.poll() is None or not drawn:
        try:
            drawn += os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    os.close(ours)
    assert b"reading images" in drawn or b"evaluating" in drawn
    assert b"\x1b[3" not in drawn and b"\x1b[9" not in drawn
    assert b"\x1b" not in process.stdout.read()
