"""intlm.checkpoint: values out of range are refused, and the list of checksums is written last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from intlm import config as configuration
from intlm.checkpoint import Checkpoints
from intlm.checksums import CHECKSUMS
from intlm.cli import main
from intlm.trainer import Trainer
from intlm.training import prepare_corpus


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def begun(directory: Path, item: str, value: int, **keys: object) -> Path:
    """A run at its beginning in whose checkpoint, whole and listed, one number of the item is another."""
    config = tiny.load_config(**keys)
    trainer = Trainer(config, directory, prepare_corpus(config))
    state = jax.tree.map(lambda leaf: np.array(leaf), trainer.state)
    array = {"weights": state.parameters["head"], "members": state.members, "means": state.common}.get(item)
    if array is None:
        array = getattr(state.optimizer, item)["head"]
    array.reshape(-1)[-1] = value
    directory.mkdir()
    (directory / "config.toml").write_text(configuration.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(trainer.corpus.tokenizer.to_json()))
    Checkpoints(directory / "checkpoints").save(
        0, state, {"corpus": trainer.identity, "training_version": trainer.training_version}
    )
    return directory


@pytest.mark.parametrize(
    ("optimizer", "item", "least", "greatest"),
    [
        ("threshold", "weights", -127, None),
        ("threshold", "members", -127, None),
        ("momentum", "master", -127 << 16, 127 << 16),
        ("momentum", "mean", -(1 << 17) - 4, (1 << 17) + 4),
        ("adam", "mean", -(1 << 17) - 4, (1 << 17) + 4),
        ("adam", "square", 0, (1 << 26) + 32),
        ("adam", "means", 1, 294_920),
    ],
)
def test_values_out_of_range_are_refused(
    optimizer: str, item: str, least: int, greatest: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/numerics.md proves the ranges; values at their ends are accepted."""
    keys: dict[str, Any] = {"eggroll__optimizer": optimizer}
    if item == "means":
        keys |= {"eggroll__estimator": "token", "eggroll__population": 36}
    if optimizer != "threshold":
        keys[f"eggroll__{optimizer}__momentum"] = 3
    ends = [(least, -1)] + ([(greatest, 1)] if greatest is not None else [])
    for end, step in ends:
        run = begun(tmp_path / f"whole{step}", item, end, **keys)
        Trainer(config := configuration.load(run / "config.toml"), run, prepare_corpus(config)).resume()
        run = begun(tmp_path / f"run{step}", item, end + step, **keys)
        commands: list[tuple[object, ...]] = [("train", run / "config.toml", "--run-dir", run, "--resume")]
        if item == "weights":
            commands += [("generate", run), ("export", run, "--to", "c", "--out", tmp_path / "out")]
            commands += [("train", tiny.CONFIG, "--run-dir", tmp_path / "new", "--from", run)]
        for command in commands:
            said = refused(capsys, *command)
            assert f"{run / 'checkpoints' / '0'}: " in said and f": holds {end + step}: expected " in said
    assert not (tmp_path / "new").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("estimator", "version"), [("member", 3), ("token", 4)])
def test_the_training_version_is_that_of_the_estimator(
    estimator: str, version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose checkpoint has another is not resumed, not even with the version of the other estimator."""
    run = begun(tmp_path / "run", "weights", 0, eggroll__estimator=estimator, eggroll__population=36)
    (path,) = (path for path in (run / "checkpoints" / "0" / "meta").iterdir() if "corpus" in path.read_text())
    meta = json.loads(path.read_text())
    assert meta["training_version"] == version
    path.write_text(json.dumps(meta | {"training_version": 7 - version}))
    rewrite_sums(run / "checkpoints" / "0")
    said = refused(capsys, "train", run / "config.toml", "--run-dir", run, "--resume")
    assert f"{run / 'checkpoints' / '0'}: training_version = {7 - version}: expected {version}, " in said


@pytest.mark.parametrize(
    "meta",
    [{}, [], 3, {"update": 12}, {"update": 11, "numerics_version": 3}, {"update": 12, "numerics_version": "3"},
     {"update": 12, "numerics_version": 3, "corpus": 5}],
)  # fmt: skip
def test_meta_of_another_kind(meta: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.copied(tmp_path / "run")
    step = run / "checkpoints" / str(tiny.UPDATES)
    (path,) = [path for path in (step / "meta").iterdir() if "update" in path.read_text()]
    path.write_text(json.dumps(meta))
    rewrite_sums(step)
    for command in ("generate", run), ("train", tiny.CONFIG, "--run-dir", run, "--resume"):
        assert str(step) in refused(capsys, *command)


def rewrite_sums(step: Path) -> None:
    """Corrects the checksums, as somebody would who changes a checkpoint on purpose."""
    from intlm import checksums

    (step / CHECKSUMS).unlink()
    checksums.write(step)


def test_the_list_is_written_when_all_else_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and directory is flushed before the list has its name, and the metrics up to it before that."""
    run = tmp_path / "run"
    fsync, replace = os.fsync, os.replace
    flushed: list[str] = []
    lists: list[Path] = []

    def noted(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def checked(source: Any, target: Any) -> None:
        if Path(target).name == CHECKSUMS:
            step = Path(target).parent
            assert {str(path) for path in step.rglob("*")} <= set(flushed)
            assert flushed.index(str(run / "metrics.jsonl")) < flushed.index(str(step / "meta"))
            lists.append(step)
            flushed.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    assert main(["train", str(tiny.CONFIG), "--run-dir", str(run), "--train.updates", "2"]) == 0
    assert [step.name for step in lists] == ["1", "2"]


def test_lost_metrics_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If lines at the end, in the middle, or all lines are missing, the run is not resumed and says what to do."""
    run = tiny.copied(tmp_path / "run")
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    resume = ("train", tiny.CONFIG, "--run-dir", run, "--resume")
    cuts = {
        "ends with update 9, but the checkpoint is of update 12": lines[:9],
        "ends with update 0, but": [],
        "line 4: damaged: of update 5, expected 4": lines[:3] + lines[4:],
        "line 2: damaged: of update 1, expected 2": lines[:1] + lines,
    }
    for reason, left in cuts.items():
        log.write_bytes(b"".join(left))
        assert f"{log}: {reason}" in refused(capsys, *resume)
        assert log.read_bytes() == b"".join(left)
    log.unlink()
    assert f"{log}: ends with update 0, but" in refused(capsys, *resume)
    shutil.rmtree(run / "checkpoints")  # with nothing to go on from, nothing is lost
    assert main([*map(str, resume)]) == 0
    tiny.assert_same_run(run, tiny.trained().directory)
