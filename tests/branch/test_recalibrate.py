"""pnc inject --data: several clones calibrated together, and nothing else touched."""

import pytest
import torch
from safetensors.torch import load_file
from support.command import pnc, pnc_forked
from support.handmade import sha256

import pnc_cli
from pnc_cli.branch.patched import preprocessing_of
from pnc_cli.branch.recalibrate import recalibrate
from pnc_cli.data import load_images, open_images
from pnc_cli.files.opened import open_checkpoint


@pytest.fixture(scope="module")
def together(made, two):
    ran = pnc(
        "inject",
        made.target,
        made.clone,
        "more.safetensors",
        "-o",
        "both.safetensors",
        "--data",
        "data",
        "--limit-per-class",
        "10",
        "--json",
        cwd=two,
    )
    assert ran.code == 0, ran.err
    return ran.json


def test_the_images_become_more_likely(together):
    assert together["recalibrated"]["after"] < together["recalibrated"]["before"]


def test_joins_change_and_nothing_else_does(made, two, together):
    ran = pnc_forked(
        "inject", made.target, made.clone, "more.safetensors", "-o", "apart.safetensors", cwd=two
    )
    assert ran.code == 0, ran.err
    apart, both = load_file(two / "apart.safetensors"), load_file(two / "both.safetensors")
    assert list(apart) == list(both)
    changed = {n for n in apart if not torch.equal(apart[n], both[n])}
    assert changed and changed <= {f"pnc.{c['name']}.join.gating" for c in together["clones"]}


def test_the_manifest_says_so_and_claims_no_figures_of_the_old_join(together, two):
    manifests = [c.manifest for c in open_checkpoint(two / "both.safetensors").clones]
    names = {m.name for m in manifests}
    for m in manifests:
        assert set(m.method.recalibrated_with) == names - {m.name}
        assert m.measured.clone_accuracy is None and m.measured.branch_accuracy is not None


def test_the_target_comes_back_byte_for_byte(made, two, together):
    ran = pnc_forked("eject", "both.safetensors", "-o", "back.safetensors", cwd=two)
    assert ran.code == 0, ran.err
    assert sha256(two / "back.safetensors") == sha256(made.target)


def test_it_runs_as_it_was_calibrated(made, two, together):
    """What is loaded has the likelihood that was reported, and nothing is left to gain."""
    model = pnc_cli.load(two / "both.safetensors")
    source = open_images(str(two / "data"))
    from pnc_cli.data import choose

    images = load_images(
        source, choose(source, model.label_names, 10, 0), [preprocessing_of(model)]
    )
    again = recalibrate(model, [images])
    assert again.before == pytest.approx(together["recalibrated"]["after"], abs=1e-4)
    assert again.before - again.after < 0.02 * (
        together["recalibrated"]["before"] - together["recalibrated"]["after"] + 1.0
    )


def test_a_class_without_images_is_refused_by_name(made, two):
    (two / "few").mkdir()
    for label in made.new:
        (two / "few" / label).symlink_to(made.train / label)
    ran = pnc("inject", made.target, made.clone, "-o", "no.safetensors", "--data", "few", cwd=two)
    assert ran.code == 3 and ran.out == ""
    assert f"no images of class '{made.old[0]}'" in ran.err and "every class" in ran.err
    assert not (two / "no.safetensors").exists()
