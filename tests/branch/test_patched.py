"""branch/patched.py: a target with clones on top is an ordinary module."""

import pytest
import torch
from PIL import Image
from support.handmade import flip
from support.networks import preprocess
from timm.data import create_transform, resolve_model_data_config

import pnc_cli
from pnc_cli.errors import BadInput, Incompatible
from pnc_cli.files.header import read_header
from pnc_cli.files.patch import inject
from pnc_cli.placement.probe import probe_images


@pytest.fixture(scope="module")
def images():
    return preprocess(probe_images(16, (3, 32, 32), seed=1))


def test_it_has_what_timms_models_have(made):
    model = pnc_cli.load(made.patched)
    assert isinstance(model, torch.nn.Module) and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.label_names == [*made.old, *made.new] and model.num_classes == 5
    assert model.pretrained_cfg["num_classes"] == 5


def test_it_works_with_timms_transforms(made):
    model = pnc_cli.load(made.patched)
    transform = create_transform(**resolve_model_data_config(model))
    right = 0
    for label in model.label_names:
        image = transform(Image.open(next((made.test / label).iterdir())))
        right += model.label_names[model(image[None]).argmax()] == label
    assert right >= 4


def test_patched_on_disk_or_in_memory_is_the_same(made, images):
    on_disk, in_memory = pnc_cli.load(made.patched), pnc_cli.load(made.target, clones=[made.clone])
    assert on_disk(images).numpy().tobytes() == in_memory(images).numpy().tobytes()


def test_without_clones_it_is_the_target(made, images):
    plain, patched = pnc_cli.load(made.target), pnc_cli.load(made.patched)
    assert plain.label_names == made.old
    assert plain(images).numpy().tobytes() == patched(images)[:, :3].contiguous().numpy().tobytes()


def test_clone_classes_need_images_under_their_own_labels(made, tmp_path):
    from support.command import pnc_forked

    ran = pnc_forked(
        "clone",
        made.source,
        made.target,
        "--data",
        made.train,
        "-c",
        "blue=blue_2",
        "-o",
        "more.safetensors",
        cwd=tmp_path,
    )
    assert ran.code == 3 and "no images of clone class 'blue_2'" in ran.err


def test_two_clones_leave_each_other_alone(made, two, tmp_path, images):
    more = two / "more.safetensors"
    inject(made.patched, [more], tmp_path / "both.safetensors")
    both = pnc_cli.load(tmp_path / "both.safetensors")
    assert both.label_names == [*made.old, *made.new, "blue_2"]
    one, other = pnc_cli.load(made.patched)(images), pnc_cli.load(made.target, [more])(images)
    z = both(images)
    assert torch.equal(z[:, :5], one) and torch.equal(z[:, 5:], other[:, 3:])


def test_a_forward_pass_changes_no_buffer(made, images):
    model = pnc_cli.load(made.patched)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model(images)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_a_clone_for_another_target_is_refused(made):
    with pytest.raises(Incompatible, match="was made for another target"):
        pnc_cli.load(made.source, clones=[made.clone])


@pytest.mark.parametrize("end", ["first", "last"])
def test_a_damaged_patched_checkpoint_is_refused(made, tmp_path, end):
    path = tmp_path / "p.safetensors"
    path.write_bytes(made.patched.read_bytes())
    flip(path, read_header(path).data_start if end == "first" else -1)
    message = "is not what was patched" if end == "first" else "is corrupt"
    with pytest.raises(BadInput, match=message):
        pnc_cli.load(path)
