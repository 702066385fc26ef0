"""intlm.tracking.results: lines that are whole, grouped by everything but the seed."""

import json
from pathlib import Path
from typing import Any

import pytest

from intlm.errors import DataError
from intlm.pictures import Point
from intlm.tracking import results

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "learning" / "results.jsonl"


def line(seed: int = 0, bits: float = 3.0, **fields: Any) -> dict[str, Any]:
    return {
        "study": "s", "variant": "plain", "seed": seed, "keys": {"train.updates": 8}, "text": "a.txt", "numerics": 3,
        "bits_per_byte": bits, "curve": [[4, 400, 1.0, bits + 1], [8, 800, 2.0, bits]], **fields,
    }  # fmt: skip


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.jsonl"
    assert results.read(path) == []
    results.append(path, line(0))
    results.append(path, line(1, parameters=1728, read=[40, 80]))
    assert results.read(path) == [line(0), line(1, parameters=1728, read=[40, 80])]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "3", json.dumps({**line(), "seed": "0"}), json.dumps({**line(), "curve": []}),
     json.dumps({**line(), "curve": [[1, 2, 3]]}), json.dumps({**line(), "curve": [[1, 2, 3, "4"]]}),
     json.dumps({**line(), "curve": 3}), json.dumps({k: v for k, v in line().items() if k != "text"})],
)  # fmt: skip
def test_a_damaged_line_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(line())}\n{damage}\n")
    with pytest.raises(DataError, match=r"results.jsonl: line 2: damaged"):
        results.read(path)


def test_groups_differ_in_nothing_but_the_seed() -> None:
    lines = [
        line(0),
        line(1),
        line(0, text="b.txt"),
        line(0, numerics=2),
        line(2),
        line(0, keys={}),
        line(0, variant=""),
    ]
    assert results.groups(lines) == [[lines[0], lines[1], lines[4]], [lines[2]], [lines[3]], [lines[5]], [lines[6]]]


def test_a_curve_has_what_was_noted() -> None:
    curve = results.curve([line(0), line(1, read=[40, 80])], "label")
    assert curve.label == "label"
    assert curve.runs == [
        [Point(400, 1.0, None, 4.0), Point(800, 2.0, None, 3.0)],
        [Point(400, 1.0, 40, 4.0), Point(800, 2.0, 80, 3.0)],
    ]


def test_the_table_has_the_best_first() -> None:
    table = results.summary([line(0, 3.5), line(1, 3.7), line(0, 3.0, variant="better", parameters=1728)])
    rows = [" ".join(row.split()) for row in table.splitlines()[2:]]
    assert rows == [
        "better a.txt 1.73k 1 3.000 3.000 3.000 800 2 s",
        "plain a.txt 2 3.500 3.600 3.700 800 2 s",
    ]


def test_the_results_of_the_study_are_whole() -> None:
    lines = results.read(COMMITTED)
    recipe = [group for group in results.groups(lines) if group[0]["variant"] == "recipe"]
    assert sorted((g[0]["study"], g[0]["text"], len(g)) for g in recipe)[0] == ("hour", "austen.txt", 1)
