"""Pretraining: one update after another, each a pure function of the state before it and of its number.

What is written on the way (metrics, samples, checkpoints) depends on time only in its timings, so a run that is
stopped anywhere and resumed ends with the same weights and the same metrics as one that never was.
"""

import fcntl
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intlm import config as configuration
from intlm.arithmetic.fixed_point import MAX8, Array
from intlm.checkpoint import Checkpoints
from intlm.config import KEYS, Config, EggrollConfig
from intlm.data.prepare import corpora, prepare
from intlm.data.references import references
from intlm.data.shards import Corpus
from intlm.data.streams import MixedStreams, ReadAhead
from intlm.eggroll import adam, fitness, momentum, threshold
from intlm.eggroll.optimizer import Optimizer, scheduled_step
from intlm.errors import RunError
from intlm.evaluation import Evaluation, evaluate, split_documents
from intlm.generation import generate
from intlm.model.forward import zero_states
from intlm.model.parameters import Architecture, Parameters, initialise, specifications
from intlm.population import Engine, Problem, make_engine
from intlm.run import LanguageModel, load, open_corpus, open_run, problem_of, write_whole
from intlm.tracking import metrics, picture
from intlm.tracking.log import Log
from intlm.tracking.progress import Progress
from intlm.tracking.services import check_installed
from intlm.tracking.table import format_table, human

PROGRESS_TOKENS = 1 << 18  # held-out tokens measured during training; the last measurement takes them all
REFERENCE_BYTES = 1 << 26  # training and held-out text that the ladder of references reads
SAMPLE_TOKENS = 300
# What a resumed run may set anew: how long to go on and what to report, but nothing that changes a bit.
FREE_ON_RESUME = {
    "engine", "threads", "eggroll.chunk_size", "train.updates", "train.evaluate_every", "train.sample_every",
    "train.checkpoint_seconds", "train.trackers", "data.prepared", "data.processes",
}  # fmt: skip


class TrainState(NamedTuple):
    """What one update hands to the next."""

    parameters: Parameters
    optimizer: Any
    members: Array  # int8 [pairs, 2, layers, hidden], recurrent states


class UpdateReport(NamedTuple):
    """What an update says of itself."""

    losses: Array  # int32 [pairs, 2], 256 = one bit
    changed: Array  # int32 scalar, weights that moved


UpdateStep = Callable[[TrainState, Array, Array, Array, Array], tuple[TrainState, UpdateReport]]


def make_optimizer(eggroll: EggrollConfig) -> Optimizer:
    """The optimizer that a configuration asks for."""
    if eggroll.optimizer == "threshold":
        return threshold.optimizer(eggroll.alpha, eggroll.decay_updates)
    stepped = {"momentum": momentum, "adam": adam}[eggroll.optimizer]
    return Optimizer(
        stepped.init,
        partial(stepped.update, eggroll.momentum, eggroll.weight_decay),
        partial(scheduled_step, eggroll.step, eggroll.warmup_updates, eggroll.decay_updates),
    )


def initial_state(problem: Problem, seed: int, optimizer: Optimizer) -> TrainState:
    """The state before the first update."""
    parameters = initialise(problem.architecture, seed)
    states = zero_states((problem.pairs, 2), problem.architecture)
    return TrainState(parameters, optimizer.init(parameters), states)


def make_update_step(problem: Problem, engine: Engine, fitness_name: str, optimizer: Optimizer) -> UpdateStep:
    """The whole update as one pure function: evaluate, fitness, accumulate, optimizer.

    Its arguments: the state; tokens, uint16 [texts, T]; targets, uint16 [texts, T, K]; the update's number, uint32;
    the optimizer's setting for it, int32.
    """
    described = specifications(problem.architecture)
    rank = problem.perturbation.rank

    def update_step(
        state: TrainState, tokens: Array, targets: Array, update: Array, setting: Array
    ) -> tuple[TrainState, UpdateReport]:
        losses, members = engine.evaluate(state.parameters, tokens, targets, state.members, update)
        shaped = fitness.shape(fitness_name, losses, rank)
        votes = engine.accumulate(shaped, update)
        parameters, remembered = optimizer.update(
            described, state.parameters, votes, state.optimizer, shaped, rank, setting
        )
        moved = [jnp.sum(parameters[s.name] != state.parameters[s.name], dtype=jnp.int32) for s in described]
        return TrainState(parameters, remembered, members), UpdateReport(losses, sum(moved, jnp.int32(0)))

    return update_step


