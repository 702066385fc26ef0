"""intlm.tracking.metrics: lines are whole, and resuming keeps exactly those up to the checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intlm.errors import RunError
from intlm.tracking import metrics


def made(update: int, **fields: Any) -> dict[str, Any]:
    """A line with all the fields that every line has."""
    line = {"update": update, "tokens_evaluated": 9 * update, "tokens_read": 9, "seconds": 0.5 * update}
    return {**line, "train_bits_per_byte": 8 / update, **fields}


def written(path: Path, updates: int = 5) -> bytes:
    with metrics.MetricsWriter(path) as writer:
        for update in range(1, updates + 1):
            writer.write(made(update))
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = made(1, tokens_evaluated=2**40, train_bits_per_byte=0.1 + 0.2)
    with metrics.MetricsWriter(path) as writer:
        writer.write(line)
        assert metrics.read(path) == [line]  # already there: each line is flushed
    with metrics.MetricsWriter(path) as writer:
        writer.write(made(2, tokens_read=np.int64(9), changed=np.float32(0.5), sample="a\n"))
    assert metrics.read(path) == [line, made(2, changed=0.5, sample="a\n")]


def test_a_value_that_json_has_not_is_refused_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(path) as writer, pytest.raises(ValueError):
        writer.write({"update": 1, "train_bits_per_byte": float("nan")})
    assert path.read_bytes() == b""


def test_truncation_keeps_the_bytes_of_lines_up_to_the_update(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path)
    lines = whole.splitlines(keepends=True)
    metrics.truncate_after(path, 5)
    assert path.read_bytes() == whole
    metrics.truncate_after(path, 3)
    assert path.read_bytes() == b"".join(lines[:3])
    with metrics.MetricsWriter(path) as writer:
        for update in (4, 5):
            writer.write(json.loads(lines[update - 1]))
    assert path.read_bytes() == whole  # as if never interrupted
    metrics.truncate_after(path, 0)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_torn_last_line_is_dropped_wherever_it_tore(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path)
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [line["update"] for line in metrics.read(path)] == [1, 2, 3, 4]
        metrics.truncate_after(path, 5)
        assert path.read_bytes() == whole[:start]
    path.write_bytes(whole[:-1])  # only the newline is missing: the line is whole
    metrics.truncate_after(path, 5)
    assert path.read_bytes() == whole


def test_other_damage_names_file_and_line_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first, second, third = written(path, 3).splitlines(keepends=True)
    fields = [{"update": True}, {"seconds": "2"}, {"valid_bits_per_byte": None}, {"changed": [1]}, {"sample": 3}]
    fields += [{"update": 3}, {"update": 1}, {"seconds": -1.0}, {"seconds": 1e300}, {"tokens_read": 10**4000}]
    others = [json.dumps(made(2) | some).encode() + b"\n" for some in fields]
    others += [b"\n", second[:-2] + b"\n", b"[2]\n", b"\xff\n", b'{"update": 2}\n', b"[" * 10**5 + b"\n", b""]
    others += [second.replace(b"9", b"9" * 5000, 1), second.replace(b"}", b', "sample": "\\ud800"}')]
    for damage in others:
        path.write_bytes(first + damage + third)
        before = path.read_bytes()
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 2: damaged"):
            metrics.read(path)
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 2: damaged"):
            metrics.truncate_after(path, 3)
        assert path.read_bytes() == before


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics.truncate_after(path, 3)
    assert not path.exists()
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read: No such file"):
        metrics.read(path)


def test_truncation_is_one_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = written(path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.truncate_after(path, 2)
    assert path.read_bytes() == whole
