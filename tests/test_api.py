"""From Python: the functions do what the commands do, with ``str`` or ``Path``, and print nothing."""

import doctest
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import timm
from support.command import ENVIRONMENT, pnc_forked
from support.handmade import make_clone, make_target, sha256

import pnc_cli
import pnc_cli.given
from pnc_cli.errors import BadInput, Incompatible, PncError, UsageError
from pnc_cli.manifest import Manifest, Patched, parse
from pnc_cli.plan import Plan

FUNCTIONS = [n for n in pnc_cli.__all__ if n != "__version__"]
IN_A_ROW = ["search", "clone", "inject", "evaluate", "load", "info", "eject"]  # each uses the last


@pytest.fixture(scope="module")
def there(pair, tmp_path_factory):
    """A folder with the pair's checkpoints, ``train`` and ``test``, and nothing else."""
    folder = tmp_path_factory.mktemp("python")
    for name in ("source.safetensors", "source.json", "target.safetensors", "target.json"):
        (folder / name).write_bytes((pair.folder / name).read_bytes())
    for name in ("train", "test"):
        (folder / name).symlink_to(pair.folder / name)
    return folder


@pytest.fixture(scope="module")
def cloned(there):
    """The plan and the manifest of a clone made from Python, and what was told meanwhile."""
    told, seen = [], []
    plan = pnc_cli.search(
        there / "source.safetensors",
        str(there / "target.safetensors"),
        data=there / "train",
        output=str(there / "plan.json"),
        tap=["layer1", "layer2"],
        cut="layer2",
        share=0.5,
        limit_per_class=8,
        note=told.append,
        progress=lambda what, done, total: seen.append(what),
    )
    manifest = pnc_cli.clone(
        str(there / "source.safetensors"),
        there / "target.safetensors",
        data=str(there / "train"),
        output=there / "c.safetensors",
        plan=plan,
        name="py",
        epochs=1,
        limit_per_class=8,
        note=told.append,
    )
    return plan, manifest, told, seen


@pytest.fixture(scope="module")
def patched(there, cloned):
    return pnc_cli.inject(
        str(there / "target.safetensors"), there / "c.safetensors", output=there / "p.safetensors"
    )


def test_search_and_clone_return_what_they_write(there, cloned):
    plan, manifest, *_ = cloned
    assert parse((there / "plan.json").read_bytes(), Plan, "plan.json") == plan
    copied = [c for c in plan.candidates if not c.place.is_head_only]
    assert {c.cut for c in copied} == {"layer2"} and {c.share for c in copied} == {0.5}
    assert len(plan.candidates) == len(copied) + 1
    assert not plan.candidates[plan.chosen].place.is_head_only
    assert parse((there / "c.json").read_bytes(), Manifest, "c.json") == manifest
    assert (manifest.name, manifest.labels) == ("py", ["yellow", "purple"])
    assert manifest.tap.position == plan.candidates[plan.chosen].tap


def test_the_callbacks_are_told_what_the_command_says(there, cloned, capfd):
    *_, told, seen = cloned
    assert told[0] == "source: resnet18, 3 classes (source.safetensors)"
    assert any(line.startswith("position: target 'layer") for line in told)
    assert "reading images" in seen
    pnc_cli.clone(
        there / "source.safetensors",
        there / "target.safetensors",
        data=there / "train",
        plan=there / "plan.json",
        epochs=0,
        limit_per_class=5,
    )
    assert capfd.readouterr() == ("", "")


def test_the_bytes_are_those_of_the_command(there, cloned, tmp_path):
    ran = pnc_forked(
        "clone",
        "source.safetensors",
        "target.safetensors",
        *("--data", "train", "--plan", "plan.json", "--name", "py"),
        *("--epochs", "1", "--limit-per-class", "8", "-o", tmp_path / "c.safetensors"),
        cwd=there,
    )
    assert ran.code == 0, ran.err
    for name in ("c.safetensors", "c.json"):
        assert (tmp_path / name).read_bytes() == (there / name).read_bytes()


