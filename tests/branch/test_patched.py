"""branch/patched.py: a target with clones on top is an ordinary module."""

import copy
import pickle

import pytest
import torch
from PIL import Image
from support.handmade import flip
from support.networks import preprocess
from timm.data import create_transform, resolve_model_data_config

import pnc_cli
from pnc_cli.errors import BadInput, Incompatible, UsageError
from pnc_cli.files.header import read_header
from pnc_cli.files.patch import inject
from pnc_cli.placement.probe import probe_images


def hooks_on(model):
    """The hooks on each of its modules."""
    return [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in model.modules()]


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
    hooks = hooks_on(model)
    model(images)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert hooks_on(model) == hooks


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


# --tta mirror -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head_only(made, tmp_path_factory):
    """A clone without a copied part, of a class under another label."""
    folder = tmp_path_factory.mktemp("head_only")
    (folder / "data").mkdir()
    for label in made.old:
        (folder / "data" / label).symlink_to(made.train / label)
    (folder / "data" / "violet").symlink_to(made.train / "purple")
    pnc_cli.clone(
        made.source,
        made.target,
        data=folder / "data",
        output=folder / "c.safetensors",
        classes="purple=violet",
        name="head",
        head_only=True,
        limit_per_class=8,
    )
    return folder / "c.safetensors"


@pytest.fixture(scope="module")
def clones(made, two, head_only):
    """A clone, another that has a copied part, and one that has none."""
    return [made.clone, two / "more.safetensors", head_only]


def joined_by_hand(model, x):
    """The clones' logits, from the means of what both networks say of ``x`` and its mirror image."""
    seen, z_t = {}, model.target(x)

    def keep(name):
        return lambda module, given, out: seen.update({name: out.clone(), f"to {name}": given[0]})

    for name in {"fc", *(tap for b in model.branches.values() for tap in b.taps)} - {"input"}:
        model.target.get_submodule(name).register_forward_hook(keep(name))
    pres, answers = [], {name: [] for name in model.branches}
    for view in (x, x.flip(-1)):
        seen["input"] = view
        model.target(view)
        pres.append(seen["to fc"])
        for name, branch in model.branches.items():
            if branch.taps:
                answers[name].append(branch.module(branch.adapter(seen[branch.taps[0]])))
            else:
                answers[name].append((pres[0][:, :0], torch.zeros(len(x), branch.classes)))
    pre = (pres[0] + pres[1]) / 2
    return torch.cat(
        [
            branch.join(pre, (one[0] + other[0]) / 2, z_t, (one[1] + other[1]) / 2)
            for branch, (one, other) in zip(model.branches.values(), answers.values())
        ],
        dim=1,
    )


def test_averaged_over_views_the_targets_logits_stay_bit_for_bit(made, clones, images):
    alone, model = pnc_cli.load(made.target), pnc_cli.load(made.target, clones, tta="mirror")
    z = model(images)
    assert alone(images).numpy().tobytes() == z[:, :3].contiguous().numpy().tobytes()
    plain = pnc_cli.load(made.target, clones)(images)
    assert torch.equal(plain[:, :3], z[:, :3]) and not torch.allclose(plain[:, 3:], z[:, 3:])


def test_averaged_over_views_the_clones_logits_are_those_of_the_means(made, clones, images):
    z = pnc_cli.load(made.target, clones, tta="mirror")(images)
    by_hand = joined_by_hand(pnc_cli.load(made.target, clones), images)
    assert by_hand.shape == (16, 4)
    torch.testing.assert_close(z[:, 3:], by_hand, rtol=1e-5, atol=1e-5)
    one_alone = joined_by_hand(pnc_cli.load(made.target, clones[:1]), images)
    torch.testing.assert_close(z[:, 3:5], one_alone, rtol=1e-5, atol=1e-5)


def test_an_image_that_is_its_own_mirror_image_is_answered_as_ever(made, clones, images):
    same = torch.cat([images[..., :16], images[..., :16].flip(-1)], dim=-1)
    plain, both = (pnc_cli.load(made.target, clones, tta=tta)(same) for tta in (None, "mirror"))
    assert plain.numpy().tobytes() == both.numpy().tobytes()


def test_an_image_and_its_mirror_image_get_the_same_evidence(made, images):
    """What the clones add to the target's level does not tell which of the two was shown."""
    model = pnc_cli.load(made.patched, tta="mirror")
    one, other = (z[:, 3:].log_softmax(1) for z in (model(images), model(images.flip(-1))))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_hooks_see_the_image_itself_last_and_no_others_are_left(made, images):
    model, seen = pnc_cli.load(made.patched, tta="mirror"), []
    hooks = hooks_on(model)
    model.register_forward_hook(lambda m, args, out: seen.append("whole"))
    handle = model.target.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(images)
    assert len(seen) == 3 and seen[2] == "whole" and torch.equal(seen[1], images)
    handle.remove()
    assert hooks_on(model)[1:] == hooks[1:] and not hooks[0]


def test_it_is_copied_and_pickled_with_its_averaging(made, clones, images):
    model = pnc_cli.load(made.target, clones, tta="mirror")
    wanted = model(images)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.tta == "mirror" and torch.equal(again(images), wanted)
    del vars(model)["tta"]  # as of a module that was pickled before there was one
    assert torch.equal(model(images), pnc_cli.load(made.target, clones)(images))


def test_averaging_does_not_end_with_train(made, images):
    model = pnc_cli.load(made.patched, tta="mirror")
    wanted = model(images)
    assert torch.equal(model.train()(images), wanted)


@pytest.mark.parametrize("tta", ["flip", "", "Mirror"])
def test_another_averaging_is_refused(made, tta):
    with pytest.raises(UsageError, match="there is no such averaging") as e:
        pnc_cli.load(made.patched, tta=tta)
    assert e.value.hint == "--tta mirror"
