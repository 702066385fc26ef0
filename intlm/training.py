"""Pretraining: one update after another, each a pure function of the state before it and of its number.

What is written on the way (metrics, samples, checkpoints) depends on time only in its timings, so a run that is
stopped anywhere and resumed ends with the same weights and the same metrics as one that never was.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from intlm import config as configuration
from intlm import distributed
from intlm.checkpoint import Checkpoints, check_path
from intlm.config import Config, flatten
from intlm.data.prepare import corpora, prepare
from intlm.data.references import LADDER, read_ladder, references
from intlm.data.shards import Corpus
from intlm.data.streams import Batch, ReadAhead
from intlm.errors import RunError
from intlm.evaluation import Evaluation, evaluate, split_documents
from intlm.generation import generate
from intlm.lazy import Array
from intlm.model.parameters import specifications
from intlm.optimizers import check_state
from intlm.population import make_engine, native
from intlm.population.sharding import DIVIDED, SAME, Sharding, number
from intlm.run import LanguageModel, load, open_corpus, open_run, population_of, write_whole
from intlm.tracking import metrics, picture
from intlm.tracking.log import Log
from intlm.tracking.progress import Progress
from intlm.tracking.services import check_installed
from intlm.tracking.table import format_table, human
from intlm.update import (
    TrainState,
    UpdateReport,
    compile_update,
    cosine,
    initial_state,
    make_health,
    saturated,
)

PROGRESS_TOKENS = 1 << 18  # held-out tokens measured during training; the last measurement takes them all
REFERENCE_BYTES = 1 << 26  # training and held-out text that the ladder of references reads
SAMPLE_TOKENS = 300
SAVING_SHARE = 50  # times what a checkpoint takes are at least between two
LATE = 5  # seconds of an update from which on processes meet before anything crosses
# What each process of a run may set for itself.
TEXTS = {"data.train", "data.valid", "data.tokenizer_file", "data.mixture"}  # paths: known by what is there
OF_A_MACHINE = {"engine", "threads", "eggroll.chunk_size", "data.prepared", "data.processes"}
# What a resumed run may set anew: how long to go on and what to report, but nothing that changes a bit.
FREE_ON_RESUME = OF_A_MACHINE | {
    "train.updates", "train.evaluate_every", "train.sample_every", "train.checkpoint_seconds", "train.trackers",
}  # fmt: skip


def prepare_corpus(config: Config) -> Corpus:
    """The token shards that a configuration asks for, made now if they are not there, but for its mixture's."""
    return prepare(config.data)


