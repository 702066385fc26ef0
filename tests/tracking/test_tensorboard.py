"""intlm.tracking.tensorboard, read back by TensorBoard itself: every line once, in order, resumed or not."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from intlm.tracking import metrics
from intlm.tracking.tensorboard import TensorBoard
from intlm.training import train


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("events.out.tfevents.*"))


def lines(updates: int) -> list[dict[str, Any]]:
    return [{"update": n, "seconds": float(n), "changed": 1 / n} for n in range(1, updates + 1)]


def steps(directory: Path) -> list[int]:
    """The update of every line in the files, with nothing purged."""
    return [event.step for event in tiny.events_of(directory)]


def shown(directory: Path) -> dict[str, list[tuple[int, Any]]]:
    """Returns, for each metric, what TensorBoard shows: its updates and values."""
    read = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    scalars = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    for tag in read.Tags()["tensors"]:
        scalars[tag] = [(e.step, e.tensor_proto.string_val[0].decode()) for e in read.Tensors(tag)]
    return scalars


def expected(run: Path) -> dict[str, list[tuple[int, Any]]]:
    """Returns what TensorBoard should show, by metrics.jsonl. TensorBoard's scalars are of 32 bits."""
    scalars: dict[str, list[tuple[int, Any]]] = {}
    for line in metrics.read(run / "metrics.jsonl"):
        for name, value in line.items():
            if name == "sample":
                text = "\n".join(f"    {row}" for row in value.split("\n"))
                scalars.setdefault("sample/text_summary", []).append((line["update"], text))
            elif name != "update":
                scalars.setdefault(name, []).append((line["update"], float(np.float32(value))))
    return scalars


def test_every_metric_and_sample_of_a_run() -> None:
    run = tiny.trained().directory
    assert shown(run) == expected(run)
    assert steps(run) == list(range(1, tiny.UPDATES + 1))
    assert len(expected(run)["sample/text_summary"]) == 3


def test_a_resumed_run_shows_nothing_twice(tmp_path: Path) -> None:
    """The run continued after its last whole checkpoint and was killed while it wrote an event."""
    run = tiny.copied(tmp_path / "run")
    before = {event.step: event.wall_time for event in tiny.events_of(run)}
    for update in (tiny.UPDATES, tiny.UPDATES - 1):
        shutil.rmtree(run / "checkpoints" / str(update))
    (path,) = files(run)
    path.write_bytes(path.read_bytes()[:-5])
    assert train(tiny.load_config(), run, resume=True)
    assert steps(run) == list(range(1, tiny.UPDATES + 1))
    assert shown(run) == expected(run)
    after = {event.step: event.wall_time for event in tiny.events_of(run)}
    kept = range(1, tiny.UPDATES - 1)
    assert [after[n] for n in kept] == [before[n] for n in kept]
    assert sorted(after.values()) == list(after.values()) and time.time() - after[tiny.UPDATES] < 60


def test_a_run_older_than_its_event_files_gets_them(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    files(run)[0].unlink()
    assert train(tiny.load_config(train__updates=tiny.UPDATES + 1), run, resume=True)
    assert shown(run) == expected(run)


def test_kept_after_every_cut(tmp_path: Path) -> None:
    """A file may end at any byte, and the run may resume from any update: three files in all."""
    made = tmp_path / "made"
    made.mkdir()
    written = TensorBoard(made, [])
    for line in lines(4):
        written.write(line)
    written.close()
    whole = files(made)[0].read_bytes()
    for cut in range(len(whole)):
        for update in (0, 2, 4):
            run = tmp_path / f"{cut}-{update}"
            run.mkdir()
            (run / files(made)[0].name).write_bytes(whole[:cut])
            log = TensorBoard(run, lines(update))
            log.write({"update": update + 1, "changed": 0.5})
            log.close()
            assert steps(run) == list(range(1, update + 2))
        if cut == 40:
            TensorBoard(run, []).close()
            assert files(run) == []  # none has a line left


def test_a_tensorboard_that_shows_the_run_forgets_what_was_cut(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path, [])
    for line in lines(5):
        log.write(line)
    log.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [event.step for event in read.Scalars("changed")] == [1, 2, 3, 4, 5]
    log = TensorBoard(tmp_path, lines(3))
    log.write({"update": 4, "changed": 7.0})
    log.close()
    read.Reload()
    assert [event.step for event in read.Scalars("changed")] == [1, 2, 3, 4]
    assert read.Scalars("changed")[-1].value == 7.0


def test_zeros_that_a_lost_disk_left_are_cut(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path, [])
    log.write(lines(1)[0])
    log.close()
    path = files(tmp_path)[0]
    path.write_bytes(path.read_bytes() + bytes(4096))
    TensorBoard(tmp_path, lines(1)).close()
    assert steps(tmp_path) == [1] and not path.read_bytes().endswith(bytes(16))


def test_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is resumed at a time a day before its start: its files are still read in the order of its updates."""
    run = tiny.copied(tmp_path / "run")
    monkeypatch.setattr("intlm.tracking.tensorboard.time", SimpleNamespace(time=lambda: time.time() - 86400))
    for more in (1, 2):
        assert train(tiny.load_config(train__updates=tiny.UPDATES + more), run, resume=True)
    assert len(files(run)) == 3
    events = tiny.events_of(run)
    assert [event.step for event in events] == list(range(1, tiny.UPDATES + 3))
    times = [event.wall_time for event in events]
    assert times == sorted(times)
