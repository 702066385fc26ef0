"""intlm.sweep: the meaning of a sweep's file, refusals before anything runs, and resuming a sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from intlm.cli import main
from intlm.errors import ConfigError, MissingPackage, RunError
from intlm.lock import alive, exclusive
from intlm.optimizers.threshold import Threshold
from intlm.sweep import Sweep, load_study, plan, sweep
from intlm.tracking import metrics, results
from intlm.training import train

REPOSITORY = Path(__file__).parents[1]
STUDIES = sorted(
    path for path in (REPOSITORY / "benchmarks" / "learning").glob("*.toml") if not path.stem.startswith("base")
)
SHORT = {"train.updates": 4, "train.evaluate_every": 2, "train.sample_every": 0}


def study(path: Path, text: str) -> Path:
    path.write_text(f'base = "{tiny.CONFIG}"\n{text}')
    return path


@pytest.mark.parametrize(
    ("text", "variants"),
    [
        ("", {"base": {}}),
        ("[variants.a]\n[variants.b]\n'eggroll.sgd.step' = 5", {"a": {}, "b": {"eggroll.sgd.step": 5}}),
        ("[variants.a.eggroll.sgd]\nstep = 5", {"a": {"eggroll.sgd.step": 5}}),  # as TOML's own tables
        ("keys = { 'eggroll.sgd.step' = 9, 'eggroll.member.rank' = 2 }\n[variants.a]\n'eggroll.sgd.step' = 5",
         {"a": {"eggroll.sgd.step": 5, "eggroll.member.rank": 2}}),
        ("[grid]\n'eggroll.sgd.step' = [4, 8]\n'eggroll.member.fitness' = ['sign', 'normalised']",
         {f"step-{s}+fitness-{f}": {"eggroll.sgd.step": s, "eggroll.member.fitness": f}
          for s in (4, 8) for f in ("sign", "normalised")}),
        ("[variants.a]\n[variants.b]\n'eggroll.member.rank' = 2\n[grid]\n'eggroll.sgd.step' = [4]",
         {"a+step-4": {"eggroll.sgd.step": 4}, "b+step-4": {"eggroll.member.rank": 2, "eggroll.sgd.step": 4}}),
        ("[grid]\n'eggroll.sgd.step' = { from = 2, to = 7, step = 2 }",
         {f"step-{n}": {"eggroll.sgd.step": n} for n in (2, 4, 6)}),
        ("[grid]\neggroll.sgd.step = { from = 3, to = 24, times = 2 }",
         {f"step-{n}": {"eggroll.sgd.step": n} for n in (3, 6, 12, 24)}),
        ("[grid]\n'data.train' = ['x/a b.txt', 'y/c.txt']",
         {"train-a-b": {"data.train": "x/a b.txt"}, "train-c": {"data.train": "y/c.txt"}}),
    ],
)  # fmt: skip
def test_variants(text: str, variants: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_study(study(tmp_path / "s.toml", text))
    assert loaded.variants == variants and list(loaded.variants) == list(variants)
    assert loaded.seeds is None and loaded.base == tiny.CONFIG


@pytest.mark.parametrize(
    ("text", "seeds"), [("seeds = [3, 1]", [3, 1]), ("seeds = { from = 0, to = 2, step = 1 }", [0, 1, 2])]
)
def test_seeds(text: str, seeds: list[int], tmp_path: Path) -> None:
    path = study(tmp_path / "s.toml", text)
    assert load_study(path).seeds == seeds
    planned = plan(load_study(path), {}, tmp_path / "runs", 1)
    assert [run.config.seed for run in planned] == seeds
    assert [run.directory for run in planned] == [tmp_path / "runs" / f"base-text-{seed}" for seed in seeds]
    # Without any, the base's own.
    assert [run.config.seed for run in plan(load_study(study(path, "")), {}, tmp_path, 1)] == [tiny.KEYS["seed"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variant = 3", "s.toml: variant: unknown; did you mean variants?"),
        ("xyz = 3", "s.toml: xyz: unknown: a sweep has base, seeds, keys, variants, grid, plugins"),
        ("base = ", "s.toml: not TOML: "),
        ("seeds = 3", "s.toml: seeds = 3: expected a list, { from = A"),
        ("seeds = []", "s.toml: seeds = []: expected a list"),
        ("seeds = ['a']", "s.toml: seeds = ['a']: expected integers"),
        ("seeds = [-1]", "s.toml: seed = -1: must be at least 0 (variant base)"),
        ("keys = 3", "s.toml: keys = 3: expected a table"),
        ("variants = 3", "s.toml: variants = 3: expected a table"),
        ("[variants]\na = 3", "s.toml: variants.a = 3: expected a table"),
        ("[variants.a]\n'eggroll.sgd.stepp' = 3", "s.toml: variants.a: eggroll.sgd.stepp: unknown key; did you mean"),
        ("[variants.a]\nstep = 3", "s.toml: variants.a: step: unknown key; did you mean eggroll.adam.step?"),
        ("[variants.a]\n'eggroll.sgd.step' = 3.5", "s.toml: eggroll.sgd.step = 3.5: expected an integer (variant a)"),
        ("[variants.'a/b']", "s.toml: variants.\"a/b\": expected a name without a slash, or NUL"),
        ("keys = { seed = 3 }", "s.toml: keys: seed: expected in seeds = [...]"),
        ("[grid]\n'eggroll.sgd.step' = 3", "s.toml: grid: eggroll.sgd.step = 3: expected a list"),
        ("[grid]\n'eggroll.sgd.step' = { from = 3, to = 1, step = 1 }", "s.toml: grid: eggroll.sgd.step = {'from': 3"),
        ("[grid]\n'eggroll.sgd.step' = { from = 1, to = 9, times = 1 }", "s.toml: grid: eggroll.sgd.step = {'from': 1"),
        ("[grid]\n'eggroll.sgd.step' = { from = 1, to = 9 }", "s.toml: grid: eggroll.sgd.step = {'from': 1"),
        ("[grid]\n'eggroll.sgd.step' = [4, 4]", "s.toml: two variants would be called step-4"),
        ("[grid]\n'eggroll.threshold.alpha' = [4, 99]",
         "s.toml: eggroll.threshold.alpha = 99: must be at most 16 (variant alpha-99)"),
        ("[grid]\n'data.tokenizer' = ['alphabet', 'bytes']", "two variants would prepare different text there"),
        ("keys = { 'data.valid_bytes' = 0 }", "s.toml: no text is held out: set data.valid or data.valid_bytes"),
        ("keys = { 'data.train' = 'absent.txt' }\n[variants.a]", "absent.txt: no such text file"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_before_anything_runs(text: str, said: str, tmp_path: Path) -> None:
    """A mistake in any variant is found before anything runs: the message names the file and the key."""
    path = tmp_path / "s.toml"
    path.write_text(text if text.startswith("base") else f'base = "{tiny.CONFIG}"\n{text}')
    with pytest.raises(Exception) as caught:
        sweep(path, {"data.prepared": str(tmp_path / "prepared")}, runs=tmp_path / "runs")
    assert said in str(caught.value) and hasattr(caught.value, "exit_code")
    assert not (tmp_path / "runs").exists()


def test_other_mistakes(tmp_path: Path) -> None:
    path, where = tmp_path / "s.toml", tmp_path / "runs"
    with pytest.raises(ConfigError, match="cannot be read"):
        sweep(path, {}, runs=where)
    path.write_text("seeds = [1]")
    with pytest.raises(ConfigError, match="base: expected the path of a configuration"):
        sweep(path, {}, runs=where)
    study(path, "[variants.adam]")
    with pytest.raises(ConfigError, match="no variant adm; did you mean adam"):
        sweep(path, {}, runs=where, only=["adm"])
    with pytest.raises(ConfigError, match="seed: a sweep has seeds of its own"):
        sweep(path, {"seed": "3"}, runs=where)
    with pytest.raises(ConfigError, match=r'command line: eggroll\.threshold\.decay_updates = "0": must be at least 1'):
        sweep(path, {"eggroll.threshold.decay_updates": "0"}, runs=where)
    tiny.copied(where / "adam-text-3")
    with pytest.raises(RunError, match=r"eggroll\.threshold\.alpha = 7, but the run was started with 4"):
        sweep(path, {"eggroll.threshold.alpha": "7"}, runs=where)
    (where / "adam-text-3" / "config.toml").unlink()
    with pytest.raises(RunError, match="is not empty"):
        sweep(path, {}, runs=where)


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage):
        sweep(study(tmp_path / "s.toml", "keys = { 'train.trackers' = 'wandb' }"), {}, runs=tmp_path / "runs")


@pytest.mark.parametrize(("threads", "jobs", "expected"), [(8, 1, 8), (8, 3, 2), (2, 4, 1), (0, 1, 0)])
def test_threads_are_divided(threads: int, jobs: int, expected: int, tmp_path: Path) -> None:
    path = study(tmp_path / "s.toml", f"keys = {{ threads = {threads} }}")
    (run,) = plan(load_study(path), {}, tmp_path, jobs)
    assert run.config.threads == expected and f"--threads={expected}" in run.command
    (run,) = plan(load_study(study(path, "")), {}, tmp_path, 2)
    assert run.config.threads == max(1, (os.cpu_count() or 1) // 2)


def test_what_tells_results_apart(tmp_path: Path) -> None:
    """A result's identity: the file's keys, the flags that change a result, and the text's name."""
    path = study(tmp_path / "s.toml", "keys = { 'eggroll.threshold.alpha' = 9 }")
    flags = {
        "data.train": str(tmp_path / "b.txt"),
        "threads": "1",
        "train.updates": "7",
        "eggroll.threshold.alpha": "8",
    }
    (run,) = plan(load_study(path), flags, tmp_path, 1)
    assert (
        run.identity["keys"] == {"eggroll.threshold.alpha": 8, "train.updates": 7} and run.identity["text"] == "b.txt"
    )
    assert run.config.eggroll.optimizer == Threshold(alpha=8)
    assert {f"--data.train={tmp_path / 'b.txt'}", "--train.updates=7", "--eggroll.threshold.alpha=8", "--seed=3"} < set(
        run.command
    )


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_are_sweeps_and_their_results_are_known(path: Path, tmp_path: Path) -> None:
    """Every committed result would be recognised and its run skipped: its identity is the one that is written today."""
    known = REPOSITORY / "benchmarks" / "learning" / "results.jsonl"
    lines = [line for line in results.read(known) if line["study"] == path.stem]
    assert lines
    for text in {line["text"] for line in lines}:
        planned = plan(load_study(path), {"data.train": str(tmp_path / text)}, tmp_path, 1)
        done = Sweep(planned, 1, known, tmp_path / "a.png").done
        assert len(done) == sum(line["text"] == text for line in lines)


