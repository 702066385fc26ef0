"""Rows of data sets, by the whole command: strings stay strings, types are not mixed, and rows are independent."""

import json
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from intlm.cli import main
from intlm.data import files, rows, sources
from intlm.data.shards import Corpus

TIME = "2019-04-10T12:57:54Z"
ROWS: list[dict[str, Any]] = [
    {"text": "first", "timestamp": TIME, "n": "5", "score": 5, "day": "2019-04-10", "lang": "en"},
    {"text": "second", "timestamp": "2019-04-11T00:00:00Z", "n": "05", "score": 5.5, "day": "2020-01-01"},
    {"text": "third", "timestamp": None, "n": "x", "score": None, "day": "1", "lang": None},
]


def write_lines(path: Path, some: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


HELD_OUT = "the held-out text is the training text"


@pytest.mark.parametrize(
    ("train", "flags", "said"),
    [
        ("rows.jsonl", {"valid_split": "validation"}, "rows.jsonl is a single file, which has no splits"),
        ("rows.jsonl", {"split": "train[:10%]"}, "data.split = 'train[:10%]': "),
        ("rows.jsonl", {"subset": "en"}, "rows.jsonl is a single file, which has no subsets"),
        ("rows.jsonl", {"valid": "rows.jsonl"}, "rows.jsonl: is both held out and trained on"),
        ("rows.jsonl", {"valid": "link.jsonl"}, "link.jsonl: is both held out and trained on"),
        ("rows.jsonl", {"valid": "rows.parquet"}, HELD_OUT),
        ("text.txt", {"split": "validation"}, "text.txt is a text, which has no splits"),
        ("text.txt", {"filter": "n == 1"}, "text.txt is a text, which has no columns"),
        ("text.txt", {"columns": "body"}, "text.txt is a text, which has no columns"),
        ("text.txt", {"valid": "copy.txt"}, HELD_OUT),
        ("text.txt", {"valid": "copy.txt", "mixture": "1 mixed.toml"}, HELD_OUT),
        ("text.txt", {"valid": "other.txt", "mixture": "1 mixed.toml"}, "other.txt: is both held out and trained on"),
        ("text.txt", {"valid": "other copy.txt", "mixture": "1 mixed.toml"}, "other.txt: is trained on, but "),
        ("recipe.py", {"valid": "recipe.py"}, "recipe.py: is both held out and trained on"),
        ("recipe.py", {"split": "validation"}, "recipe.py is a Python file, which has no splits"),
        ("folder", {"valid": "folder/b.txt"}, "b.txt: is both held out and trained on"),
        ("folder", {"valid_split": "validation"}, "folder is a text, which has no splits"),
        ("set", {"valid_split": "train"}, "is both held out and trained on"),
        ("set", {"valid": "set"}, "held out and trained on"),
        ("set", {"valid_split": "validation"}, HELD_OUT),
        ("hub:a/b", {"valid_split": "train"}, "hub:a/b: split 'train' is held out, but split 'train' is trained on"),
        (
            "hub:a/b",
            {"split": "train+test", "valid_split": "test"},
            "split 'test' is held out, but split 'train+test' is trained on",
        ),
    ],
)
def test_training_text_is_not_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str, flags: dict[str, str], said: str
) -> None:
    """Training text is never held out, and no split is taken of a source without splits."""
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "link.jsonl").hardlink_to(tmp_path / "rows.jsonl")
    pq.write_table(pa.table({"text": [row["text"] for row in ROWS]}), tmp_path / "rows.parquet")
    (tmp_path / "folder").mkdir()
    for name in ("text.txt", "copy.txt", "folder/a.txt"):
        (tmp_path / name).write_text("some text")
    for name in ("other.txt", "other copy.txt", "folder/b.txt"):
        (tmp_path / name).write_text("other text")
    (tmp_path / "recipe.py").write_text("def documents():\n    yield b'text'\n")
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set" / "train.jsonl", ROWS)
    write_lines(tmp_path / "set" / "validation.jsonl", ROWS)
    (tmp_path / "mixed.toml").write_text("[data]\ntrain = 'other.txt'\n")
    place = train if train.startswith("hub:") else str(tmp_path / train)
    keys = {"train": place, "prepared": str(tmp_path / "corpus")}
    for key, value in flags.items():
        keys[key] = str(tmp_path / value) if key == "valid" else value
    (tmp_path / "config.toml").write_text(
        "[data]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    )
    assert main(["prepare", str(tmp_path / "config.toml")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("intlm: ") and error.count("\n") == 1


def prepare(path: Path, *flags: str) -> int:
    config = path.parent / "config.toml"
    config.write_text(f"[data]\ntrain = '{path.name}'\nprepared = 'corpus'\n")
    return main(["prepare", str(config), *flags])


def prepared(path: Path, *flags: str) -> list[bytes]:
    """The documents that the command makes of a data set."""
    assert prepare(path, *flags) == 0
    corpus = Corpus.open(path.parent / "corpus")
    split = corpus.split("train")
    return [corpus.tokenizer.decode(split.read(start, end - start)) for start, end in split.document_spans()]


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        (f'timestamp != "{TIME}"', [1, 2]),
        (f'timestamp == "{TIME}"', [0]),
        ('timestamp >= "2019-04-11"', [1]),
        ('n == "5"', [0]),
        ('n != "5"', [1, 2]),
        ("score >= 5.0 and score < 6", [0, 1]),
        ("score == 5", [0]),
        ("score != null", [0, 1]),
        ('lang == "en"', [0]),
        ('lang != "en"', [1, 2]),
        ("lang == null", [1, 2]),
        ('lang < "zz"', [0]),
    ],
)
def test_filters_compare_what_is_written(tmp_path: Path, condition: str, taken: list[int]) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    assert prepared(path, "--data.filter", condition) == [ROWS[i]["text"].encode() for i in taken]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("n == 5", "n == 5: compares a string, '5', with a number"),
        ('score == "5"', "compares a number, '5', with a string"),
        ("score == true", "compares a number, '5', with true or false"),
        ("timestamp > 2019", f"compares a string, '{TIME}', with a number"),
        ("when == 5", "no column 'when', only text, timestamp, n, score, day, lang"),
    ],
)
def test_types_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str], condition: str, said: str) -> None:
    assert prepare(write_lines(tmp_path / "rows.jsonl", ROWS), "--data.filter", condition) == 2
    error = capsys.readouterr().err
    assert said in error and str(tmp_path / "rows.jsonl") in error and error.count("\n") == 1


