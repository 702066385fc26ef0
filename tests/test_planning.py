"""intlm.planning, intlm.schedule: a run of so many minutes, made longer and ended early, depends on its configuration
alone."""

import itertools
import os
import signal
from pathlib import Path
from threading import Thread

import pytest
import tiny
from processes import finished, together, wait_for_lines
from test_training import REPORTED, stopped_train

from intlm import config as configuration
from intlm import schedule
from intlm.cli import main
from intlm.config import Config
from intlm.distributed import _resuming
from intlm.optimizers.sgd import Sgd
from intlm.planning import Costs, finishing, make_plan
from intlm.schedule import Leg
from intlm.sweep import load_study, plan
from intlm.tracking import metrics

SGD = ("--eggroll.optimizer", "sgd", "--eggroll.sgd.decay_updates", "12", "--train.checkpoint_seconds", "1000")


def test_position() -> None:
    legs = "0-1400: 0-3000, 500-550: 1071-3000"
    assert [schedule.position(legs, update) for update in (0, 499, 500, 525, 549, 550, 560)] == [
        0, 1069, 1071, 2035, 2961, 3000, 3010,
    ]  # fmt: skip
    assert schedule.position("", 7) == schedule.position("9-10: 0-100", 7) == 7
    assert schedule.with_leg(legs, Leg(550, 900, 1833, 3000)) == f"{legs}, 550-900: 1833-3000"
    assert schedule.with_leg(legs, Leg(500, 600, 1071, 3000)) == "0-1400: 0-3000, 500-600: 1071-3000"


@pytest.mark.parametrize("text", ["5", "5-5: 0-1", "0-5: 2-1", "0-9999999999: 0-1", "0-5: 0-1,", "3-5: 0-1, 3-6: 0-1"])
def test_no_schedule(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny.CONFIG), f"--train.schedule={text}"]) == 2
    assert capsys.readouterr().err.startswith(f'intlm: command line: train.schedule = "{text}": expected ')