@dataclass
class Trainer:
    """One run, from its configuration to its summary.

    devices: that share the population, of all processes; None: the one that JAX computes on.
    """

    config: Config
    directory: Path
    corpus: Corpus
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self) -> None:
        config, tokenizer = self.config, self.corpus.tokenizer
        configuration.check_limits(config, tokenizer.vocab_size)
        self.split = self.corpus.split("train")
        self.valid = self.corpus.splits.get("valid")  # None where no text is held out
        self.population = population_of(config, tokenizer.vocab_size)
        if self.devices and not config.threads:  # each of a process's devices has its share of the cores
            threads = max(1, native.cores() // len(jax.local_devices()))
            self.population = replace(self.population, threads=threads)
        self.sharding = Sharding(self.population, self.devices)
        self.mixture = corpora(config.data) if config.data.mixture else [(1, self.corpus)]
        self.splits = [corpus.split("train") for _, corpus in self.mixture]
        shares = [(share, split) for (share, _), split in zip(self.mixture, self.splits, strict=True)]
        length, own = config.train.tokens_per_update, self.sharding.process_texts
        self.streams = config.objective.streams(shares, self.population.texts, length, own)
        self.optimizer = config.eggroll.optimizer
        self.engine = make_engine(config.engine, self.population)
        meet = None if distributed.alone() else self.meet
        self.step = compile_update(self.population, self.engine, self.optimizer, self.sharding, meet)
        health = make_health(self.population, self.engine, self.sharding)
        self.measure_health = self.sharding.compile(health, (DIVIDED, DIVIDED, SAME), SAME)
        self.weights = sum(int(np.prod(s.shape)) for s in specifications(self.population.architecture))
        self.place(initial_state(self.population, self.optimizer))
        self.model = LanguageModel(self.population.architecture, self.whole_parameters(), tokenizer, self.engine)
        self.update = 0  # updates done
        self.seconds = 0.0  # of training, earlier parts of the run included
        self.ladder: dict[str, float] = {}
        self.saved: int | None = None  # the update whose checkpoint is there
        self.late = True  # whether some process may be late at the next update: the first one compiles

    def place(self, state: TrainState) -> None:
        """Divide a whole state among the devices."""
        put = self.sharding
        self.state = TrainState(
            put.put_same(state.parameters), put.put_slices(state.optimizer), put.put_units(state.members)
        )

    def whole_parameters(self) -> Any:
        """The shared weights, for a program of one device."""
        return self.sharding.take_same(self.state.parameters)

    def meet(self, seen: Any) -> None:
        """Wait for the other processes where one may be late."""
        if self.late:
            jax.block_until_ready(seen)
            distributed.wait(f"update {self.update}")

    @property
    def identity(self) -> str:
        """What tells the text apart, all of a mixture."""
        return " ".join(corpus.identity for _, corpus in self.mixture)

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one, and drop the metrics past it."""
        path = self.directory / "checkpoints"
        checkpoints = Checkpoints(path, read_only=True) if path.is_dir() else None
        if checkpoints and (updates := checkpoints.updates()):
            if checkpoints.meta(updates[-1]).corpus != self.identity:
                raise RunError(
                    f"{self.directory}: the text in {self.config.data.train} is not what the run was started with: it "
                    "would not be the same run any more"
                )
            like = jax.eval_shape(lambda: initial_state(self.population, self.optimizer))
            state = TrainState(*checkpoints.restore(updates[-1], like))
            check_state(self.optimizer, state.optimizer, path / str(updates[-1]))
            self.place(state)
            self.update = self.saved = updates[-1]
        elif distributed.writes():  # it begins again, perhaps with another text
            (self.directory / "references.json").unlink(missing_ok=True)
        log = self.directory / "metrics.jsonl"
        if distributed.writes():
            metrics.truncate_after(log, self.update)
            lines = metrics.read(log) if log.exists() else []
            if len(lines) < self.update:
                raise RunError(
                    f"{log}: ends with update {len(lines)}, but the checkpoint is of update {self.update}: lines are "
                    "lost: put them back, or begin a new run with these weights (--from)"
                )
            self.seconds = lines[-1]["seconds"] if lines else 0.0

    def digest(self) -> str:
        """What tells where training goes on from: the update and the weights."""
        digest = hashlib.sha256(str(self.update).encode())
        for name, weight in sorted(self.whole_parameters().items()):
            digest.update(name.encode() + np.asarray(weight).tobytes())
        return digest.hexdigest()

    def start_from(self, directory: Path) -> None:
        """Begin with the weights of a run or of an export. Raises RunError where they are of another kind of model."""
        model = load(directory)
        if model.tokenizer != self.corpus.tokenizer:
            raise RunError(
                f"{directory}: its tokenizer is not that of {self.config.data.prepared}: prepare the text with the "
                f'same (data.tokenizer_file = "{directory / "tokenizer.json"}")'
            )
        was, now = model.architecture.described(), self.population.architecture.described()
        for name in [name for name in now if was.get(name) != now[name]]:
            raise RunError(f"{directory}: its model has {name} = {was.get(name)}, the configuration {now[name]}")
        whole = initial_state(self.population, self.optimizer)
        self.place(whole._replace(parameters=model.parameters, optimizer=self.optimizer.init(model.parameters)))

    def references(self) -> None:
        """Measure the ladder on the held-out text, once a run."""
        path = self.directory / LADDER
        if path.exists():
            self.ladder = read_ladder(path)
        elif self.valid:
            self.ladder = references(self.split.to_bytes(REFERENCE_BYTES), self.valid.to_bytes(REFERENCE_BYTES))
            write_whole(path, json.dumps(self.ladder))

    def evaluate(self, limit: int | None) -> Evaluation | None:
        """The shared weights on the held-out text."""
        self.model.parameters = self.whole_parameters()
        return evaluate(self.model, split_documents(self.valid, limit)) if self.valid else None

    def sample(self) -> str:
        """What the shared weights write after nothing, as text to show."""
        self.model.parameters = self.whole_parameters()
        written = b"".join(generate(self.model, b"", SAMPLE_TOKENS, "0.8", seed=self.update))
        return written.decode(errors="replace")

    def run(self, checkpoints: Checkpoints | None, stopped: Callable[[], bool]) -> bool:
        """Train to the configured update. Returns whether it was reached; either way the state is saved.

        checkpoints: of the process that writes.
        """
        settings, writes = self.config.train, distributed.writes()
        saved, between, slow = time.monotonic(), float(settings.checkpoint_seconds), True
        with ExitStack() as stack:
            progress = stack.enter_context(Progress(settings.updates, self.update)) if writes else None

            def wants_to_stop() -> bool:
                return stopped() or bool(progress and progress.unread)

            stop = distributed.alone() and wants_to_stop()
            log = stack.enter_context(Log(self.directory, self.config)) if writes else None
            ahead = stack.enter_context(closing(ReadAhead(self.streams, self.update, settings.updates)))
            while self.update < settings.updates and not stop:
                began = time.monotonic()
                batch = self.put(ahead.next())
                setting = np.int32(self.optimizer.setting(self.update))
                save = writes and began - saved >= between
                self.state, report = self.step(self.state, batch, np.uint32(self.update), setting)
                # What any process wishes, all do.
                stop, save, self.late = self.sharding.any((wants_to_stop(), save, slow))
                loss = number(report.loss)
                took = time.monotonic() - began
                slow = took > LATE
                self.update += 1
                self.seconds += took
                last = self.update == settings.updates
                measured = last or bool(settings.evaluate_every and self.update % settings.evaluate_every == 0)
                sampled = bool(settings.sample_every and (last or self.update % settings.sample_every == 0))
                health = self.health(report) if measured else {}
                if log and progress:
                    line = self.line(report, loss, took) | {"waiting": round(ahead.waited / took, 4)} | health
                    if measured and (valid := self.evaluate(None if last else PROGRESS_TOKENS)):
                        line["valid_bits_per_byte"] = valid.summary()["bits_per_byte"]
                    if sampled:
                        line["sample"] = self.sample()
                        progress.write(f"--- after {self.update} updates it writes:\n{line['sample']}\n---")
                    log.write(line)
                    progress.update(**line)
                if measured or sampled:
                    distributed.wait(f"measured {self.update}")
                if distributed.alone():
                    stop = wants_to_stop()
                if save:
                    began = time.monotonic()
                    self.save(checkpoints, log)
                    saved = time.monotonic()
                    most = SAVING_SHARE * (saved - began)
                    between = settings.checkpoint_seconds and max(settings.checkpoint_seconds, most)
            self.save(checkpoints, log)
        return self.update >= settings.updates

    def put(self, batch: Batch) -> tuple[Array, ...]:
        """A batch of this process's texts, divided among its devices."""
        return tuple(map(self.sharding.put_texts, batch))

    def line(self, report: UpdateReport, loss: int, took: float) -> dict[str, Any]:
        """What the metrics say of the update just made. loss: of all members, 256 = one bit; took: seconds."""
        tokens = self.config.train.tokens_per_update
        members, scored = self.population.members, self.population.estimator.scored(self.population.members)
        counted = list(zip(self.streams.counts, self.splits, strict=True))
        tokens_per_byte = self.population.texts / sum(count * split.bytes / split.tokens for count, split in counted)
        return {
            "update": self.update,
            "tokens_evaluated": self.update * members * tokens,
            "tokens_read": sum(min(self.update * count * tokens, split.tokens) for count, split in counted),
            "seconds": round(self.seconds, 3),
            "train_bits_per_byte": loss / 256 / (scored * tokens) * tokens_per_byte,
            "changed": int(report.changed) / self.weights,
            "tokens_per_second": round(members * tokens / took, 1),
        }

    def health(self, report: UpdateReport) -> dict[str, float]:
        """What tells a run that learns from one that does not, of the update just made."""
        found = self.measure_health(report.seen, self.state.members, np.uint32(self.update - 1))
        states = self.population.units * self.population.estimator.states_of_a_unit(self.population.architecture)
        named = {
            "agreement": cosine(found.halves),
            "saturated_weights": saturated(self.state.parameters.values()),
            "saturated_states": number(found.saturated) / states,
        }
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def save(self, checkpoints: Checkpoints | None, log: Log | None = None) -> None:
        """Write a checkpoint of now, by the process that has `checkpoints`, after the lines up to it."""
        if self.update == self.saved:
            return
        self.saved = self.update
        take = self.sharding
        optimizer, members = take.take_slices(self.state.optimizer), take.take_units(self.state.members)
        if log:
            log.sync()
        if checkpoints:
            meta = {"tokenizer": self.corpus.tokenizer.to_json(), "corpus": self.identity}
            checkpoints.save(self.update, self.whole_parameters(), optimizer, members, meta)
        distributed.wait(f"saved {self.update}")

    def summary(self) -> str:
        """The ladder with the model in it, as a table; also draws the learning curve."""
        lines = metrics.read(self.directory / "metrics.jsonl")
        picture.learning_curve(lines, self.ladder, self.directory / "learning_curve.png", self.directory.name)
        rungs = list(self.ladder.items())
        measured = [line["valid_bits_per_byte"] for line in lines if "valid_bits_per_byte" in line]
        if measured:
            rungs.append((f"→ this model ({human(self.weights)} parameters)", measured[-1]))
        rungs.sort(key=lambda rung: -rung[1])
        table = format_table(["held-out text", "bits per byte"], [(name, f"{bits:.3f}") for name, bits in rungs])
        if not rungs:
            table = "no text is held out: set data.valid or data.valid_bytes to measure the model"
        evaluated, seconds = lines[-1]["tokens_evaluated"], lines[-1]["seconds"]
        return (
            f"{table}\n{self.update} updates, {human(evaluated)} evaluated tokens in {seconds:.0f} s "
            f"({human(evaluated / max(seconds, 1e-9))}/s), engine {self.engine.name}"
        )


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a run's directory against a second trainer. Raises RunError if one has it."""
    with open(directory / ".lock", "wb") as lock:
        for left in reversed(range(10)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    raise RunError(f"{directory}: another `intlm train` is running in it") from None
                time.sleep(0.05)  # it may be `alive` that looks
        yield


def alive(directory: Path) -> bool:
    """Whether a trainer holds a run's directory. A run that starts meanwhile is not disturbed."""
    try:
        with open(directory / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop; a second one stops at once.

    The end of the terminal (SIGHUP) is a request too, however often it is told, unless `nohup` has it ignored.
    """
    requested: list[int] = []
    terminals = [file for file in (1, 2) if os.isatty(file)]

    def request(number: int, frame: FrameType | None) -> None:
        if requested and number != signal.SIGHUP:
            raise KeyboardInterrupt
        requested.append(number)
        for file in terminals:
            if not os.isatty(file):  # it is gone: what is still to be said is not to fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)

    with distributed.handling(request):
        yield lambda: bool(requested)


def check_directory(config: Config, directory: Path, resume: bool) -> None:
    """Check that a run can start in a directory, or that the one in it can be resumed with this configuration.

    Raises RunError, before anything is written, where the directory holds something else or another run.
    """
    check_path(directory)
    saved = directory / "config.toml"
    if not resume:
        if directory.exists() and any(not _begun(path) for path in directory.iterdir()):
            what = "holds a run already: add --resume to go on with it, or" if saved.exists() else "is not empty:"
            raise RunError(f"{directory}: {what} choose another --run-dir")
    elif not saved.exists():
        raise RunError(f"{directory}: nothing to resume: expected a run with config.toml in it")
    else:
        old, new = kept(configuration.load(saved)), kept(config)
        for key in old | new:
            was, now = old.get(key), new.get(key)
            if was != now and key not in FREE_ON_RESUME:
                raise RunError(
                    f"{directory}: {key} = {now!r}, but the run was started with {was!r}: it would not be the same "
                    "run any more; resume with the value it had, or start another in a new --run-dir"
                )


def _begun(path: Path) -> bool:
    """Whether a file in a directory is what a run leaves that is killed before it is one: hidden, or a copy of the
    weights that it begins with (`start`), a checkpoint of update 0 that may not be whole."""
    weights = path.name == "checkpoints" and path.is_dir() and not path.with_name("config.toml").exists()
    return path.name.startswith(".") or (weights and all(inner.name.split(".")[0] == "0" for inner in path.iterdir()))


def kept(config: Config) -> dict[str, Any]:
    """What a resumed run must have again, by key: of texts, which are compared themselves, only a mixture's shares."""
    found = {key: value for key, value in flatten(config).items() if key not in TEXTS}
    return found | {"data.mixture": [share for share, _ in config.data.others]}


def train(config: Config, directory: Path, resume: bool = False, start: Path | None = None) -> bool:
    """Run a configuration in a directory. Returns whether it reached its end (False: stopped by Ctrl-C).

    start: a run, or an export, whose weights a new run begins with. Raises ConfigError, DataError or RunError for what
    the user can mend.
    """
    with distributed.losses_named():
        return _train(config, directory, resume, start)


def _train(config: Config, directory: Path, resume: bool, start: Path | None) -> bool:
    check_directory(config, directory, resume)
    if distributed.writes():
        check_installed(config)
    shared = {key: value for key, value in flatten(config).items() if key not in OF_A_MACHINE}
    distributed.same("configuration", json.dumps(shared))
    writes = distributed.writes()
    if writes:
        corpora(config.data)
    distributed.wait("prepared")
    corpus = prepare_corpus(config)
    devices = jax.devices() if jax.device_count() > 1 else None
    trainer = Trainer(config, directory, corpus, devices)  # before anything is written: it may refuse the configuration
    distributed.same("text", trainer.identity)
    if start:
        trainer.start_from(start)
    if writes:
        for _, some in trainer.mixture:
            some.verify()
        directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory) if writes else nullcontext(), interruptible() as stopped:
        if writes:
            check_directory(config, directory, resume)  # another may have trained here meanwhile
        tokenizer = directory / "tokenizer.json"
        if resume and tokenizer.exists():
            open_corpus(config, open_run(directory)[1])
        if resume:
            trainer.resume()
        distributed.same("state", trainer.digest())
        if writes and not resume and (directory / "checkpoints").exists():
            shutil.rmtree(directory / "checkpoints")  # of a run that was killed here before it was one (_begun)
        if start:  # before the directory is a run: resumed, it must know where it began
            trainer.save(Checkpoints(directory / "checkpoints") if writes else None)
        if writes:
            # First: it makes the directory a run.
            write_whole(directory / "config.toml", configuration.dumps(config, directory))
            write_whole(tokenizer, json.dumps(corpus.tokenizer.to_json()))
        distributed.wait("begun")
        checkpoints = Checkpoints(directory / "checkpoints") if writes else None
        if writes:
            trainer.references()
        distributed.wait("ladder")
        done = trainer.run(checkpoints, stopped)
        if done and writes:
            print(trainer.summary())
        distributed.wait("ended")  # JAX gives a process little time to end after another
        return done
