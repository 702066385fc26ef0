"""intlm.training: the files that a run leaves, and that stopping it anywhere, in any way, changes no bit of it."""

import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tomli_w
from processes import finished, on_devices, wait_for_lines

from intlm import config as configuration
from intlm.checkpoint import KEPT, Checkpoints
from intlm.checksums import CHECKSUMS
from intlm.cli import main
from intlm.errors import ConfigError
from intlm.evaluation import evaluate, split_documents
from intlm.lock import alive, exclusive
from intlm.optimizers.momentum import MomentumState
from intlm.population import make_engine, native
from intlm.population.sharding import Sharding, number
from intlm.run import load, open_corpus, open_run, population_of, write_whole
from intlm.tracking import metrics
from intlm.trainer import Trainer
from intlm.training import (
    FREE_ON_RESUME,
    check_directory,
    prepare_corpus,
    train,
)
from intlm.update import cosine, initial_state, make_health, saturated

REPOSITORY = Path(__file__).parents[1]
MEASURED = ("valid_bits_per_byte", "agreement", "saturated_weights", "saturated_states")
REPORTED = (*tiny.TIMINGS, *MEASURED, "sample")

# `intlm` in a process that a signal stops, by itself so that the moment is exact: at the n-th change of a file
# below a directory ("change"), at the n-th line of metrics ("line"), or half way through writing it ("torn").
DRIVER = """
import os, signal, sys

kind, count, number, where, *arguments = sys.argv[1:]
left, where = int(count), os.path.abspath(where)


def count_down():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), getattr(signal, number))


def hook(event, values):
    opened = event == "open" and isinstance(values[1], str) and not values[1].startswith("r")
    changed = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
    if (opened or changed) and os.path.abspath(os.fsdecode(values[0])).startswith(where):
        count_down()


if kind == "change":
    sys.addaudithook(hook)
else:
    from intlm.tracking.metrics import MetricsWriter

    write = MetricsWriter.write

    def counted(self, line):
        if kind == "torn" and left == 1:
            self._file.write(b'{"update": 1, "tok')
            self._file.flush()
        else:
            write(self, line)
        count_down()

    MetricsWriter.write = counted

from intlm.cli import main

sys.exit(main(arguments))
"""