def make_halves(problem: Problem, engine: Engine, fitness_name: str) -> Callable[[Array, Array], list[Parameters]]:
    """What the first half of the pairs votes, and what the second half does, from an update's losses and number."""
    first = jnp.arange(problem.pairs) < problem.pairs // 2

    def halves(losses: Array, update: Array) -> list[Parameters]:
        shaped = fitness.shape(fitness_name, losses, problem.perturbation.rank)
        return [engine.accumulate(jnp.where(half, shaped, jnp.int8(0)), update) for half in (first, ~first)]

    return halves


def cosine(halves: list[Parameters]) -> float:
    """The cosine of two sets of votes: 0 give or take 1 / sqrt(weights) by chance alone, 1 where all is signal.

    NaN where one of them is of nothing.
    """
    a, b = (np.concatenate([np.ravel(v) for v in half.values()]).astype(np.float64) for half in halves)
    size = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / size) if size else float("nan")


def saturated(values: Iterable[Array]) -> float:
    """The share of int8 values that are at an end of their range."""
    arrays = [np.asarray(value) for value in values]
    return sum(int((np.abs(array) == MAX8).sum()) for array in arrays) / sum(array.size for array in arrays)


def prepare_corpus(config: Config) -> Corpus:
    """The token shards that a configuration asks for, made now if they are not there, but for its mixture's."""
    return prepare(config.data)


