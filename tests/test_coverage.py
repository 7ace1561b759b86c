"""examples/coverage: the walk over timm's registry and its table."""

import json
from dataclasses import asdict, dataclass

from examples.coverage.family import Family, run_family
from examples.coverage.structure import Structure, describe, families
from examples.coverage.table import table
from examples.coverage.walk import walk


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
