"""A run's state and what can be done with it: make an update, measure, sample, save, resume."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intlm import config as configuration
from intlm import distributed, pictures, schedule
from intlm.checkpoint import Checkpoints
from intlm.config import Config
from intlm.data.prepare import corpora
from intlm.data.references import LADDER, read_ladder, references
from intlm.data.shards import Corpus
from intlm.data.streams import Batch
from intlm.errors import RunError
from intlm.evaluation import Evaluation, evaluate, split_documents
from intlm.generation import generate
from intlm.language_model import LanguageModel
from intlm.model.parameters import specifications
from intlm.optimizers import check_state
from intlm.population import make_engine, native
from intlm.population.sharding import DIVIDED, SAME, Sharding, number
from intlm.run import load, population_of
from intlm.tracking import metrics
from intlm.tracking.table import format_table, human
from intlm.update import TrainState, compile_update, cosine, initial_state, make_health, saturated

REFERENCE_BYTES = 1 << 26  # training and held-out text that the ladder of references reads
SAMPLE_TOKENS = 300
LATE = 5  # seconds of an update from which on processes meet before anything crosses


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
        self.processes = distributed.Processes()
        meet = None if self.processes.alone else self.meet
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
        self.meetings = count()  # of the processes, so that each has a name of its own
        self.late = True  # whether a process may be late at the next update: the first one compiles

    def place(self, state: TrainState) -> None:
        """Divide a whole state among the devices."""
        put = self.sharding
        self.state = TrainState(
            put.put_same(state.parameters),
            put.put_slices(state.optimizer),
            put.put_units(state.members),
            put.put_same(state.common),
        )

    def whole_parameters(self) -> Any:
        """The shared weights, for a program of one device."""
        return self.sharding.take_same(self.state.parameters)

    def meet(self, seen: Any) -> None:
        """Wait for the other processes where one may be late."""
        if self.late:
            jax.block_until_ready(seen)
            self.processes.wait(f"update {next(self.meetings)}")

    def whole_state(self) -> TrainState:
        """The state, whole, on each process. All processes call it."""
        take, state = self.sharding, self.state
        optimizer, members = take.take_slices(state.optimizer), take.take_units(state.members)
        return TrainState(self.whole_parameters(), optimizer, members, take.take_same(state.common))

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Goes back to the present state in the end, as if no update had been made. All processes call it."""
        copy = jax.tree.map(np.array, self.whole_state())  # the state itself is donated to the next update
        kept = copy, self.update, self.seconds, self.saved
        try:
            yield
        finally:
            before, self.update, self.seconds, self.saved = kept
            self.place(jax.tree.map(jnp.asarray, before))

    @property
    def identity(self) -> str:
        """The identity of the training text: those of all corpora of a mixture."""
        return " ".join(corpus.identity for _, corpus in self.mixture)

    @property
    def training_version(self) -> int:
        """See `Estimator.training_version`."""
        return self.population.estimator.training_version

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one, and drop the metrics past it."""
        path = self.directory / "checkpoints"
        checkpoints = Checkpoints(path, read_only=True) if path.is_dir() else None
        if checkpoints and (updates := checkpoints.updates()):
            if checkpoints.meta(updates[-1], self.training_version).corpus != self.identity:
                raise RunError(
                    f"{self.directory}: the text in {self.config.data.train} is not what the run was started with: it "
                    "would not be the same run any more"
                )
            like = jax.eval_shape(lambda: initial_state(self.population, self.optimizer))
            state = checkpoints.restore(updates[-1], like, self.optimizer.former)
            check_state(self.optimizer, state.optimizer, path / str(updates[-1]))
            self.population.estimator.check_common(state.common, path / str(updates[-1]))
            self.place(state)
            self.update = self.saved = updates[-1]
        elif self.processes.writes:  # it begins again, perhaps with another text
            (self.directory / "references.json").unlink(missing_ok=True)
        log = self.directory / "metrics.jsonl"
        if self.processes.writes:
            metrics.truncate_after(log, self.update)
            lines = metrics.read(log) if log.exists() else []
            if len(lines) < self.update:
                raise RunError(
                    f"{log}: ends with update {len(lines)}, but the checkpoint is of update {self.update}: lines are "
                    "lost: put them back, or begin a new run with these weights (--from)"
                )
            self.seconds = lines[-1]["seconds"] if lines else 0.0

    def digest(self) -> str:
        """A digest of the point where training goes on: of the update and the weights."""
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
        """Measure the reference models on the held-out text, once per run."""
        path = self.directory / LADDER
        if path.exists():
            self.ladder = read_ladder(path)
        elif self.valid:
            self.ladder = references(self.split.to_bytes(REFERENCE_BYTES), self.valid.to_bytes(REFERENCE_BYTES))

    def evaluate(self, limit: int | None) -> Evaluation | None:
        """The shared weights on the held-out text."""
        self.model.parameters = self.whole_parameters()
        return evaluate(self.model, split_documents(self.valid, limit)) if self.valid else None

    def sample(self) -> str:
        """A sample of text from the shared weights, without a prompt."""
        self.model.parameters = self.whole_parameters()
        written = b"".join(generate(self.model, b"", SAMPLE_TOKENS, "0.8", seed=self.update))
        return written.decode(errors="replace")

    def advance(self, batch: Batch, waited: float, health: bool) -> dict[str, Any]:
        """Make an update. waited: seconds for the batch. health: whether `health` will be called after it. Returns what
        the metrics say of the update."""
        began = time.monotonic() - waited
        own = tuple(map(self.sharding.put_texts, batch))
        position = schedule.position(self.config.train.schedule, self.update)
        setting = np.int32(self.optimizer.setting(position))
        self.state, self.report = self.step(self.state, own, np.uint32(self.update), setting, health)
        loss = number(self.report.loss)
        took = time.monotonic() - began
        self.late = took > LATE
        self.update += 1
        self.seconds += took
        return self._line(loss, took) | {"waiting": round(waited / took, 4)}

    def _line(self, loss: int, took: float) -> dict[str, Any]:
        """The metrics of the update just made. loss: of the members that count, 256 = one bit; took: seconds."""
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
            "changed": int(self.report.changed) / self.weights,
            "tokens_per_second": round(members * tokens / took, 1),
        }

    def health(self) -> dict[str, float]:
        """Measures of the last update that show whether a run learns. All processes must call it."""
        found = self.measure_health(self.report.seen, self.state.members, np.uint32(self.update - 1))
        states = self.population.units * self.population.estimator.states_of_a_unit(self.population.architecture)
        named = {
            "agreement": cosine(found.halves),
            "saturated_weights": saturated(self.state.parameters.values()),
            "saturated_states": number(found.saturated) / states,
        }
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def save(self, checkpoints: Checkpoints | None) -> None:
        """Write a checkpoint of the present state. All processes call it; checkpoints: of the one that writes."""
        if self.update == self.saved:
            return
        self.saved = self.update
        whole = self.whole_state()
        if checkpoints:
            meta = {
                "tokenizer": self.corpus.tokenizer.to_json(),
                "corpus": self.identity,
                "training_version": self.training_version,
            }
            checkpoints.save(self.update, whole, meta)
        self.processes.wait(f"saved {next(self.meetings)}")

    def summary(self) -> str:
        """The model among the reference models, as a table; also draws the learning curve."""
        lines = metrics.read(self.directory / "metrics.jsonl")
        pictures.learning_curve(lines, self.ladder, self.directory / "learning_curve.png", self.directory.name)
        rungs = list(self.ladder.items())
        measured = [line for line in lines if "valid_bits_per_byte" in line]
        if measured:
            at = "" if measured[-1] is lines[-1] else f", after update {measured[-1]['update']}"
            rungs.append((f"→ this model ({human(self.weights)} parameters{at})", measured[-1]["valid_bits_per_byte"]))
        rungs.sort(key=lambda rung: -rung[1])
        table = format_table(["held-out text", "bits per byte"], [(name, f"{bits:.3f}") for name, bits in rungs])
        if not rungs:
            table = "no text is held out: set data.valid or data.valid_bytes to measure the model"
        evaluated, seconds = lines[-1]["tokens_evaluated"], lines[-1]["seconds"]
        return (
            f"{table}\n{self.update} updates, {human(evaluated)} evaluated tokens in {seconds:.0f} s "
            f"({human(evaluated / max(seconds, 1e-9))}/s), engine {self.engine.name}"
        )