def test_without_an_output_nothing_is_written(there, cloned):
    before = sorted(there.iterdir())
    options = dict(tap="layer2", cut="layer2", share=1, epochs=0, limit_per_class=5)
    manifest = pnc_cli.clone(
        there / "source.safetensors",
        there / "target.safetensors",
        data=there / "train",
        classes="purple",
        no_originals=True,
        max_bytes=10**6,
        **options,
    )
    assert manifest.labels == ["purple"] and manifest.method.original_images == 0
    assert sorted(there.iterdir()) == before


def test_evaluate_takes_a_file_a_clone_on_top_or_a_loaded_network(there, cloned, patched):
    notes = []
    a = pnc_cli.evaluate(there / "p.safetensors", data=there / "test", latency=True)
    b = pnc_cli.evaluate(
        str(there / "target.safetensors"),
        data=str(there / "test"),
        clone=there / "c.safetensors",
        note=notes.append,
    )
    model = pnc_cli.load(there / "target.safetensors", [str(there / "c.safetensors")])
    c = pnc_cli.evaluate(model, data=there / "test")
    assert b == c and a.latency_ms.ratio > 0
    assert (b.images, b.original_accuracy, b.locality) == (100, a.original_accuracy, a.locality)
    assert [cost.name for cost in b.clones] == ["py"] and b.clones[0].macs > 0
    assert b.classes_without_images == [] and len(notes) == 1  # which folders are used
    assert b.below({"joint_accuracy": 0.0, "locality": 1.01}) == ["locality"]
    with pytest.raises(UsageError, match="a loaded network was given"):
        pnc_cli.evaluate(model, data=there / "test", arch="resnet18")


def test_evaluate_names_what_it_has_no_images_of(there, patched, tmp_path):
    (tmp_path / "red").symlink_to((there / "test").resolve() / "red")
    notes = []
    result = pnc_cli.evaluate(there / "p.safetensors", data=tmp_path, note=notes.append)
    assert result.classes_without_images == ["green", "blue", "yellow", "purple"]
    assert notes[1:] == [
        "  clone classes without a folder: yellow, purple",
        "  original classes without a folder: green, blue",
    ]
    assert result.below({"clone_accuracy": 0.0}) == ["clone_accuracy"]  # nothing can tell


def test_a_loaded_network_works_with_timms_transforms(there, patched):
    model = pnc_cli.load(str(there / "p.safetensors"))
    assert model.label_names == ["red", "green", "blue", "yellow", "purple"]
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 32)


def test_recalibration_tells_what_it_gave(there, cloned, tmp_path):
    gains, notes = [], []
    patched = pnc_cli.inject(
        there / "target.safetensors",
        [there / "c.safetensors"],
        output=tmp_path / "p.safetensors",
        data=there / "train",
        limit_per_class=5,
        rename=None,
        recalibrated=gains.append,
        note=notes.append,
    )
    assert isinstance(patched, Patched) and gains[0].after <= gains[0].before
    assert notes[-1].startswith("recalibrated together: ")


@pytest.mark.parametrize("given", [str, Path], ids=["str", "Path"])
def test_file_functions_take_either(tmp_path, given):
    target = make_target(tmp_path / "t.safetensors")
    clones = [
        make_clone(tmp_path / f"{n}.safetensors", target, seed=i, name=n, labels=[label])
        for i, (n, label) in enumerate([("a", "lion"), ("b", "dog")])
    ]
    out, back = given(tmp_path / "p.safetensors"), given(tmp_path / "q.safetensors")
    patched = pnc_cli.inject(
        given(target), [given(c) for c in clones], output=out, rename={"dog": "wolf"}
    )
    assert [c.labels for c in patched.clones] == [["lion"], ["wolf"]]
    assert pnc_cli.info(out).document["kind"] == "patched checkpoint"
    left = pnc_cli.eject(out, output=back, name="a")
    assert [c.name for c in left.clones] == ["b"]
    assert pnc_cli.eject(out, output=back, name=["a", "b"], force=True) is None
    assert sha256(Path(back)) == sha256(target)


