"""Files as timm, safetensors, accelerate, transformers and torch write them, by these very writers."""

import json
import shlex
import subprocess
import sys

import accelerate
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file, save_model
from support.networks import RESNET, make_network
from timm.models import save_for_hf

import pnc_cli
from pnc_cli.errors import BadInput
from pnc_cli.files.describe import describe
from pnc_cli.network.fitting import check_answers
from pnc_cli.network.load import load_network

LABELS = ["a", "b", "c"]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return make_network("resnet18", 3, **RESNET)


def document(path, architecture="resnet18", **fields):
    fields = {"architecture": architecture, "label_names": LABELS, **fields}
    path.write_text(json.dumps(fields))


def assert_answers(path, model, x=X):
    found = load_network(path)
    assert torch.equal(found.model(x), model(x))
    return found


def test_the_folder_that_timms_save_for_hf_writes(tmp_path, model):
    view = dict(input_size=(3, 32, 32), mean=(0.4,) * 3, std=(0.2,) * 3, crop_pct=1.0)
    save_for_hf(
        model,
        tmp_path,
        model_config={"label_names": LABELS},
        data_config=view,
        safe_serialization=True,
    )
    config = json.loads((tmp_path / "config.json").read_text())
    if "model_args" in config:  # timm of today
        assert config["model_args"]["num_classes"] == 3
    else:  # older ones
        document(tmp_path / "config.json", model_args=RESNET, pretrained_cfg={**view})
    found = assert_answers(tmp_path, model)
    assert found.labels == LABELS and found.input_size == (3, 32, 32)
    assert found.ref.preprocessing.mean == [0.4] * 3 and found.ref.model_args.keys() >= {"channels"}
    assert not {"num_classes", "in_chans"} & found.ref.model_args.keys()


@pytest.mark.parametrize(
    "args, message",
    [
        ({"num_classes": 4}, "classifier 'fc' has 3 classes, but num_classes says 4"),
        ({"in_chans": 1}, "'conv1' reads 3 channels, but in_chans in model_args says 1"),
        ({"num_classes": "3"}, "num_classes in model_args is '3'"),
        ({"in_chans": 0}, "in_chans in model_args is 0"),
    ],
)
def test_model_args_that_contradict_the_tensors_are_refused(tmp_path, model, args, message):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", label_names=None, model_args={**RESNET, **args})
    with pytest.raises(BadInput, match=message):
        load_network(tmp_path / "t.safetensors")


def test_two_statements_of_the_class_count_must_agree(tmp_path, model):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", num_classes=3, model_args={**RESNET, "num_classes": 5})
    with pytest.raises(BadInput, match="num_classes is 3 and num_classes in model_args is 5"):
        load_network(tmp_path / "t.safetensors")


