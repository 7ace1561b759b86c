"""The corpus of hostile files, replayed: each is refused in words, in time and in little memory."""

import pytest
from attacks.corpus import ATTACKS
from support.command import pnc_within
from support.handmade import make_clone, make_target

from pnc_cli.files.patch import inject

SECONDS = 60  # a busy machine's; what is refused takes one or two


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_hostile_file_is_refused_in_time_and_memory(tmp_path, attack):
    target = make_target(tmp_path / "t.safetensors")
    clone = make_clone(tmp_path / "c.safetensors", target)
    inject(target, [clone], tmp_path / "p.safetensors")
    attack.make(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    ran, peak = pnc_within(SECONDS, *attack.args, cwd=tmp_path)
    assert ran.code == attack.code, ran.err
    assert attack.said in ran.err + ran.out
    assert len(ran.err) < 10_000
    assert peak < attack.memory, f"{peak:,} bytes"
    assert sorted(p.name for p in tmp_path.iterdir()) == before