def run_sweep(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return tiny.intlm("sweep", path, "--runs", path.parent / "runs", *flags)


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs at once, from the file to the table, with the bits of `intlm train`; run again, nothing is trained."""
    keys = ", ".join(f"'{key}' = {value}" for key, value in SHORT.items())
    path = study(tmp_path / "short.toml", f"seeds = [3]\nkeys = {{ {keys} }}\n[grid]\n'train.evaluate_every' = [2, 4]")
    runs = tmp_path / "runs"
    words = ["sweep", str(path), "--runs", str(runs), "--jobs", "2"]
    assert main(words) == 0
    said = capsys.readouterr()
    lines = results.read(runs / "results.jsonl")
    assert sorted(line["variant"] for line in lines) == ["evaluate_every-2", "evaluate_every-4"]
    for line in lines:
        bits = f"{line['bits_per_byte']:.3f}"
        assert f"{line['variant']}, seed 3: {bits} bits per byte after " in said.out
        assert any(row.startswith(line["variant"]) and bits in row for row in said.out.splitlines())
        every = int(line["variant"][-1])
        assert line["keys"] == {**SHORT, "train.evaluate_every": every} and line["study"] == "short"
        assert line["parameters"] == 1728 and len(line["read"]) == len(line["curve"]) == 4 // every
    assert "2 of 2 runs are done" in said.out and "2/2 runs" in said.err
    assert (runs / "curves.png").read_bytes().startswith(b"\x89PNG")
    before = tiny.contents(runs)

    # The same as the command by hand.
    alone = tmp_path / "alone"
    assert train(tiny.load_config(**{key.replace(".", "__"): value for key, value in SHORT.items()}), alone)
    tiny.assert_same_run(alone, runs / "evaluate_every-2-text-3")
    (line,) = (line for line in lines if line["variant"] == "evaluate_every-2")
    measured = metrics.read(alone / "metrics.jsonl")[-1]["valid_bits_per_byte"]
    assert line["bits_per_byte"] == round(measured, 4) == line["curve"][-1][3]

    capsys.readouterr()
    assert main(words) == 0
    assert "after" not in capsys.readouterr().out
    assert {k: v for k, v in tiny.contents(runs).items() if k != "curves.png"} == {
        k: v for k, v in before.items() if k != "curves.png"
    }

    # The results are lost: the runs are only noted again.
    (runs / "results.jsonl").write_text("")
    stamp = (runs / "evaluate_every-2-text-3" / "metrics.jsonl").stat().st_mtime_ns
    assert main(words) == 0
    again = results.read(runs / "results.jsonl")
    bits = {line["variant"]: line["bits_per_byte"] for line in lines}
    assert {line["variant"]: line["bits_per_byte"] for line in again} == bits and len(again) == 2
    assert (runs / "evaluate_every-2-text-3" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_stopped_killed_and_gone_on_with(tmp_path: Path) -> None:
    """A sweep stopped by Ctrl-C, then by SIGKILL, while it trains: its message, and the bits at the end."""
    longer = {**tiny.KEYS, "train.updates": 600, "train.evaluate_every": 200, "train.sample_every": 0,
              "train.checkpoint_seconds": 60}  # fmt: skip
    base = tiny.write_config(tmp_path / "longer.toml", longer)
    path = tmp_path / "s.toml"
    path.write_text(f'base = "{base}"\n')
    runs = tmp_path / "runs"
    run = runs / "base-text-3"
    log = run / "metrics.jsonl"
    command = [sys.executable, "-P", "-m", "intlm.cli", "sweep", str(path), "--runs", str(runs)]

    def begun(past: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tiny.HOME)
        deadline = time.monotonic() + 60
        while not log.exists() or log.read_bytes().count(b"\n") < past:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return process

    process = begun(20)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped and saved; resume with: intlm sweep {path} --runs {runs}" in said
    assert "0 of 1 runs are done" in said
    stopped = metrics.read(log)[-1]["update"]
    assert 20 <= stopped < 600 and (run / "checkpoints" / str(stopped)).exists()

    process = begun(stopped + 20)
    process.kill()  # its run saves and ends too
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while alive(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed = metrics.read(log)[-1]["update"]
    assert stopped + 20 <= killed < 600 and (run / "checkpoints" / str(killed)).exists()
    done = run_sweep(path)
    assert done.returncode == 0, done.stderr
    (line,) = results.read(runs / "results.jsonl")
    assert train(tiny.configuration.load(base), tmp_path / "alone")
    tiny.assert_same_run(tmp_path / "alone", run)
    assert line["bits_per_byte"] == round(
        metrics.read(tmp_path / "alone" / "metrics.jsonl")[-1]["valid_bits_per_byte"], 4
    )


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """A failed run (its checkpoint is damaged) is named, with its message and the file that holds it; the others go
    on."""
    path = study(tmp_path / "s.toml", f"[grid]\n'train.updates' = [{tiny.UPDATES + 1}, 2]")
    run = tiny.copied(tmp_path / "runs" / f"updates-{tiny.UPDATES + 1}-text-3")
    (run / "checkpoints" / str(tiny.UPDATES) / "meta" / "metadata").write_text("{}")
    done = run_sweep(path)
    assert done.returncode == 2
    assert "1 of 2 runs are done" in done.stdout
    (failed,) = (row for row in done.stdout.splitlines() if row.startswith("failed: "))
    assert (
        failed.startswith(f"failed: updates-{tiny.UPDATES + 1}, seed 3: exit code 2: intlm: ") and "damaged" in failed
    )
    assert f"{run}.log" in failed


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    path = study(tmp_path / "s.toml", f"keys = {{ 'train.updates' = {tiny.UPDATES} }}")
    run = tiny.copied(tmp_path / "runs" / "base-text-3")
    with exclusive(run):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "intlm.cli", "sweep", str(path), "--runs", str(tmp_path / "runs")],
            cwd=tiny.HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr and "0/1 runs" in process.stderr.readline()
        time.sleep(0.5)
        assert process.poll() is None and not (tmp_path / "runs" / "results.jsonl").exists()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "1 of 1 runs are done" in said
    assert len(results.read(tmp_path / "runs" / "results.jsonl")) == 1


def test_a_finished_run_that_is_damaged_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study(tmp_path / "s.toml", f"keys = {{ 'train.updates' = {tiny.UPDATES} }}")
    log = tiny.copied(tmp_path / "runs" / "base-text-3") / "metrics.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    unmeasured = [json.loads(line) for line in whole]
    for line in unmeasured:
        line.pop("valid_bits_per_byte", None)
    damages = {
        "line 3: damaged: ": "".join(whole[:2] + whole[3:]),
        "damaged: no line has valid": "".join(json.dumps(line) + "\n" for line in unmeasured),
    }
    for reason, text in damages.items():
        log.write_text(text)
        assert main(["sweep", str(path), "--runs", str(tmp_path / "runs")]) == 2
        assert f"failed: base, seed 3: {log}: {reason}" in capsys.readouterr().out