def test_types_of_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Types of Parquet: decimals are numbers; dates are not strings."""
    table = {"text": ["a", "b"], "price": [Decimal("0.10"), Decimal("0.20")], "day": [date(2019, 4, 10)] * 2}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    assert prepared(tmp_path / "rows.parquet", "--data.filter", "price == 0.1") == [b"a"]
    capsys.readouterr()
    assert prepare(tmp_path / "rows.parquet", "--data.filter", 'day == "2019-04-10"') == 2
    assert "compares a date, '2019-04-10', with a string" in capsys.readouterr().err


def test_a_column_of_dates_is_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    assert prepared(path, "--data.columns", "day") == [row["day"].encode() for row in ROWS]


def test_a_key_that_some_rows_lack_is_null_there(tmp_path: Path) -> None:
    """A key that some rows lack is null there, even where megabytes of rows lack it: the result is the rows' alone."""
    some = [
        {"text": f"{number} " + "x" * 1_500_000} | ({"lang": "en"} if number in (8, 9) else {}) for number in range(11)
    ]
    path = write_lines(tmp_path / "rows.jsonl", some)
    for condition, taken in (('lang == "en"', {8, 9}), ('lang != "en"', {*range(8), 10})):
        documents = prepared(path, "--data.filter", condition, "--data.columns", "text")
        assert [int(text[:2]) for text in documents] == sorted(taken)
    assert len(prepared(path, "--data.columns", "text, lang")) == 11


def test_a_column_of_no_row_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that no row has is refused: at the end of the rows, where max_bytes ends them, or earlier."""
    path = write_lines(tmp_path / "rows.jsonl", [{"text": "abc"}] * 9 + [{"body": "d", "lang": "en"}])
    assert prepared(path, "--data.columns", "body", "--data.filter", 'lang == "en"') == [b"d"]
    misspelt = ["--data.filter", 'lnag != "en"']
    assert prepare(path, *misspelt) == 2
    assert "data.filter: no column 'lnag', only body, lang" in capsys.readouterr().err
    assert prepare(path, *misspelt, "--data.max_bytes", "4") == 2
    assert "data.filter: no column 'lnag', only text" in capsys.readouterr().err
    monkeypatch.setattr(sources, "PATIENCE", 9)
    assert prepare(path, "--data.columns", "body") == 2
    assert "data.columns: no column 'body', only text" in capsys.readouterr().err


def test_half_a_surrogate_pair_is_refused_by_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n{"text": "\\ud800"}\n')
    assert prepare(tmp_path / "rows.jsonl") == 2
    assert "rows.jsonl, row 2: data.columns: column 'text' holds half a surrogate pair" in capsys.readouterr().err


def test_lines_of_the_hub_are_read_as_those_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings are not turned into times, all blocks have the same columns, and reading continues from a state."""
    monkeypatch.setattr(files, "CHUNK", 100)
    first = write_lines(tmp_path / "train-0.jsonl", [*ROWS, {"extra": [1]}, {"n": 5}] * 9)
    first.write_bytes(b"\xef\xbb\xbf" + first.read_bytes().replace(b"\n", b"\r\n"))
    write_lines(tmp_path / "train-1.jsonl", ROWS)
    (tmp_path / "train-2.jsonl").write_text(json.dumps(ROWS, indent=1))  # an array, as on the hub some are
    expected = [row for path in (first, tmp_path / "train-1.jsonl") for row in rows.json_rows(path)]
    assert expected == [*ROWS, {"extra": [1]}, {"n": 5}] * 9 + ROWS
    expected += ROWS
    read, states = [], []
    reading = rows.hub_rows(str(tmp_path), "", "", "train")
    for row in reading:
        read.append(row)
        states.append(reading.state_dict())
    assert read == expected
    for number in (0, 20, 46):
        again = rows.hub_rows(str(tmp_path), "", "", "train")
        again.load_state_dict(json.loads(json.dumps(states[number])))
        assert list(again) == expected[number + 1 :]