@pytest.mark.parametrize(
    "kind, call",
    [
        (BadInput, lambda d: pnc_cli.info(d / "nothing.safetensors")),
        (BadInput, lambda d: pnc_cli.load(d / "nothing.safetensors")),
        (UsageError, lambda d: pnc_cli.eject(d / "p.safetensors", output=d / "p.safetensors")),
        (UsageError, lambda d: _clone(d, output=d / "no" / "c.safetensors")),
        (UsageError, lambda d: _clone(d, name="a.b")),
        (UsageError, lambda d: _clone(d, device="nothing")),
        (BadInput, lambda d: _clone(d, plan=d / "target.json")),
        (Incompatible, lambda d: _clone(d, classes=["lion"])),
        (Incompatible, lambda d: _clone(d, plan=_another(d))),
    ],
)
def test_errors_are_of_one_tree(there, patched, kind, call):
    before = sorted(there.iterdir())
    with pytest.raises(kind) as caught:
        call(there)
    assert isinstance(caught.value, PncError)
    assert sorted(there.iterdir()) == before


def _clone(folder, **options):
    files = (folder / "source.safetensors", folder / "target.safetensors")
    return pnc_cli.clone(*files, **{"data": folder / "train", **options})


def _another(folder):
    plan = parse((folder / "plan.json").read_bytes(), Plan, "plan.json")
    return msgspec.structs.replace(plan, source_sha256="0" * 64)


def test_every_example_runs(pair, tmp_path, monkeypatch):
    assert sorted(IN_A_ROW) == sorted(FUNCTIONS)
    for name in ("source.safetensors", "source.json", "target.safetensors", "target.json"):
        (tmp_path / name).write_bytes((pair.folder / name).read_bytes())
    for name in ("train", "test"):
        (tmp_path / name).symlink_to(pair.folder / name)
    monkeypatch.chdir(tmp_path)
    for name in IN_A_ROW:
        example = doctest.DocTestFinder(recurse=False).find(getattr(pnc_cli, name), name)[0]
        assert example.examples, f"{name} has no example"
        assert doctest.DocTestRunner().run(example).failed == 0


def test_a_command_and_its_function_are_called_alike():
    from pnc_cli.cli import COMMANDS

    beside = {
        "as_json",
        "quiet",
        "top",
        "schema",
        "fail_under",
        "fail_over",
    }  # how it is printed or judged
    told = {"progress", "note", "matched", "recalibrated"}
    for command in COMMANDS.values():
        options = set(inspect.signature(command).parameters) - beside
        function = getattr(pnc_cli, command.__name__)
        assert set(inspect.signature(function).parameters) - told == options, command.__name__


def test_the_package_lists_its_functions_and_no_module_is_called_like_one():
    assert {*FUNCTIONS} <= {*dir(pnc_cli)}
    assert not {*FUNCTIONS} & {m.name for m in pkgutil.iter_modules(pnc_cli.__path__)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pnc_cli.nothing  # noqa: B018
    assert (Path(pnc_cli.__path__[0]) / "py.typed").exists()


def test_file_functions_import_no_torch(tmp_path):
    target = make_target(tmp_path / "t.safetensors")
    make_clone(tmp_path / "a.safetensors", target, name="a", labels=["lion"])
    code = """if True:
        import sys, pnc_cli
        assert not {"torch", "timm", "pnc_cli.api"} & {*sys.modules}, "import pnc_cli"
        pnc_cli.inject("t.safetensors", "a.safetensors", output="p.safetensors")
        pnc_cli.info("p.safetensors")
        pnc_cli.eject("p.safetensors", output="q.safetensors")
        pnc_cli.search, pnc_cli.clone, pnc_cli.evaluate, pnc_cli.load
        assert not {"torch", "timm", "numpy"} & {*sys.modules}, "file work"
    """
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_how_long_it_takes_is_said_before_where_that_is_worth_knowing(there, monkeypatch):
    monkeypatch.setattr(pnc_cli.given, "WORTH_SAYING", 0.0)
    told = []
    pnc_cli.search(
        there / "source.safetensors",
        there / "target.safetensors",
        data=there / "train",
        tap="layer1",
        cut="layer1",
        limit_per_class=6,
        note=told.append,
        progress=lambda what, done, total: told.append(what),
    )
    [said] = [k for k, text in enumerate(told) if text.startswith("a pass of both networks")]
    assert said < told.index("looking at the images")
