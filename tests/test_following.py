"""intlm.following: the progress of finished, alive, dead and damaged runs, none of which is changed."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from intlm import config as configuration
from intlm.cli import main
from intlm.errors import ConfigError, DataError, RunError
from intlm.following import Comparison, Listing, compare, runs, status
from intlm.lock import exclusive
from intlm.tracking import metrics, results


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Runs in every state, some below the directories of others, and directories that are not runs."""
    made = tmp_path / "runs"
    for name in ("finished", "sweep/dead", "damaged", "torn", "other-config"):
        tiny.copied(made / name)
    log = made / "sweep" / "dead" / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:6]))
    (made / "torn" / "metrics.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:-20])
    (made / "damaged" / "metrics.jsonl").write_bytes(lines[0] + b"nonsense\n" + lines[1])
    (made / "other-config" / "config.toml").write_text("[data]\ntrain = 'a'\nhidden = 3\n")
    (made / "begun").mkdir()
    (made / "begun" / "config.toml").write_text(configuration.dumps(tiny.load_config(model__hidden_size=32)))
    exported = made / "finished" / "exports" / "c"
    exported.mkdir(parents=True)
    shutil.copy(made / "finished" / "config.toml", exported)
    shutil.copytree(exported, made / "exported")
    (made / "exported" / "model.safetensors").touch()
    (made / "empty").mkdir()
    (made / "sweep" / "results.jsonl").write_text("")
    (made / ".hidden").mkdir()
    shutil.copy(made / "finished" / "config.toml", made / ".hidden")
    for age, name in enumerate(("torn", "sweep/dead", "finished")):
        os.utime(made / name / "metrics.jsonl", (time.time() - 1000 * age - 100,) * 2)
    return made


def test_a_directory_at_a_glance(directory: Path) -> None:
    """The run that wrote last is first; other directories are skipped, damaged runs are named."""
    before = tiny.contents(directory)
    with exclusive(directory / "torn"):
        listing = runs(directory)
    assert tiny.contents(directory) == before
    assert list(listing.runs) == ["begun", "torn", "sweep/dead", "finished"]
    assert [run.state for run in listing.runs.values()] == ["dead", "alive", "dead", "finished"]
    assert [run.update for run in listing.runs.values()] == [0, 9, 6, 12]
    assert set(listing.damaged) == {"damaged", "other-config"}
    assert "metrics.jsonl: line 2: damaged" in listing.damaged["damaged"]
    assert "data.hidden: unknown key" in listing.damaged["other-config"]

    rows = [" ".join(row.split()) for row in listing.text().splitlines()]
    bits = [line["valid_bits_per_byte"] for line in tiny.lines_of(tiny.trained().directory) if "agreement" in line]
    shape = "hidden 16, 1 layer, ff 16, mgu, clip 1.73k"
    assert rows[3] == f"torn {shape} {min(bits[:2]):.3f} {bits[1]:.3f} 9 / 12 75% alive 1.7 min ago"
    assert rows[4] == f"sweep/dead {shape} {bits[0]:.3f} {bits[0]:.3f} 6 / 12 50% dead 18 min ago"
    assert rows[5].endswith(f"{min(bits):.3f} {bits[2]:.3f} 12 / 12 100% finished 35 min ago")
    assert rows[2].startswith("begun hidden 32, 1 layer, ff 16, mgu, clip 0 / 12 0% dead ")
    assert [row.split(":")[0] for row in rows[6:]] == ["damaged", "damaged"]

    by_name = {entry["run"]: entry for entry in listing.summary()}
    assert by_name["damaged"]["state"] == "damaged" and "line 2" in by_name["damaged"]["error"]
    assert by_name["torn"]["parameters"] == 1728 and by_name["begun"]["parameters"] is None
    assert by_name["begun"]["best"] is None and by_name["begun"]["tokens_per_second"] is None
    last = metrics.read(directory / "finished" / "metrics.jsonl")[-1]
    assert {name: by_name["finished"][name] for name in ("tokens_evaluated", "tokens_read", "seconds")} == {
        name: last[name] for name in ("tokens_evaluated", "tokens_read", "seconds")
    }
    assert by_name["finished"]["tokens_per_second"] == round(last["tokens_evaluated"] / last["seconds"], 1)


def test_directories_without_runs(tmp_path: Path) -> None:
    assert runs(tmp_path) == Listing({}, {})
    assert runs(tmp_path).text() == "no runs"
    with pytest.raises(RunError, match="absent: no such directory"):
        runs(tmp_path / "absent")
    one = tiny.copied(tmp_path / "one")
    assert list(runs(one).runs) == ["one"]
    with pytest.raises(RunError, match="not a run"):
        status(tmp_path)


@pytest.mark.parametrize("line", ['{"update": 1}', '{"update": 1, "tokens_evaluated": 5, "tokens_read": "6"}'])
def test_a_line_without_its_numbers_is_damaged(line: str, tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    (run / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match=r"metrics.jsonl: line 1: damaged: .*tokens_"):
        status(run)


def compared(tmp_path: Path, *sources: object, references: tuple[str, ...] = ()) -> Comparison:
    comparison = compare([str(source) for source in sources], references, tmp_path / "made" / "compare.png")
    assert comparison.picture.read_bytes().startswith(b"\x89PNG")
    return comparison


def test_runs_beside_each_other(directory: Path, tmp_path: Path) -> None:
    """A comparison of runs: a run without a held-out measurement has its training curve; labels are used as names; keys
    that differ are listed."""
    comparison = compared(tmp_path, directory / "finished", f"{directory / 'torn'}=second", directory / "begun")
    assert [entry.label for entry in comparison.entries] == ["finished", "second", "begun"]
    assert comparison.differing == {"model.hidden_size": [16, 16, 32]}
    lines = metrics.read(directory / "finished" / "metrics.jsonl")
    measured = [line for line in lines if "valid_bits_per_byte" in line]
    names = ("tokens_evaluated", "seconds", "tokens_read", "valid_bits_per_byte")
    assert comparison.entries[0].curve.runs == [[tuple(line[name] for name in names) for line in measured]]
    assert [entry.curve.training for entry in comparison.entries] == [False, False, True]
    rows = {" ".join(row.split()) for row in comparison.text().splitlines()}
    assert {"finished second begun", "updates 12 9 0", "model.hidden_size 16 16 32"} <= rows
    summary = json.loads(json.dumps(comparison.summary()))
    assert summary["runs"][1]["run"] == "second" and summary["runs"][1]["updates"] == 9

    # Of many a row each.
    many = compared(tmp_path, *[directory / "finished"] * 4, directory / "begun")
    assert many.text().splitlines()[-1].split()[-1] == "model.hidden_size=32"
    # Names that are the same stand with where they are.
    twice = compared(tmp_path, directory / "finished", directory / "finished")
    assert [entry.label for entry in twice.entries] == [str(directory / "finished")] * 2


def test_paths_that_differ_are_shown_by_name(directory: Path, tmp_path: Path) -> None:
    saved = directory / "torn" / "config.toml"
    saved.write_text(saved.read_text().replace("/text.txt", "/other.txt"))
    comparison = compared(tmp_path, directory / "finished", directory / "torn")
    assert [row.split() for row in comparison.text().splitlines()][-1] == ["data.train", '"text.txt"', '"other.txt"']


def test_results_beside_runs(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for variant, step in (("plain", 2), ("fast", 3)):
        for seed in (0, 1):
            curve = [[4, 400, 1.0, 4.0], [8, 800, 2.0 + seed, 3.0 + seed]]
            results.append(
                path,
                {"study": "s", "variant": variant, "seed": seed, "keys": {"eggroll.threshold.alpha": step},
                 "text": "a.txt", "bits_per_byte": 3.0 + seed, "curve": curve},
            )  # fmt: skip
    comparison = compared(tmp_path, path)
    assert [entry.label for entry in comparison.entries] == ["s/plain/a.txt", "s/fast/a.txt"]
    assert comparison.differing == {"eggroll.threshold.alpha": [2, 3]}
    one = comparison.entries[0].summary
    assert (one["seeds"], one["last"], one["seconds"], one["tokens_per_second"]) == (2, 3.5, 2.5, 320.0)
    assert one["best"] == 3.5  # of each seed 3 and 4
    beside = compared(tmp_path, f"{path}:s/fast=quick", directory / "finished", references=("gzip -9=2.9",))
    assert [entry.label for entry in beside.entries] == ["quick", "finished"]
    assert beside.differing == {"eggroll.threshold.alpha": [3, 4]}
    with pytest.raises(RunError, match="no results of s/absent"):
        compared(tmp_path, f"{path}:s/absent")
    with pytest.raises(RunError, match="no such results file"):
        compared(tmp_path, tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match="--reference trigram: expected LABEL=BITS"):
        compared(tmp_path, path, references=("trigram",))
    path.write_text("{}\n")
    with pytest.raises(DataError, match="line 1: damaged"):
        compared(tmp_path, path)


def test_the_ladder_is_drawn_where_all_have_the_same(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("intlm.pictures.comparison", lambda curves, levels, out: drawn.append(levels))
    ladder = json.loads((directory / "finished" / "references.json").read_text())
    both = [str(directory / "finished"), str(directory / "torn")]
    compare(both, [], tmp_path / "a.png")
    compare(both, ["x=1.5"], tmp_path / "a.png")
    (directory / "torn" / "references.json").write_text(json.dumps({"unigram": 1.0}))
    compare(both, [], tmp_path / "a.png")
    assert drawn == [ladder, {"x": 1.5}, {}]
    (directory / "torn" / "references.json").write_text("{")
    with pytest.raises(RunError, match=r"references.json: damaged"):
        compare(both, [], tmp_path / "a.png")


def test_commands(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0  # runs/ is the default
    said = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in said] == [row.split()[0] for row in runs(directory).text().splitlines()]
    assert main(["runs", str(directory), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert main(["compare", "runs/finished", "runs/torn"]) == 0
    assert capsys.readouterr().out.endswith("picture: compare.png\n") and (tmp_path / "compare.png").exists()
    assert main(["compare", "runs/finished", "--json", "--picture", "b.png", "--reference", "a=3"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == "b.png" and (tmp_path / "b.png").exists()
    assert main(["compare", "runs/damaged"]) == 2
    assert "metrics.jsonl: line 2: damaged" in capsys.readouterr().err