def seconds_of(config: Config, updates: int, every: int, sample: int, costs: Costs) -> float:
    """What a run takes."""
    own = updates * costs.update + -(-updates // every) * costs.measurement + -(-updates // sample) * costs.sample
    return own / (1 - costs.saving) + costs.last


@pytest.mark.parametrize(("minutes", "slower"), [(5, 1), (5, 7), (0.5, 1), (600, 1)])
def test_a_plan_fills_the_time(minutes: float, slower: float) -> None:
    """With measurements, samples and checkpoints it takes the time, to an update and a measurement or a sample."""
    config = tiny.load_config(train__updates=3000, train__evaluate_every=100, train__sample_every=1000)
    costs = Costs(0.1 * slower, 1.5 * slower, 0.5 * slower, 3.0 * slower, 0.01)
    plan = make_plan(config, 0, costs, 60 * minutes)
    took = seconds_of(config, *plan, costs)
    assert -costs.update - costs.measurement - costs.sample <= took - 60 * minutes <= 1e-6
    reports = plan.updates / plan.evaluate_every * costs.measurement + plan.updates / plan.sample_every * costs.sample
    assert reports <= 6 * minutes + costs.measurement + costs.sample
    if minutes == 600:
        assert plan.updates / plan.evaluate_every == pytest.approx(30, abs=0.1)
    further = make_plan(config, 500, costs, 60 * minutes)
    took = seconds_of(config, further.updates, 100, 1000, costs)
    assert further[1:] == (100, 1000) and abs(took - 60 * minutes) < costs.update + costs.measurement + costs.sample
    assert make_plan(config, 0, costs, 1.0).updates == 0


def test_a_plan_reports_what_it_was_asked_to() -> None:
    config = tiny.load_config(train__evaluate_every=0, train__sample_every=0)
    assert make_plan(config, 0, Costs(1.0, 2.0, 0.0, 1.0, 0.0), 103.0) == (100, 0, 0)


def test_finishing() -> None:
    """The step falls from where it is to nothing within a tenth of what is done; what ends as soon anyway stays."""
    config = tiny.load_config(eggroll__optimizer="sgd", eggroll__sgd__decay_updates=3000, train__updates=2500)
    after, said = finishing(config, 1000)
    assert after.train.updates == 1100 and after.train.schedule == "1000-1100: 1000-3000" and "the last 100" in said
    sgd = after.eggroll.optimizer
    assert isinstance(sgd, Sgd)
    steps = [sgd.setting(schedule.position(after.train.schedule, update)) for update in range(990, 1101)]
    assert steps[:11] == [sgd.setting(update) for update in range(990, 1001)] and steps[-1] == 0 < steps[-2]
    assert max(a - b for a, b in itertools.pairwise(steps)) <= steps[10] // 100 + 1
    assert finishing(after, 1050) == (after, "")
    assert finishing(after, 1100) == (after, "")
    assert finishing(config, 2495)[0].train.schedule == "2495-2500: 2495-3000"  # it would not end at nothing


def interrupt(run: Path, lines: int, *words: object) -> None:
    """Runs a command here and presses Ctrl-C once a run has so many lines."""

    def press() -> None:
        wait_for_lines(run, lines)
        os.kill(os.getpid(), signal.SIGINT)

    thread = Thread(target=press)
    thread.start()
    code = main(list(map(str, words)))
    thread.join()
    assert code == 130


def as_planned(run: Path, again: Path) -> None:
    """Another run, from the config.toml of a run that was stopped, has the same bits."""
    updates = len(metrics.read(run / "metrics.jsonl"))
    flags = ("--train.updates", str(updates), "--train.sample_every", "0")
    assert main(["train", str(run / "config.toml"), "--run-dir", str(again), *flags]) == 0
    tiny.assert_same_state(run, again)
    assert tiny.lines_of(run, REPORTED) == tiny.lines_of(again, REPORTED)


def test_a_run_of_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped while it is measured, planned, stopped, finished early in two parts, made longer: at the end it is the
    run that its config.toml describes."""
    run, minutes = tmp_path / "run", ("--minutes", "0.4")
    saved, words = run / "config.toml", ("train", str(tiny.CONFIG), "--run-dir", str(run), *SGD)
    interrupt(run / ".measuring", 2, *words, *minutes)
    assert capsys.readouterr().err.endswith("intlm: interrupted\n") and os.listdir(run) == [".lock"]

    interrupt(run, 15, *words, *minutes)
    out, err = capsys.readouterr()
    assert "trigram" in out and "stopped and saved; resume with: " in out.splitlines()[-1]
    assert set(os.listdir(run)) > {"learning_curve.png", "references.json"} and not (run / ".measuring").exists()
    planned = configuration.load(saved).train
    assert planned.minutes == 0 and planned.schedule == f"0-{planned.updates}: 0-{tiny.UPDATES}"
    comment = f"train.minutes = 0.4 on this machine: {planned.updates:,} updates of "
    assert comment in err and saved.read_text().startswith(f"# {comment}")
    stopped = len(metrics.read(run / "metrics.jsonl"))
    assert 15 <= stopped < planned.updates

    # The configuration that it was started with resumes it, with the planned numbers.
    flags = ("--resume", "--finish-now", "--train.checkpoint_seconds", "0")
    assert stopped_train("line", 4, "SIGKILL", run, *SGD, *flags).returncode == -signal.SIGKILL
    finish = stopped + max(10, stopped // 10)
    assert configuration.load(saved).train.updates == finish
    capsys.readouterr()
    assert main([*words, *flags]) == 0
    assert f"\n{finish} updates, " in capsys.readouterr().out
    assert metrics.read(run / "metrics.jsonl")[-1]["changed"] < metrics.read(run / "metrics.jsonl")[stopped]["changed"]

    interrupt(run, finish + 5, "train", saved, "--run-dir", run, "--resume", *minutes)
    longer = configuration.load(saved).train
    first, second, third = schedule.parse(longer.schedule)
    assert first.last == planned.updates and second[:2] == (stopped, finish) and second.end == tiny.UPDATES
    assert third == (finish, longer.updates, finish * tiny.UPDATES // longer.updates, tiny.UPDATES)
    assert [line[:2] for line in saved.read_text().splitlines()[:4]] == ["# "] * 3 + ["wr"]

    as_planned(run, tmp_path / "whole")


def test_processes_agree_on_the_length(tmp_path: Path) -> None:
    """Two processes plan one number of updates, and throw the same away."""
    run = tmp_path / "run"
    both = together(2, "train", tiny.CONFIG, "--run-dir", run, "--minutes", "0.4", *SGD)
    wait_for_lines(run, 5)
    both[1].send_signal(signal.SIGTERM)
    finished(*both, code=130)
    as_planned(run, tmp_path / "alone")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The message, a line, of a command that is refused."""
    assert main(list(map(str, words))) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_lengths_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", tiny.CONFIG, "--run-dir", tmp_path / "run")
    both = refused(capsys, *words, "--minutes", "2", "--train.updates", "9")
    assert both == "intlm: command line: train.minutes = 2 and train.updates = 9: expected one of them"
    assert "--finish-now: " in refused(capsys, *words, "--finish-now")
    for flag, value in (("--minutes", "2"), ("--train.updates", "9")):
        said = refused(capsys, *words, "--resume", "--finish-now", flag, value)
        assert f"= {value} and --finish-now" in said
    for value in ("-1", "nan", "inf", "1e9", "two", "", "0x1", "9" * 9999):
        assert "train.minutes = " in refused(capsys, *words, f"--minutes={value}")
    said = refused(capsys, *words, "--minutes", "1e-9")
    assert said.startswith("intlm: train.minutes = 1e-09: too short: ")
    assert "nothing to resume" in refused(capsys, *words, "--resume", "--minutes", "1")
    assert os.listdir(tmp_path / "run") == [".lock"]
    sweep = tmp_path / "a.toml"
    sweep.write_text(f'base = "{tiny.CONFIG}"\nkeys = {{ "train.minutes" = 1 }}\n')
    assert "a.toml: train.minutes = 1: " in refused(capsys, "sweep", sweep)


def test_the_base_of_a_sweep_may_have_minutes(tmp_path: Path) -> None:
    """They do not count, and the run that is started is told so."""
    base, file = tiny.write_config(tmp_path / "base.toml", {**tiny.KEYS, "train.minutes": 5}), tmp_path / "a.toml"
    file.write_text('base = "base.toml"\nkeys = { "train.updates" = 7 }\n')
    (run,) = plan(load_study(file), {}, tmp_path, 1)
    flags = dict(word[2:].split("=") for word in run.command if "=" in word)
    assert run.config.train.minutes == 0 and flags["train.updates"] == "7"
    assert configuration.load(base, flags) == run.config


def test_updates_take_the_place_of_minutes_of_a_file(tmp_path: Path) -> None:
    """Of minutes in a file: updates given over it count; a resumed run keeps what was decided."""
    file = tiny.write_config(tmp_path / "a.toml", {**tiny.KEYS, "train.minutes": 0.5})
    assert configuration.load(file).train.minutes == 0.5
    assert configuration.load(file, {"train.updates": "7"}).train.minutes == 0
    run = tiny.copied(tmp_path / "run")
    assert main(["train", str(file), "--run-dir", str(run), "--resume"]) == 0
    assert configuration.load(run / "config.toml").train == tiny.load_config().train


def test_a_supervised_run_is_planned_once() -> None:
    """Started again, it is not made longer or ended once more."""
    words = "train a.toml --resume --minutes 5 --train.minutes=7 --from=b --finish-now --seed 1"
    assert _resuming(words.split()) == ["train", "a.toml", "--seed", "1", "--resume"]