def test_what_torch_compile_prefixes_is_looked_through(tmp_path, model):
    save_file(torch.compile(model).state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", model_args=RESNET)
    assert assert_answers(tmp_path / "t.safetensors", model).ref.tensor_prefix == "_orig_mod."


class Wrapper(torch.nn.Module):
    """As Lightning and transformers hold a network, under a name of their own."""

    def __init__(self, model, name):
        super().__init__()
        for part in name.split(".")[:-1]:
            self.add_module(part, inner := torch.nn.Module())
            inner.add_module(name.split(".")[-1], model)
            return
        self.add_module(name, model)


@pytest.mark.parametrize("name", ["timm_model", "backbone", "net.classifier"])
def test_any_prefix_that_all_tensors_share_is_looked_through(tmp_path, name):
    model = make_network("test_resnet", 3)
    path = tmp_path / "t.safetensors"
    save_file(Wrapper(model, name).state_dict(), path)
    assert "test_resnet (from its tensors)" in describe(path).text
    assert assert_answers(path, model).ref.tensor_prefix == f"{name}."


def test_what_accelerate_saves(tmp_path, model):
    accelerate.Accelerator(cpu=True).save_model(model, tmp_path)
    document(tmp_path / "config.json", model_args=RESNET)
    assert_answers(tmp_path, model)


def test_what_transformers_saves_of_a_timm_network(tmp_path):
    transformers = pytest.importorskip("transformers")
    names = {0: "cat", 1: "dog", 2: "bird"}
    config = transformers.TimmWrapperConfig(
        architecture="test_resnet", num_labels=3, id2label=names, label2id={}
    )
    wrapped = transformers.TimmWrapperForImageClassification(config).eval()
    wrapped.save_pretrained(tmp_path)
    found = assert_answers(tmp_path, wrapped.timm_model)
    assert found.labels == ["cat", "dog", "bird"]


@pytest.mark.parametrize("key", ["labels", "id2label"])
def test_class_names_under_other_writers_keys(tmp_path, model, key):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    named = LABELS if key == "labels" else dict(enumerate(LABELS))
    document(tmp_path / "t.json", label_names=None, model_args=RESNET, **{key: named})
    assert load_network(tmp_path / "t.safetensors").labels == LABELS


def test_a_network_of_transformers_own_is_called_that(tmp_path):
    save_file({"vit.embeddings.cls_token": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )
    with pytest.raises(BadInput, match="a 'vit' of transformers .ViTForImageClassification"):
        load_network(tmp_path)


def test_weights_without_batchnorms_counters(tmp_path):
    model = make_network("resnet26", 3)
    kept = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    model.load_state_dict(kept, strict=True)  # torch takes them
    save_file(kept, tmp_path / "t.safetensors")
    found = assert_answers(tmp_path / "t.safetensors", model)
    assert found.ref.architecture == "resnet26"  # from its tensors, no document


def test_tied_tensors_that_save_model_left_out(tmp_path):
    model = make_network("coat_tiny", 3, size=64, img_size=64)
    path = tmp_path / "t.safetensors"
    save_model(model, path)
    assert len(load_file(path)) < len(model.state_dict())
    document(path.with_suffix(".json"), "coat_tiny", model_args={"img_size": 64})
    assert_answers(path, model, torch.randn(2, 3, 64, 64))


def test_tensors_left_out_that_the_architecture_has_twice_are_refused(tmp_path, model):
    model.layer1[0].conv2.weight = model.layer1[0].conv1.weight
    save_model(model, tmp_path / "t.safetensors")
    document(tmp_path / "t.json", model_args=RESNET)
    with pytest.raises(BadInput, match="safetensors' save_model left out 'layer1.0.conv"):
        load_network(tmp_path / "t.safetensors")


def test_buffers_of_older_swins_are_named_and_passed_over(tmp_path):
    model = make_network("swin_tiny_patch4_window7_224", 3, size=224, embed_dim=24, depths=(1, 1))
    path = tmp_path / "t.safetensors"
    old = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
    save_file({**model.state_dict(), **old}, path)
    document(
        path.with_suffix(".json"),
        "swin_tiny_patch4_window7_224",
        model_args={"embed_dim": 24, "depths": [1, 1]},
    )
    found = assert_answers(path, model, torch.randn(2, 3, 224, 224))
    assert any("1 tensor without a part" in r and next(iter(old)) in r for r in found.remarks)
    assert next(iter(old)) in found.digests  # what the file is stays what inject compares


STRAYS = {"criterion.weight": (3,), "n_averaged": (), "val_acc.tp": (3,)}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_other_tensors_are_refused_by_name_and_the_hint_leaves_them_out(
    tmp_path, model, prefix, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    strays = {n: torch.zeros(shape) for n, shape in STRAYS.items()}
    save_file({prefix + n: t for n, t in model.state_dict().items()} | strays, "t.safetensors")
    document(tmp_path / "t.json", model_args=RESNET)
    with pytest.raises(BadInput, match="holds a resnet18") as e:
        load_network(tmp_path / "t.safetensors")
    assert all(f"'{n}'" in e.value.message for n in STRAYS)
    _, *rest = shlex.split(e.value.hint[e.value.hint.index("python -c") :])
    subprocess.run([sys.executable, *rest], check=True)
    (tmp_path / "t-network.json").write_text((tmp_path / "t.json").read_text())
    assert_answers(tmp_path / "t-network.safetensors", model)


def view(model):
    return timm.data.resolve_model_data_config(model)


@pytest.mark.parametrize("full", ["efficientnet_b0.ra4_e3600_r224_in1k", "resnet50.tv_in1k"])
def test_a_tags_preprocessing_is_that_of_the_tag(tmp_path, full):
    args = {} if "efficientnet" in full else {"layers": [1, 1, 1, 1]}
    model = timm.create_model(full, num_classes=3, **args)
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    expected = timm.data.resolve_model_data_config(model)
    got = pnc_cli.load(tmp_path / "t.safetensors", arch=full, args=args)
    assert view(got) == {k: list(v) if k in ("mean", "std") else v for k, v in expected.items()}
    default = pnc_cli.load(tmp_path / "t.safetensors", arch=full.partition(".")[0], args=args)
    assert view(default) != view(got)


def test_an_unknown_tag_is_refused_and_a_default_that_is_assumed_is_said(tmp_path, model):
    path = tmp_path / "t.safetensors"
    save_file(model.state_dict(), path)
    with pytest.raises(BadInput, match=r"no weights 'resnet18\.a9_in1k'") as e:
        load_network(path, architecture="resnet18.a9_in1k", model_args=RESNET)
    assert "did you mean resnet18.a" in e.value.hint
    [said] = load_network(path, architecture="resnet18", model_args=RESNET).remarks
    assert "assumed as in timm's resnet18.a1_in1k: input_size 3x224x224" in said
    document(path.with_suffix(".json"), "resnet18.tv_in1k", model_args=RESNET)
    assert load_network(path).remarks == ()


def test_pretrained_cfg_claims_nothing_of_timms_own_weights(tmp_path, model):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    found = pnc_cli.load(tmp_path / "t.safetensors", arch="resnet18.a1_in1k", args=RESNET)
    for network in (found, found.target):
        claims = {"hf_hub_id", "url", "license", "origin_url", "test_input_size", "test_crop_pct"}
        assert not claims & {k for k, v in network.pretrained_cfg.items() if v is not None}
        tested = timm.data.resolve_data_config({}, model=network, use_test_size=True)
        assert tested["input_size"] == timm.data.resolve_model_data_config(network)["input_size"]


@pytest.mark.parametrize(
    "name, current",
    [("tv_resnet50", "resnet50"), ("vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224")],
)
def test_deprecated_names_have_their_classes_in_the_file(tmp_path, name, current):
    args = {"layers": [1, 1, 1, 1]} if "resnet" in name else {"depth": 1}
    model = timm.create_model(current, num_classes=3, **args)
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    found = load_network(tmp_path / "t.safetensors", architecture=name, model_args=args)
    assert (found.ref.num_classes, found.ref.architecture) == (3, current)


def test_one_logit_is_refused_as_source_and_target(tmp_path):
    save_file(make_network("resnet18", 1, **RESNET).state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", label_names=["defect"], model_args=RESNET)
    for flag in ("--arch", "--source-arch", "--target-arch"):
        with pytest.raises(BadInput, match="one logit: that is a yes or no"):
            load_network(tmp_path / "t.safetensors", what=flag)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_what_a_document_calls_no_softmax_is_refused(tmp_path, model, problem):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", model_args=RESNET, problem_type=problem)
    with pytest.raises(BadInput, match=f"problem_type is {problem}"):
        load_network(tmp_path / "t.safetensors")


def test_labels_that_stand_twice_are_refused_in_a_target(tmp_path, model):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", label_names=["crane", "b", "crane"], model_args=RESNET)
    for flag in ("--arch", "--target-arch"):
        with pytest.raises(BadInput, match="classes 0 and 2 are both called 'crane'"):
            load_network(tmp_path / "t.safetensors", what=flag)
    assert load_network(tmp_path / "t.safetensors", what="--source-arch").labels[0] == "crane"


def test_networks_that_make_no_row_of_logits_are_refused(tmp_path, model):
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    document(tmp_path / "t.json", model_args={**RESNET, "global_pool": ""})
    with pytest.raises(BadInput, match="one row of 3 logits an image, but with a tensor of shape"):
        load_network(tmp_path / "t.safetensors")


def test_networks_that_do_not_run_at_their_written_size_are_refused(tmp_path):
    args = {"img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 1}
    name, wrong = "vit_tiny_patch16_224", {"input_size": [3, 48, 48]}
    save_file(
        timm.create_model(name, num_classes=3, **args).state_dict(), tmp_path / "t.safetensors"
    )
    document(tmp_path / "t.json", name, model_args=args, pretrained_cfg=wrong)
    with pytest.raises(BadInput, match="does not run on images of its input size 3x48x48"):
        load_network(tmp_path / "t.safetensors")


class Several(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 5)

    def forward(self, x):
        z = self.fc(x.mean((2, 3)))
        return z, z[:, :2]


def test_several_outputs_are_refused_and_shown():
    with pytest.raises(BadInput, match=r"with 2 outputs: a tensor of shape \[5\], .* \[2\]"):
        check_answers("t.safetensors", Several(), 5, (3, 8, 8))
