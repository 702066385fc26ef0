"""The population divided among devices, and among processes, gives the bits of one device."""

from pathlib import Path

import pytest
import tiny
from processes import finished, on_devices, together


@pytest.mark.parametrize(
    ("devices", "settings"), [(2, ("--engine", "xla", "--eggroll.chunk_size", 2)), (3, ()), (8, ())]
)
def test_devices(devices: int, settings: tuple[object, ...], tmp_path: Path) -> None:
    """Several devices of one process, by both engines, in chunks, give the same bits and the same output. Three do not
    divide eight texts evenly."""
    finished(on_devices(devices, "train", tiny.CONFIG, "--run-dir", tmp_path / "run", *settings))
    tiny.assert_same_run(tmp_path / "run", tiny.trained().directory)


@pytest.mark.parametrize("count", [2, 3])
def test_processes(count: int, tmp_path: Path) -> None:
    """Several processes, over loopback, give the same bits; one of them writes files and prints."""
    (first, _), *others = finished(*together(count, "train", tiny.CONFIG, "--run-dir", tmp_path / "run"))
    tiny.assert_same_run(tmp_path / "run", tiny.trained().directory)
    assert "this model" in first and not any("this model" in out or "bpb" in err for out, err in others)


def test_resumed_on_other_devices(tmp_path: Path) -> None:
    """Four updates on four devices, four by two processes of two devices, four on one; Adam remembers the most."""
    keys = ("--eggroll.optimizer", "adam", "--train.checkpoint_seconds", 3600)
    command = ("train", tiny.CONFIG, *keys, "--run-dir", tmp_path / "run", "--train.updates")
    finished(on_devices(4, *command, 4))
    finished(*together(2, *command, 8, "--resume", devices=2))
    finished(on_devices(1, *command, 12, "--resume"))
    finished(on_devices(1, "train", tiny.CONFIG, *keys, "--run-dir", tmp_path / "whole"))
    tiny.assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_token(tmp_path: Path) -> None:
    """The estimator `token`: six updates on three devices, which do not divide eight texts evenly, and six by two
    processes; its means are part of the state."""
    keys = ("--eggroll.estimator", "token", "--eggroll.token.members", 3, "--eggroll.optimizer", "adam")
    command = ("train", tiny.CONFIG, *keys, "--run-dir")
    finished(on_devices(3, *command, tmp_path / "run", "--train.updates", 6, "--train.evaluate_every", 5))
    finished(*together(2, *command, tmp_path / "run", "--resume"))
    finished(on_devices(1, *command, tmp_path / "whole", "--eggroll.chunk_size", 12))
    tiny.assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_processes_that_differ(tmp_path: Path) -> None:
    """If one was started with another configuration, each says so, and only the run's token is written."""
    run = tmp_path / "run"
    first, second = together(2, "train", tiny.CONFIG, "--run-dir", run, each=[("--seed", 3), ("--seed", 4)])
    for _, err in finished(first, second, code=2):
        assert "configuration: not the same in process 1 of this run as in process 0" in err
    assert [path.name for path in run.iterdir()] == [".token"]


def test_a_mixture_and_other_weights(tmp_path: Path) -> None:
    """One process prepares the mixture for both; their own settings differ; they start with another run's weights."""
    (tmp_path / "other.txt").write_bytes(tiny.words(300, seed=5))
    other = tiny.write_config(tmp_path / "other.toml", {"data.train": "other.txt"})
    start = ("--from", tiny.trained().directory, "--data.tokenizer_file", tiny.trained().directory / "tokenizer.json")
    keys = ("--data.mixture", f"3 {other}", "--data.prepared", tmp_path / "prepared", "--train.updates", 4)
    command = ("train", tiny.CONFIG, *start, *keys, "--run-dir")
    finished(*together(2, *command, tmp_path / "two", each=[("--threads", 1), ("--engine", "xla")]))
    finished(on_devices(1, *command, tmp_path / "one"))
    tiny.assert_same_run(tmp_path / "two", tmp_path / "one")
