"""intlm.tracking.trackers: the real packages, offline: a resumed run is the same run there, nothing is sent twice."""

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from intlm import config as configuration
from intlm.errors import MissingPackage, RunError
from intlm.tracking import metrics
from intlm.tracking.trackers import Service
from intlm.training import train


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: protocol buffers in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def told_wandb(run: Path) -> dict[int, dict[str, Any]]:
    """The values that the service has received of a run, by update. Fails where one came twice or for another run."""
    identity = json.loads((run / "wandb.json").read_text())["id"]
    by_step: dict[int, dict[str, Any]] = {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project, record.run.display_name) == (identity, "intlm", run.name)
                given = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert given["model"]["hidden_size"] == tiny.KEYS["model.hidden_size"]
            elif record.WhichOneof("record_type") == "history":
                items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                assert items["_step"] not in by_step
                by_step[items["_step"]] = {name: value for name, value in items.items() if name[0] != "_"}
    return by_step


def told_trackio(run: Path) -> dict[int, dict[str, Any]]:
    """As `told_wandb`."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    name = f"{run.name}-{json.loads((run / 'trackio.json').read_text())['id']}"
    (known,) = [known for known in trackio.Api().runs("intlm") if known.name == name]
    assert known.config["model"]["hidden_size"] == tiny.KEYS["model.hidden_size"]
    rows = SQLiteStorage.get_logs("intlm", name)
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: {k: v for k, v in row.items() if k not in ("step", "timestamp")} for row in rows}


@pytest.mark.parametrize(("name", "told"), [("wandb", told_wandb), ("trackio", told_trackio)])
def test_a_run_and_its_resumption(name: str, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a tracker is stopped after its last checkpoint and resumed."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    run = tiny.copied(tmp_path / "run")
    assert train(tiny.load_config(train__trackers=name, train__updates=tiny.UPDATES + 3), run, resume=True)
    lines = metrics.read(run / "metrics.jsonl")
    by_update = {line["update"]: {k: v for k, v in line.items() if k != "update"} for line in lines}
    assert told(run) == by_update  # the lines of before it was asked for too
    for update in (tiny.UPDATES + 3, tiny.UPDATES + 2):
        shutil.rmtree(run / "checkpoints" / str(update))
    assert train(tiny.load_config(train__trackers=name, train__updates=tiny.UPDATES + 4), run, resume=True)
    lines = metrics.read(run / "metrics.jsonl")
    sent = told(run)
    assert list(sent) == [line["update"] for line in lines]
    assert sent[tiny.UPDATES + 4]["train_bits_per_byte"] == lines[-1]["train_bits_per_byte"]


def test_one_that_fails_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Updates that it did not accept are sent when the run is resumed, from the last one that it accepted."""
    service = Service("trackio", tmp_path, configuration.tables(tiny.load_config()), [])
    service.write({"update": 1, "changed": 0.5})

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no route to it")

    working = service._run.log
    monkeypatch.setattr(service._run, "log", broken)
    service.write({"update": 2, "changed": 0.25})
    monkeypatch.setattr(service._run, "log", working)
    service.write({"update": 3, "changed": 0.125})
    service.close()
    assert capsys.readouterr().err.count("trackio does not accept metrics any more: no route to it: ") == 1
    assert json.loads((tmp_path / "trackio.json").read_text())["sent"] == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_one_that_is_not_installed_is_named_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not: importing it fails
    with pytest.raises(MissingPackage, match=rf'{name}: not installed.*train.trackers = "{name}".*intlm\[trackers\]'):
        train(tiny.load_config(train__trackers=name), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_of_the_service_damaged(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    (run / "trackio.json").write_text('{"id":')
    with pytest.raises(RunError, match=r"trackio.json: damaged"):
        train(tiny.load_config(train__trackers="trackio", train__updates=tiny.UPDATES + 1), run, resume=True)
