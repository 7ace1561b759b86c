"""Checkpoints in the forms people have them, through the real command: bare, in folders, wrapped,
of half or mixed precision."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import pnc, pnc_forked
from support.handmade import make_target, sha256
from support.networks import draw_folder, make_network, preprocess

import pnc_cli
from pnc_cli.placement.probe import probe_images

QUICK = ["--epochs", "0", "--limit-per-class", "6", "-q", "--tap", "maxpool", "--cut", "layer1"]
X = preprocess(probe_images(8, (3, 32, 32), seed=3))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder of bare files of untrained networks, and of ``images`` of their classes 0 and 1."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("test_resnet", "mobilenetv3_small_050", "mobilenetv3_small_075"):
        save_file(make_network(name, 2).state_dict(), folder / f"{name}.safetensors")
    narrow = make_network("test_resnet", 2, channels=[32, 40, 40, 80])
    save_file(narrow.state_dict(), folder / "narrow.safetensors")
    make_target(folder / "alien.safetensors")
    drawn = draw_folder(folder / "drawn", ["red", "blue"], 2)
    for i, label in enumerate(("red", "blue")):
        shutil.move(drawn / label, folder / "images" / str(i))
    return folder


def test_a_bare_file_is_recognised(bare):
    ran = pnc("info", "test_resnet.safetensors", cwd=bare)
    assert (ran.code, ran.err) == (0, "") and "test_resnet (from its tensors)" in ran.out
    ran = pnc("eval", "test_resnet.safetensors", "--data", "images", "--json", cwd=bare)
    assert ran.code == 0 and ran.json["images"] == 4
    assert "assumed as in timm's test_resnet.r160_in1k: input_size 3x160x160" in ran.err


AMBIGUOUS = ["mobilenetv3_small_075", "tf_mobilenetv3_small_075"]


@pytest.mark.parametrize(
    "flag, command",
    [
        ("--arch", ["eval", "FILE", "--data", "images"]),
        (
            "--source-arch",
            ["clone", "FILE", "test_resnet.safetensors", "--data", "images", "-o", "c.safetensors"],
        ),
        ("--target-arch", ["search", "test_resnet.safetensors", "FILE"]),
    ],
)
@pytest.mark.parametrize(
    "file, message, hint",
    [
        (
            f"{AMBIGUOUS[0]}.safetensors",
            "2 timm architectures have just these tensors, and nothing says which it is: "
            "mobilenetv3_small_075 (conv_stem Conv2d); tf_mobilenetv3_small_075 (conv_stem Conv2dSame)",
            "FLAG mobilenetv3_small_075, or the one it is; or write mobilenetv3_small_075.json",
        ),
        (
            "narrow.safetensors",
            "its tensors have the names of test_resnet, but other shapes: tensor "
            "'layer2.0.conv1.weight' has [40, 32, 3, 3], that of test_resnet [48, 32, 3, 3]",
            "FLAG test_resnet with its model_args",
        ),
        ("alien.safetensors", "none has tensors of these names", "FLAG NAME, or write alien.json"),
    ],
    ids=["ambiguous", "near", "alien"],
)
def test_what_is_not_recognised_is_refused_with_the_flag_to_give(
    bare, file, message, hint, flag, command
):
    before = sorted(bare.iterdir())
    ran = pnc_forked(*[file if a == "FILE" else a for a in command], "--json", cwd=bare)
    assert ran.code == 3
    error = ran.json["error"]
    assert error["code"] == "bad_input" and error["message"].startswith(f"{file}: ")
    assert message in error["message"] and hint.replace("FLAG", flag) in error["hint"]
    assert ran.err.startswith(f"pnc: error: {error['message']}") and error["hint"] in ran.err
    assert sorted(bare.iterdir()) == before


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_the_flag_settles_it(bare, name):
    ran = pnc_forked(
        "eval", f"{AMBIGUOUS[0]}.safetensors", "--arch", name, "--data", "images", cwd=bare
    )
    assert ran.code == 0 and f"assumed as in timm's {name}" in ran.err


def test_the_flags_say_what_a_file_of_other_sizes_is(bare):
    asked = ["eval", "narrow.safetensors", "--data", "images", "--arch", "test_resnet", "--args"]
    ran = pnc_forked(*asked, '{"channels": [32, 40, 40, 80]}', "--json", cwd=bare)
    assert ran.code == 0 and ran.json["images"] == 4 and "error" not in ran.err
    ran = pnc_forked(*asked, "[32, 40]", cwd=bare)
    assert ran.code == 2 and "--args: expected a JSON object" in ran.err


FORMS = {
    "module.": lambda n, t: ("module." + n, t),
    "state_dict._orig_mod.": lambda n, t: ("state_dict._orig_mod." + n, t),
    "half": lambda n, t: (n, t.half()),
    "bfloat16": lambda n, t: (n, t.bfloat16()),
    "mixed": lambda n, t: (n, t.bfloat16() if "conv" in n else t.half() if "bn" in n else t),
    "wrapped and mixed": lambda n, t: ("model." + n, t.half() if "conv" in n else t.double()),
}


def reform(path, output, form):
    """The checkpoint ``path`` in another form, in timm's layout of a folder."""
    output.mkdir()
    save_file(dict(form(n, t) for n, t in load_file(path).items()), output / "model.safetensors")
    config = json.loads(path.with_suffix(".json").read_text())
    (output / "config.json").write_text(json.dumps(config))
    return output / "model.safetensors"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_wrapped_and_mixed_checkpoints_in_folders_are_cloned_run_and_given_back(
    made, tmp_path, form
):
    source = reform(made.source, tmp_path / "s", form)
    target = reform(made.target, tmp_path / "t", form)
    ran = pnc_forked(
        "clone", "s", "t", "--data", made.train, "-o", "c.safetensors", *QUICK, cwd=tmp_path
    )
    assert ran.code == 0, ran.err
    ran = pnc("inject", "t", "c.safetensors", "-o", "p.safetensors", cwd=tmp_path)
    assert ran.code == 0, ran.err
    check_target_is_kept(tmp_path / "p.safetensors", target)
    check_module_is_a_slice(tmp_path / "c.safetensors", source)
    ran = pnc_forked("eval", "p.safetensors", "--data", made.test, "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    ran = pnc("eject", "p.safetensors", "-o", "o.safetensors", cwd=tmp_path)
    assert ran.code == 0 and sha256(tmp_path / "o.safetensors") == sha256(target)


def check_target_is_kept(patched, target):
    """Its tensors have their names, types and bytes in the file, and its logits are its own."""
    before, after = load_file(target), load_file(patched)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert (
            after[name].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()
            if tensor.ndim
            else True
        )
    alone, model = pnc_cli.load(target.parent), pnc_cli.load(patched)
    with torch.no_grad():
        z = model(X)
        assert z.dtype == torch.float32 and z.isfinite().all()
        assert z[:, : alone.num_classes].numpy().tobytes() == alone(X).numpy().tobytes()


def check_module_is_a_slice(clone, source):
    """The copied numbers and their types are the source's, found under the names in its file."""
    manifest = json.loads(clone.with_suffix(".json").read_text())
    prefix = manifest["source"].get("tensor_prefix", "")
    tensors, of_source = load_file(clone), load_file(source)
    assert manifest["module"]
    for name, how in manifest["module"].items():
        expected = of_source[prefix + name]
        for kept in how["kept"]:
            expected = expected.index_select(kept["axis"], torch.tensor(kept["indices"]))
        assert tensors[f"module.{name}"].dtype == expected.dtype, name
        assert torch.equal(tensors[f"module.{name}"], expected), name


def test_a_clone_for_the_plain_file_fits_the_wrapped_one(made, tmp_path):
    wrapped = reform(made.target, tmp_path / "t", FORMS["module."])
    ran = pnc("inject", "t", made.clone, "-o", "p.safetensors", cwd=tmp_path)
    assert ran.code == 0, ran.err
    with torch.no_grad():
        z = pnc_cli.load(tmp_path / "p.safetensors")(X)
        assert z.numpy().tobytes() == pnc_cli.load(made.patched)(X).numpy().tobytes()
    check_target_is_kept(tmp_path / "p.safetensors", wrapped)


def test_quantised_numbers_are_refused_with_the_tensor_named(made, tmp_path):
    reform(
        made.target,
        tmp_path / "t",
        lambda n, t: (n, t.to(torch.int8) if n == "conv1.weight" else t),
    )
    ran = pnc_forked("eval", "t", "--data", made.test, cwd=tmp_path)
    assert ran.code == 3
    assert "tensor 'conv1.weight' holds int8 numbers, expected floating-point ones" in ran.err
