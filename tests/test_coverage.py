"""examples/coverage: the walk over timm's registry, and the table that is committed."""

import json
import random
from dataclasses import asdict, dataclass

import pytest

from examples.coverage.__main__ import HERE
from examples.coverage.family import Family, run_family
from examples.coverage.structure import Structure, describe, families
from examples.coverage.table import table
from examples.coverage.walk import walk

NAMES, RUNS = 40, 4  # of the slow test's sample


def committed(name, kind):
    return [kind(**json.loads(line)) for line in (HERE / name).read_text().splitlines()]


def without_time(row):
    return {k: v for k, v in asdict(row).items() if k != "seconds"}


def test_the_structure_of_a_network_is_found_without_weights():
    found = describe("test_resnet")
    assert (found.family, found.target, found.source) == ("resnet", "yes", "yes")
    assert found.taps > found.cuts > 10 and 0.9 < found.prunable <= 1
    assert found.parameters > 300_000 and found.macs > 10_000_000


def test_what_fails_is_listed_with_the_reason():
    found = describe("gemma4_vit_encoder_167m") if "gemma4_vit_encoder_167m" in families() else None
    missing = run_family([], "resnet")
    assert found is None or found.target != "yes"
    assert missing.target == missing.source and missing.target != "yes"


@dataclass(frozen=True)
class Row:
    name: str
    target: str = "yes"
    source: str = "yes"


def test_a_walk_goes_on_where_it_was_broken_off(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(asdict(Row("b", source="done before"))) + "\n")
    rows = walk(file, "name", ["c", "b", "a"], Row, jobs=1)
    assert [r["name"] for r in rows] == ["a", "b", "c"] and rows[1]["source"] == "done before"
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_the_table_has_a_row_for_each_family_and_lists_what_is_refused():
    structures = [
        Structure("one", "good", taps=5, cuts=4, prunable=0.5),
        Structure("two", "good", taps=7, cuts=6, source="cannot be traced"),
    ]
    text = table(structures, [Family("good", "one", 32, 100, 5, seconds=1.0)])
    assert "| good | 2 | one, 32 px | yes | yes | 5 (5-7) | 4-6 | 0.50 | 1.0 |" in text
    assert "- good: cannot be traced: two (source)" in text


@pytest.mark.slow
def test_a_sample_of_the_registry_is_as_the_committed_table_says():
    rows = committed("names.jsonl", Structure)
    for row in random.Random(0).sample(rows, min(NAMES, len(rows))):
        assert without_time(describe(row.name)) == without_time(row)


@pytest.mark.slow
def test_a_sample_of_the_families_runs_as_the_committed_table_says():
    structures = committed("names.jsonl", Structure)
    rows = [f for f in committed("families.jsonl", Family) if f.seconds < 30]
    for row in random.Random(0).sample(rows, min(RUNS, len(rows))):
        assert without_time(run_family(structures, row.family)) == without_time(row)