def stopped_train(kind: str, count: int, number: str, run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`intlm train` in a process that gets a signal at a moment; see DRIVER."""
    words = ("train", str(tiny.CONFIG), "--run-dir", str(run), *arguments)
    return tiny.intlm(kind, count, number, run, *words, python=("-c", DRIVER))


def test_metrics() -> None:
    run = tiny.trained().directory
    text = (run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and len(lines) == tiny.UPDATES
    always = {
        "update", "tokens_evaluated", "tokens_read", "seconds", "train_bits_per_byte", "tokens_per_second", "changed",
        "waiting",
    }  # fmt: skip
    for update, line in enumerate(lines, start=1):
        last = update == tiny.UPDATES
        measured = set(MEASURED) if last or update % tiny.EVALUATE_EVERY == 0 else set()
        sampled = {"sample"} if last or update % tiny.SAMPLE_EVERY == 0 else set()
        assert set(line) == always | measured | sampled
        assert line["update"] == update
        assert line["tokens_evaluated"] == update * tiny.MEMBERS * tiny.TOKENS
        assert line["tokens_read"] == update * tiny.MEMBERS // 2 // tiny.GROUP_SIZE * tiny.TOKENS
        assert 0 < line["changed"] <= 1
        assert line["tokens_per_second"] > 0 and 0 <= line["waiting"] <= 1
        assert 1 < line["train_bits_per_byte"] < 12
    seconds = [line["seconds"] for line in lines]
    assert seconds[0] > 0 and seconds == sorted(seconds)


@pytest.mark.parametrize(
    ("other", "expected"), [([3, 4, 0], 1), ([-6, -8, 0], -1), ([4, -3, 7], 0), ([4, 3, 0], 0.96), ([0, 0, 0], None)]
)
def test_cosine(other: list[int], expected: float | None) -> None:
    """The cosine is of all parameters together; without any votes it is NaN."""
    halves = [{"a": jnp.array([[x], [y]]), "b": jnp.array([z])} for x, y, z in ([3, 4, 0], other)]
    found = cosine(halves)
    assert math.isnan(found) if expected is None else math.isclose(found, expected, abs_tol=1e-12)


def test_saturated() -> None:
    """The saturated share counts both ends and nothing beside them, over arrays of different sizes."""
    assert saturated([jnp.array([127, -127, 126, -126, 0], jnp.int8), jnp.array([[-127, 1, 2]], jnp.int8)]) == 3 / 8


def test_halves_are_those_of_the_whole_populations_votes() -> None:
    """The votes of each half of the pairs: of an odd number the second half has one more; all pairs shape the
    fitness."""
    member = {"eggroll__member__group_size": 1, "eggroll__member__fitness": "normalised"}
    config = tiny.load_config(eggroll__population=10, **member)
    population = population_of(config, 5)
    engine = make_engine("auto", population)
    losses, update = jnp.asarray(np.random.default_rng(0).integers(0, 900, (5, 2)), jnp.int32), jnp.uint32(7)
    shaping = population.estimator.fitness
    scores = shaping.shape(losses, 1, 5, shaping.totals(losses))
    members = jnp.zeros((5, 2, 1, 8), jnp.int8).at[0, 1, 0, :3].set(jnp.array([127, -127, 126], jnp.int8))
    health = jax.jit(make_health(population, engine, Sharding(population)))(losses, members, update)
    assert number(health.saturated) == 2
    for half, own in zip(health.halves, (slice(0, 2), slice(2, 5)), strict=True):
        expected = engine.accumulate(jnp.zeros(5, jnp.int8).at[own].set(scores[own]), update)
        assert any(votes.any() for votes in expected.values())
        for name, votes in expected.items():
            np.testing.assert_array_equal(half[name], votes, err_msg=name)


def test_training_bits_per_byte_are_the_mean_over_members() -> None:
    """The members are near the shared weights, so that at first the mean is near the shared weights' own."""
    config = tiny.load_config()
    run = tiny.trained().directory
    corpus = open_corpus(config, open_run(run)[1])
    model = load(run)
    found = evaluate(model, split_documents(corpus.split("train"), 4000)).summary()["bits_per_byte"]
    assert abs(metrics.read(run / "metrics.jsonl")[-1]["train_bits_per_byte"] - found) < 0.5


def test_the_last_measurement_is_that_of_the_whole_held_out_text() -> None:
    run = tiny.trained().directory
    config, tokenizer = open_run(run)
    found = evaluate(load(run), split_documents(open_corpus(config, tokenizer).split("valid")))
    assert found.bytes == tiny.KEYS["data.valid_bytes"]
    assert metrics.read(run / "metrics.jsonl")[-1]["valid_bits_per_byte"] == found.summary()["bits_per_byte"]


def test_files_of_a_run() -> None:
    run, printed = tiny.trained()
    (events,) = run.glob("events.out.tfevents.*")
    assert {path.name for path in run.iterdir()} == {
        "config.toml", "tokenizer.json", "references.json", "metrics.jsonl", "learning_curve.png", "checkpoints",
        events.name, ".lock",
    }  # fmt: skip
    assert configuration.load(run / "config.toml") == tiny.load_config()
    kept = {str(update) for update in range(tiny.UPDATES - KEPT + 1, tiny.UPDATES + 1)}
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept
    picture = (run / "learning_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 10_000
    ladder = json.loads((run / "references.json").read_text())
    assert list(ladder) == ["unigram", "bigram", "trigram", "gzip -9"]
    for name, bits in ladder.items():
        assert f"{name} " in printed and f"{bits:.3f}" in printed
    valid = metrics.read(run / "metrics.jsonl")[-1]["valid_bits_per_byte"]
    assert "this model" in printed and f"{valid:.3f}" in printed
    assert f"after {tiny.SAMPLE_EVERY} updates it writes" in printed


def test_members_keep_their_states() -> None:
    """Each member of every pair keeps a state of its own."""
    (members,) = (value for name, value in tiny.state_of(tiny.trained().directory) if name == ".members")
    assert members.shape == (tiny.MEMBERS // 2, 2, 1, 16) and members.dtype == np.int8
    assert len(np.unique(members.reshape(tiny.MEMBERS, -1), axis=0)) > tiny.MEMBERS // 2


def test_a_checkpoint_can_be_checked_by_hand() -> None:
    step = tiny.trained().directory / "checkpoints" / str(tiny.UPDATES)
    listed = {line.split("  ")[1] for line in (step / CHECKSUMS).read_text().splitlines()}
    assert listed == {str(p.relative_to(step)) for p in step.rglob("*") if p.is_file() and p.name != CHECKSUMS}
    if command := next((p for p in ("/usr/bin/sha256sum", "/bin/sha256sum") if os.path.exists(p)), None):
        assert subprocess.run([command, "--check", "--quiet", CHECKSUMS], cwd=step).returncode == 0


def test_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL while the run's directory is made, inside a checkpoint, and while the oldest one is deleted."""
    run = tmp_path / "run"
    for count in (5, 30, 170):
        resume = ["--resume"] if (run / "config.toml").exists() else []
        done = stopped_train("change", count, "SIGKILL", run, *resume)
        assert done.returncode == -signal.SIGKILL, done.stderr
    before = metrics.read(run / "metrics.jsonl")
    assert 3 < len(before) < tiny.UPDATES
    # The script beside the package does the same as the command.
    words = (tiny.CONFIG, "--run-dir", run, "--resume")
    done = tiny.intlm(*words, python=(str(REPOSITORY / "train.py"),))
    assert done.returncode == 0, done.stderr
    tiny.assert_same_run(run, tiny.trained().directory)
    assert [event.step for event in tiny.events_of(run)] == list(range(1, tiny.UPDATES + 1))
    assert done.stdout.endswith(f"next: intlm generate {run}\n")
    assert not list((run / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("at", [20, "config"])
def test_killed_before_it_is_a_run(at: int | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with --from is killed while it writes its first checkpoint, or after: it can be started again, with the
    same weights or without. A directory that is not yet a run is not resumed."""
    run, short = tmp_path / "run", ("--train.updates", "2", "--train.sample_every", "0")
    words = ("train", str(tiny.CONFIG), "--run-dir", str(run), "--from", str(tiny.trained().directory), *short)
    where = ("change", 2, "SIGKILL", run / ".config.toml") if at == "config" else ("change", at, "SIGKILL", run)
    assert tiny.intlm(*where, *words, python=("-c", DRIVER)).returncode == -signal.SIGKILL
    assert (run / "checkpoints").exists() and not (run / "config.toml").exists()
    if at == "config":
        assert (run / "checkpoints" / "0").exists() and len(list(run.glob(".config.toml*"))) == 1
    assert main(["train", str(tiny.CONFIG), "--run-dir", str(run), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    if at == "config":
        assert main(list(words)) == 0
        assert Checkpoints(run / "checkpoints", read_only=True).updates() == [0, 1, 2]
        began = dict(tiny.state_of(run, 0))
        weights = [
            (name, value) for name, value in tiny.state_of(tiny.trained().directory) if name.startswith(".parameters")
        ]
        assert [path.name for path in run.glob(".*")] == [".lock"]
        assert weights and all((began[name] == value).all() for name, value in weights)
    else:
        assert main(["train", str(tiny.CONFIG), "--run-dir", str(run), *short]) == 0
        assert Checkpoints(run / "checkpoints", read_only=True).updates() == [1, 2]


def test_interrupted_then_killed_far_from_a_checkpoint(tmp_path: Path) -> None:
    """Ctrl-C saves and prints how to resume, including the flags; later lines are then dropped as the run resumes."""
    run = tmp_path / "a run"
    done = stopped_train("line", 4, "SIGINT", run, "--train.checkpoint_seconds", "1000")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert len(metrics.read(run / "metrics.jsonl")) == 4
    assert Checkpoints(run / "checkpoints", read_only=True).updates() == [4]
    assert "trigram" in done.stdout and (run / "learning_curve.png").exists()
    said = done.stdout.splitlines()[-1]
    head, _, hint = said.partition(": intlm ")
    assert head == "stopped and saved; resume with"
    arguments = shlex.split(hint)

    words = ("torn", 4, "SIGKILL", run, *arguments)
    assert tiny.intlm(*words, python=("-c", DRIVER)).returncode == -signal.SIGKILL
    assert len(metrics.read(run / "metrics.jsonl")) == 7
    assert not (run / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert Checkpoints(run / "checkpoints", read_only=True).updates() == [4]

    assert main(arguments) == 0
    tiny.assert_same_run(run, tiny.trained().directory)
    assert [event.step for event in tiny.events_of(run)] == list(range(1, tiny.UPDATES + 1))
    assert configuration.load(run / "config.toml") == tiny.load_config(train__checkpoint_seconds=1000)


def test_two_runs_are_equal_whatever_is_reported_and_however_they_are_chunked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny.load_config(
        eggroll__chunk_size=8, train__evaluate_every=0, train__sample_every=0, train__checkpoint_seconds=1000
    )
    assert train(config, run)
    tiny.assert_same_state(run, tiny.trained().directory)
    assert tiny.lines_of(run, REPORTED) == tiny.lines_of(tiny.trained().directory, REPORTED)


def test_a_run_is_made_longer(tmp_path: Path) -> None:
    """The same updates in two parts; in the second, chunks and reports differ, and it reads other shards."""
    run = tmp_path / "run"
    assert train(tiny.load_config(train__updates=5, train__checkpoint_seconds=1000), run)
    assert len(tiny.lines_of(run)) == 5
    longer = tiny.load_config(
        eggroll__chunk_size=8, train__evaluate_every=3, train__checkpoint_seconds=1000,
        data__prepared=tmp_path / "prepared", engine="xla",
    )  # fmt: skip
    assert train(longer, run, resume=True)
    tiny.assert_same_state(run, tiny.trained().directory)
    assert tiny.lines_of(run, REPORTED) == tiny.lines_of(tiny.trained().directory, REPORTED)
    assert [line["update"] for line in tiny.lines_of(run) if "valid_bits_per_byte" in line] == [4, 5, 6, 9, 12]
    assert configuration.load(run / "config.toml") == longer


@pytest.mark.parametrize(("optimizer", "targets"), [("momentum", 4), ("adam", 1)])
def test_what_an_optimizer_remembers_is_kept(optimizer: str, targets: int, tmp_path: Path) -> None:
    """Master weights and averages, in two parts as in one, the first of which ends inside the warm-up."""
    own = {"momentum": 3, "weight_decay": 9, "warmup_updates": 4}
    keys = {f"eggroll__{optimizer}__{name}": value for name, value in own.items()} | {
        "eggroll__optimizer": optimizer, "next_token__targets": targets, "train__checkpoint_seconds": 1000,
        "train__evaluate_every": 0,
    }  # fmt: skip
    for directory, updates in (("parts", 3), ("parts", 6), ("whole", 6)):
        config = tiny.load_config(train__updates=updates, **keys)
        assert train(config, tmp_path / directory, resume=(tmp_path / directory).exists())
    tiny.assert_same_state(tmp_path / "parts", tmp_path / "whole")
    found = dict(tiny.state_of(tmp_path / "whole"))
    assert any("square" in name for name in found) == (optimizer == "adam")
    means = [values for name, values in found.items() if "mean" in name]
    assert means and all(values.any() for values in means)


def make_older(run: Path) -> None:
    """Turns a run by `sgd` into what version 0.1 left: flat keys; `momentum` with momentum = 0, which kept a mean."""
    tables = tomllib.loads((run / "config.toml").read_text())
    eggroll = tables["eggroll"]
    del tables["objective"], eggroll["estimator"]
    eggroll |= eggroll.pop("member") | eggroll.pop("sgd") | {"optimizer": "momentum", "momentum": 0, "alpha": 4}
    tables["train"] |= tables.pop("next_token")
    (run / "config.toml").write_text(tomli_w.dumps(tables))
    checkpoints = Checkpoints(run / "checkpoints")
    (update,) = checkpoints.updates()
    config, tokenizer = open_run(run)
    like = jax.eval_shape(lambda: initial_state(population_of(config, tokenizer.vocab_size), config.eggroll.optimizer))
    state = checkpoints.restore(update, like)
    master = state.optimizer[0]
    meta = json.loads((run / "checkpoints" / str(update) / "meta" / "metadata").read_text())
    shutil.rmtree(run / "checkpoints")
    Checkpoints(run / "checkpoints").save(update, state._replace(optimizer=MomentumState(master, master)), meta)


def test_a_run_of_an_earlier_version_is_used_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of an earlier version is used and resumed like one of this version; one line gives the new names of its
    keys."""
    keys = {"eggroll__optimizer": "sgd", "next_token__targets": 2, "train__checkpoint_seconds": 1000}
    run, older = tmp_path / "run", tmp_path / "older"
    assert train(tiny.load_config(train__updates=3, **keys), run)
    shutil.copytree(run, older)
    make_older(older)
    assert "momentum = 0" in (older / "config.toml").read_text()

    exports = [tmp_path / "export of run", tmp_path / "export of older"]
    for words in (["evaluate"], ["generate", "--tokens", "9"], ["export", "--to", "safetensors", "--out"]):
        said = []
        for directory, out in zip((run, older), exports, strict=True):
            capsys.readouterr()
            assert main([words[0], str(directory), *words[1:], *([str(out)] if words[0] == "export" else [])]) == 0
            said.append(capsys.readouterr().out.replace(str(out), "").replace(str(directory), ""))
        assert said[0] == said[1]
    assert len({(out / "model.safetensors").read_bytes() for out in exports}) == 1

    file = shutil.copy(older / "config.toml", tmp_path / "a.toml")
    for directory, config in ((run, tiny.CONFIG), (older, file)):
        flags = () if directory == older else ("--eggroll.optimizer", "sgd", "--next_token.targets", "2")
        assert (
            main(["train", str(config), "--resume", "--run-dir", str(directory), "--train.updates", "6", *flags]) == 0
        )
    assert capsys.readouterr().err.count("written for an earlier version") == 1
    tiny.assert_same_state(run, older)
    assert tiny.lines_of(run) == tiny.lines_of(older)


def test_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two more corpora in the tokens of the first: a resumed run equals a whole one; another mixture is refused."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_bytes(tiny.words(500, seed=len(name) + ord(name[0])) + name.encode() * 9)
        tiny.write_config(tmp_path / f"{name}.toml", {"data.train": f"{name}.txt", "data.valid_bytes": 500})
    mixture = f"2 {tmp_path / 'one.toml'}, 1 {tmp_path / 'two.toml'}"
    keys = {"data__mixture": mixture, "data__share": 5, "data__prepared": tmp_path / "prepared"}
    for directory, updates in (("parts", 3), ("parts", 6), ("whole", 6)):
        config = tiny.load_config(train__updates=updates, train__checkpoint_seconds=1000, **keys)
        assert train(config, tmp_path / directory, resume=(tmp_path / directory).exists())
    tiny.assert_same_state(tmp_path / "parts", tmp_path / "whole")
    assert tiny.lines_of(tmp_path / "parts", REPORTED) == tiny.lines_of(tmp_path / "whole", REPORTED)
    trainer = Trainer(config, tmp_path / "new", prepare_corpus(config))
    assert trainer.streams.counts == [5, 2, 1]
    assert [corpus.directory.name for _, corpus in trainer.mixture] == ["prepared", "prepared-1-one", "prepared-2-two"]
    assert {corpus.tokenizer for _, corpus in trainer.mixture} == {trainer.corpus.tokenizer}
    batch = trainer.streams.batch(0)
    for row, split in ((0, trainer.splits[0]), (5, trainer.splits[1]), (7, trainer.splits[2])):
        np.testing.assert_array_equal(batch.tokens[row], split.read(0, tiny.TOKENS))
    last = tiny.lines_of(tmp_path / "whole")[-1]
    assert last["tokens_read"] == 6 * 8 * tiny.TOKENS and 1 < last["train_bits_per_byte"] < 12

    words = ["train", str(tmp_path / "whole" / "config.toml"), "--run-dir", str(tmp_path / "whole"), "--resume"]
    assert main([*words, "--data.mixture", mixture.replace("2 ", "1 ")]) == 2
    assert "data.mixture = " in capsys.readouterr().err
    (tmp_path / "two.txt").write_bytes(b"abba " * 300)
    assert main([*words, "--train.updates", "7"]) == 2
    assert "is not what the run was started with" in capsys.readouterr().err


def test_a_mixture_that_cannot_be(tmp_path: Path) -> None:
    tiny.write_config(tmp_path / "a.toml", {"data.train": "a.txt", "data.mixture": "1 a.toml"})
    with pytest.raises(ConfigError, match=r"a\.toml: data\.mixture = .* must be empty in a corpus of a mixture"):
        train(tiny.load_config(data__mixture=f"1 {tmp_path / 'a.toml'}"), tmp_path / "run")
    tiny.write_config(tmp_path / "a.toml", {"data.train": str(tiny.HOME / "text.txt")})
    with pytest.raises(ConfigError, match=r"data\.mixture: a share of 1 is less than one of the 8 texts"):
        keys = {"data__mixture": f"99 {tmp_path / 'a.toml'}", "data__prepared": tmp_path / "p"}
        train(tiny.load_config(**keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_resumed_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.copied(tmp_path / "run")
    before = tiny.contents(run / "checkpoints"), (run / "metrics.jsonl").read_bytes()
    assert main(["train", str(tiny.CONFIG), "--run-dir", str(run), "--resume"]) == 0
    assert (tiny.contents(run / "checkpoints"), (run / "metrics.jsonl").read_bytes()) == before
    assert "this model" in capsys.readouterr().out


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the last moment, it is still the old one."""
    path = tmp_path / "config.toml"
    write_whole(path, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_a_run_is_read_while_it_saves(tmp_path: Path) -> None:
    """After every update, as often as it can: a reader never finds a checkpoint half there or gone."""
    run, often = tmp_path / "run", ("--train.updates", 120, "--train.evaluate_every", 0, "--train.sample_every", 0)
    trainer = on_devices(1, "train", tiny.CONFIG, "--run-dir", run, *often)
    wait_for_lines(run, 5)
    read = 0
    while trainer.poll() is None:
        load(run)
        read += 1
        if read == 10:
            assert main(["generate", str(run), "--tokens", "1"]) == 0
    finished(trainer)
    assert read > 30 and set(os.listdir(run / "checkpoints")) == {"118", "119", "120"}


REFUSED = [
    ("seed", 4, 3),
    ("model.hidden_size", 24, 16),
    ("model.num_layers", 2, 1),
    ("model.feed_forward_size", 24, 16),
    ("model.nonlinearity", "table", "clip"),
    ("model.cell", "rnn", "mgu"),
    ("eggroll.population", 64, 32),
    ("eggroll.member.group_size", 4, 2),
    ("eggroll.member.rank", 2, 1),
    ("eggroll.member.sigma_shift", 3, 4),
    ("eggroll.member.noise_reuse", 2, 1),
    ("eggroll.member.fitness", "normalised", "sign"),
    ("eggroll.optimizer", "adam", "threshold"),
    ("eggroll.threshold.alpha", 5, 4),
    ("eggroll.threshold.decay_updates", 7, 1000),
    ("train.tokens_per_update", 16, 8),
    ("train.schedule", "0-9: 0-12", ""),
    ("next_token.targets", 2, 1),
    ("data.valid_bytes", 2000, 3000),
    ("data.tokenizer", "bytes", "alphabet"),
    ("data.document_separator", "abba", ""),
    ("data.max_bytes", 9000, 0),
    ("data.subset", "en", ""),
    ("data.split", "test", "train"),
    ("data.columns", "body", "text"),
    ("data.filter", "score > 1", ""),
    ("data.share", 2, 1),
]


def test_another_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is not resumed if any key differs that changes a bit: one line with the key and both values, and nothing
    is touched."""
    texts = {"data.train", "data.valid", "data.valid_split", "data.tokenizer_file", "data.mixture"}
    texts |= {"objective", "eggroll.estimator"}  # there is one of each so far
    kept = set(configuration.flatten(tiny.load_config())) - FREE_ON_RESUME
    assert {key for key, _, _ in REFUSED} | texts == kept
    run = tiny.copied(tmp_path / "run")
    before, prepared = tiny.contents(run), tiny.contents(tiny.HOME / "prepared")
    for key, now, was in REFUSED:
        words = ["train", str(tiny.CONFIG), "--run-dir", str(run), "--resume", f"--{key}", str(now)]
        assert main(words) == 2, key
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"intlm: {run}: {key} = {now!r}, but the run was started with {was!r}: "), said.err
        assert said.err.count("\n") == 1
    assert tiny.contents(run) == before
    assert tiny.contents(tiny.HOME / "prepared") == prepared


def test_damaged_text_is_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed bit in a shard is named before anything is written, at the start of a run and at its resumption."""
    words = ["train", str(tiny.CONFIG), "--data.prepared", str(tmp_path / "prepared"), "--train.updates", "2"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    shard = tmp_path / "prepared" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    before = tiny.contents(tmp_path / "run")
    capsys.readouterr()
    assert main([*words, "--run-dir", str(tmp_path / "new")]) == 2
    assert main([*words, "--run-dir", str(tmp_path / "run"), "--resume", "--train.updates", "3"]) == 2
    assert capsys.readouterr().err.count(f"intlm: {shard}: damaged: its sha256 is ") == 2
    assert not (tmp_path / "new").exists() and tiny.contents(tmp_path / "run") == before


def test_other_text_under_the_same_name_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_bytes(tiny.words(400))
    keys = {**tiny.KEYS, "data.train": "text.txt", "data.valid_bytes": 300, "data.prepared": "prepared"}
    words = ["train", str(tiny.write_config(tmp_path / "a.toml", keys)), "--run-dir", str(run)]
    assert main([*words, "--train.updates", "2", "--train.sample_every", "0"]) == 0
    before = tiny.contents(run)
    capsys.readouterr()

    os.utime(text)  # prepared again, to the same tokens
    text.write_bytes(tiny.words(400)[::-1])
    assert main([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"intlm: {run}: ") and str(text) in said and said.count("\n") == 1
    assert tiny.contents(run) == before

    text.write_bytes(tiny.words(400))
    assert main([*words, "--resume", "--train.updates", "3"]) == 0


def test_a_directory_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.copied(tmp_path / "run")
    before = tiny.contents(run)
    words = ["train", str(tiny.CONFIG), "--run-dir"]
    assert main([*words, str(run)]) == 2
    assert "holds a run already: add --resume" in capsys.readouterr().err
    # A second trainer, even one with other keys that may change, while the first one holds the directory.
    with exclusive(run):
        assert main([*words, str(run), "--resume", "--train.updates", "50"]) == 2
    assert "another `intlm train` is running in it" in capsys.readouterr().err
    assert tiny.contents(run) == before

    # Whoever looks whether a run is alive holds the lock for a moment, and keeps none from starting.
    assert not alive(run) and not alive(tmp_path)
    with exclusive(run):
        assert alive(run) and alive(run)
    looking = (run / ".lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    Timer(0.1, looking.close).start()
    with exclusive(run):
        assert looking.closed and alive(run)
    assert not alive(run)

    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()  # of a run killed before it was one
    check_directory(tiny.load_config(), other, resume=False)
    (other / "notes.txt").write_text("mine")
    assert main([*words, str(other)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*words, str(other), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert main([*words, str(other / "notes.txt")]) == 2
    assert "notes.txt: " in capsys.readouterr().err
    assert main([*words, str(tmp_path / "absent"), "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert {path.name for path in other.iterdir()} == {".lock", "notes.txt"} and not (tmp_path / "absent").exists()


def test_what_the_trainer_refuses_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused configuration leaves no run directory: else, once corrected, it could be neither started nor
    resumed."""
    monkeypatch.setattr(native, "missing", lambda: "not in this installation")
    assert main(["train", str(tiny.CONFIG), "--run-dir", str(tmp_path / "run"), "--engine", "native"]) == 2
    assert "not in this installation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def tamper(name: str, change: Callable[[bytes], bytes], run: Path) -> Path:
    """Changes a file of a run's last checkpoint."""
    (path,) = (run / "checkpoints" / str(tiny.UPDATES)).glob(name)
    path.write_bytes(change(path.read_bytes()))
    return path


def test_a_damaged_checkpoint_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.copied(tmp_path / "run")
    path = tamper("members/d/*", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], run)
    before = tiny.contents(run)
    words = ["train", str(tiny.CONFIG), "--run-dir", str(run), "--resume"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"intlm: {path}: damaged: ") and said.count("\n") == 1
    assert str(path.parents[2]) in said  # what to delete
    assert tiny.contents(run) == before
    for file in sorted(path.parents[2].rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    path.parents[2].rmdir()
    assert main(words) == 0
    tiny.assert_same_run(run, tiny.trained().directory)


def test_it_learns_without_held_out_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """abababab is learnt within a few hundred updates; a run with nothing held out says so."""
    (tmp_path / "text.txt").write_bytes(b"ab" * 500 + b" ")  # the alphabet of the other text: the same program
    keys = {
        **tiny.KEYS, "data.train": "text.txt", "data.valid_bytes": 0, "data.prepared": "prepared",
        "eggroll.threshold.decay_updates": 100, "train.updates": 200, "train.checkpoint_seconds": 1000,
        "train.sample_every": 200,
    }  # fmt: skip
    words = ["train", str(tiny.write_config(tmp_path / "a.toml", keys)), "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    first, last = ([line["train_bits_per_byte"] for line in part] for part in (lines[:10], lines[-10:]))
    assert np.mean(first) > 1
    assert np.mean(last) < 0.2
    assert "abababababab" in lines[-1]["sample"]
    assert not any("valid_bits_per_byte" in line for line in lines)
    assert math.isclose(lines[-1]["changed"], 0, abs_tol=0.2)
    assert "no text is held out" in capsys.readouterr().out