@dataclass
class Trainer:
    """One run, from its configuration to its summary."""

    config: Config
    directory: Path
    corpus: Corpus

    def __post_init__(self) -> None:
        config, tokenizer = self.config, self.corpus.tokenizer
        configuration.check_limits(config, tokenizer.vocab_size)
        self.split = self.corpus.split("train")
        self.valid = self.corpus.splits.get("valid")  # None where no text is held out
        self.problem = problem_of(config, tokenizer.vocab_size)
        self.texts = config.pairs // config.eggroll.group_size
        settings = config.train
        self.mixture = corpora(config.data) if config.data.mixture else [(1, self.corpus)]
        self.splits = [corpus.split("train") for _, corpus in self.mixture]
        shares = [(share, split) for (share, _), split in zip(self.mixture, self.splits, strict=True)]
        self.streams = MixedStreams(shares, self.texts, settings.tokens_per_update, settings.targets)
        self.optimizer = make_optimizer(config.eggroll)
        self.engine = make_engine(config.engine, self.problem)
        step = make_update_step(self.problem, self.engine, config.eggroll.fitness, self.optimizer)
        self.step = jax.jit(step, donate_argnums=0)
        self.halves = jax.jit(make_halves(self.problem, self.engine, config.eggroll.fitness))
        self.weights = sum(int(np.prod(s.shape)) for s in specifications(self.problem.architecture))
        self.state = initial_state(self.problem, config.seed, self.optimizer)
        self.model = LanguageModel(self.problem.architecture, self.state.parameters, tokenizer, self.engine)
        self.update = 0  # updates done
        self.seconds = 0.0  # of training, earlier parts of the run included
        self.ladder: dict[str, float] = {}

    @property
    def identity(self) -> str:
        """What tells the text apart, all of a mixture."""
        return " ".join(corpus.identity for _, corpus in self.mixture)

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go back to the last checkpoint, if there is one, and drop the metrics past it."""
        updates = checkpoints.updates()
        if updates:
            if checkpoints.meta(updates[-1]).get("corpus") != self.identity:
                raise RunError(
                    f"{self.directory}: the text in {self.config.data.train} is not what the run was started with: it "
                    "would not be the same run any more"
                )
            self.state = TrainState(*checkpoints.restore(updates[-1], self.state))
            self.update = updates[-1]
        log = self.directory / "metrics.jsonl"
        if log.exists():
            metrics.truncate_after(log, self.update)
            lines = metrics.read(log)
            self.seconds = lines[-1]["seconds"] if lines else 0.0

    def start_from(self, directory: Path) -> None:
        """Begin with the weights of a run or of an export. Raises RunError where they are of another kind of model."""
        model = load(directory)
        if model.tokenizer != self.corpus.tokenizer:
            raise RunError(
                f"{directory}: its tokenizer is not that of {self.config.data.prepared}: prepare the text with the "
                f'same (data.tokenizer_file = "{directory / "tokenizer.json"}")'
            )
        for name, was, now in zip(Architecture._fields, model.architecture, self.problem.architecture, strict=True):
            if was != now:
                raise RunError(f"{directory}: its model has {name} = {was}, the configuration {now}")
        self.state = self.state._replace(parameters=model.parameters, optimizer=self.optimizer.init(model.parameters))

    def references(self) -> None:
        """Measure the ladder on the held-out text, once a run."""
        path = self.directory / "references.json"
        if path.exists():
            self.ladder = json.loads(path.read_text())
        elif self.valid:
            self.ladder = references(self.split.to_bytes(REFERENCE_BYTES), self.valid.to_bytes(REFERENCE_BYTES))
            write_whole(path, json.dumps(self.ladder))

    def evaluate(self, limit: int | None) -> Evaluation | None:
        """The shared weights on the held-out text."""
        self.model.parameters = self.state.parameters
        return evaluate(self.model, split_documents(self.valid, limit)) if self.valid else None

    def sample(self) -> str:
        """What the shared weights write after nothing, as text to show."""
        self.model.parameters = self.state.parameters
        written = b"".join(generate(self.model, b"", SAMPLE_TOKENS, "0.8", seed=self.update))
        return written.decode(errors="replace")

    def run(self, checkpoints: Checkpoints, stopped: Callable[[], bool]) -> bool:
        """Train to the configured update. Returns whether it was reached; either way the state is saved."""
        settings, pairs = self.config.train, self.config.pairs
        members = 2 * pairs
        per_update = members * settings.tokens_per_update
        counted = list(zip(self.streams.counts, self.splits, strict=True))
        tokens_per_byte = self.texts / sum(count * split.bytes / split.tokens for count, split in counted)
        saved = time.monotonic()
        valid = None
        with (
            Progress(settings.updates, self.update) as progress,
            Log(self.directory, self.config) as log,
            closing(ReadAhead(self.streams, self.update, settings.updates)) as ahead,
        ):
            while self.update < settings.updates and not stopped():
                began = time.monotonic()
                batch = ahead.next()
                setting = jnp.int32(self.optimizer.setting(self.update))
                self.state, report = self.step(self.state, *map(jnp.asarray, batch), jnp.uint32(self.update), setting)
                loss = int(np.asarray(report.losses).sum(dtype=np.int64))
                took = time.monotonic() - began
                self.update += 1
                self.seconds += took
                line: dict[str, Any] = {
                    "update": self.update,
                    "tokens_evaluated": self.update * per_update,
                    "tokens_read": sum(
                        min(self.update * count * settings.tokens_per_update, split.tokens) for count, split in counted
                    ),
                    "seconds": round(self.seconds, 3),
                    "train_bits_per_byte": loss / 256 / per_update * tokens_per_byte,
                    "changed": int(report.changed) / self.weights,
                    "tokens_per_second": round(per_update / took, 1),
                    "waiting": round(ahead.waited / took, 4),
                }
                last = self.update == settings.updates
                if last or (settings.evaluate_every and self.update % settings.evaluate_every == 0):
                    line |= self.health(report.losses)
                    valid = self.evaluate(None if last else PROGRESS_TOKENS)
                    if valid:
                        line["valid_bits_per_byte"] = valid.summary()["bits_per_byte"]
                if settings.sample_every and (last or self.update % settings.sample_every == 0):
                    line["sample"] = self.sample()
                    progress.write(f"--- after {self.update} updates it writes:\n{line['sample']}\n---")
                log.write(line)
                progress.update(**line)
                if last or time.monotonic() - saved >= settings.checkpoint_seconds:
                    self.save(checkpoints)
                    saved = time.monotonic()
            self.save(checkpoints)
        return self.update >= settings.updates

    def health(self, losses: Array) -> dict[str, float]:
        """What tells a run that learns from one that does not, of the update just made."""
        found = {
            "agreement": cosine(self.halves(losses, jnp.uint32(self.update - 1))),
            "saturated_weights": saturated(self.state.parameters.values()),
            "saturated_states": saturated([self.state.members]),
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of now."""
        meta = {"tokenizer": self.corpus.tokenizer.to_json(), "corpus": self.identity}
        checkpoints.save(self.update, self.state.parameters, self.state.optimizer, self.state.members, meta)

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
    with open(directory / ".lock", "w") as lock:
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
        with open(directory / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop; a second one stops at once."""
    requested: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        if requested:
            raise KeyboardInterrupt
        requested.append(number)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_directory(config: Config, directory: Path, resume: bool) -> None:
    """Check that a run can start in a directory, or that the one in it can be resumed with this configuration.

    Raises RunError, before anything is written, where the directory holds something else or another run.
    """
    saved = directory / "config.toml"
    if not resume:
        # Hidden files are those of a run that was killed before it began.
        if directory.exists() and any(not path.name.startswith(".") for path in directory.iterdir()):
            what = "holds a run already: add --resume to go on with it, or" if saved.exists() else "is not empty:"
            raise RunError(f"{directory}: {what} choose another --run-dir")
    elif not saved.exists():
        raise RunError(f"{directory}: nothing to resume: expected a run with config.toml in it")
    else:
        old = configuration.load(saved)
        for key in KEYS:
            was, now = value(old, key), value(config, key)
            if was != now and key not in FREE_ON_RESUME:
                raise RunError(
                    f"{directory}: {key} = {now!r}, but the run was started with {was!r}: it would not be the same "
                    "run any more; resume with the value it had, or start another in a new --run-dir"
                )


def value(config: Config, key: str) -> Any:
    """A configuration's value under its dotted name."""
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def train(config: Config, directory: Path, resume: bool = False, start: Path | None = None) -> bool:
    """Run a configuration in a directory. Returns whether it reached its end (False: stopped by Ctrl-C).

    start: a run, or an export, whose weights a new run begins with. Raises ConfigError, DataError or RunError for what
    the user can mend.
    """
    check_directory(config, directory, resume)
    check_installed(config)
    corpus = prepare_corpus(config)
    trainer = Trainer(config, directory, corpus)  # before anything is written: it may refuse the configuration
    if start:
        trainer.start_from(start)
    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory), interruptible() as stopped:
        tokenizer = directory / "tokenizer.json"
        if resume and tokenizer.exists():
            open_corpus(config, open_run(directory)[1])
        if resume:
            trainer.resume(Checkpoints(directory / "checkpoints"))
        write_whole(directory / "config.toml", configuration.dumps(config))  # first: it makes the directory a run
        write_whole(tokenizer, json.dumps(corpus.tokenizer.to_json()))
        if start:
            trainer.save(Checkpoints(directory / "checkpoints"))  # or a resumed run would not know where it began
        trainer.references()
        done = trainer.run(Checkpoints(directory / "checkpoints"), stopped)
        if done:
            print(trainer.summary())
        return done
