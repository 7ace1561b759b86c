"""evaluation.latency and ``pnc eval --latency``: how long an image takes, with the clones and without."""

from types import SimpleNamespace

import pytest
import torch
from support.command import pnc_forked
from torch import nn

from pnc_cli import evaluation

CONFIG = {
    "input_size": (3, 8, 6),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
}


class Target(nn.Module):
    """Takes its time by a clock of its own: each pass the next of ``seconds``."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.clock, self.seconds, self.seen = clock, list(seconds), []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        self.clock.now += self.seconds.pop(0)
        return x


class Patched(nn.Module):
    """A target, and ``more`` seconds for its clones."""

    def __init__(self, target, more):
        super().__init__()
        self.target, self.more, self.passes = target, more, 0
        self.pretrained_cfg = CONFIG

    def forward(self, x):
        self.passes += 1
        self.target.clock.now += self.more
        return self.target(x)


def test_it_is_the_median_time_of_an_image_of_either(monkeypatch):
    """A slow first pass and one that was interrupted count for nothing."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    usual = [0.2] * 10
    usual[0] = usual[1] = usual[6] = 9.0
    model = Patched(Target(clock, usual), more=0.3)
    found = evaluation.latency(model, batch=10, rounds=5)
    assert found.target == pytest.approx(20.0) and found.patched == pytest.approx(
        50.0
    )  # ms an image
    assert found.ratio == pytest.approx(2.5)
    assert model.passes == 5 and model.target.seen == [(10, *CONFIG["input_size"])] * 10


def test_the_command_says_what_a_whole_clone_costs(pair, tmp_path):
    """It is as large as its target, so that twice the time is expected."""
    ran = pnc_forked(
        *("clone", pair.source, pair.target, "--data", pair.train, "--limit-per-class", "6"),
        *("--tap", "input", "--cut", "input", "--share", "1", "-o", "whole.safetensors"),
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    asked = ["eval", pair.target, "--data", pair.test, "--clone", "whole.safetensors"]
    ran = pnc_forked(*asked, "--latency", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    found = ran.json["latency_ms"]
    assert set(found) == {"target", "patched", "ratio"}
    assert 0 < found["target"] < found["patched"]
    assert found["ratio"] == pytest.approx(found["patched"] / found["target"])
    assert 1.2 < found["ratio"] < 20
    ran = pnc_forked(*asked, "--latency", cwd=tmp_path)
    assert ran.code == 0 and "ms an image" in ran.out and "times the target's" in ran.out
    assert "latency_ms" not in pnc_forked(*asked, "--json", cwd=tmp_path).json


def test_a_plain_checkpoint_takes_its_own_time(pair, tmp_path):
    ran = pnc_forked(
        *("eval", pair.target, "--data", pair.test, "--limit-per-class", "2"),
        *("--latency", "--json"),
        cwd=tmp_path,
    )
    found = ran.json["latency_ms"]
    assert found["target"] > 0 and found["patched"] > 0 and 0.2 < found["ratio"] < 5
