"""Measures a configuration's speed on this machine: each part of an update, beside the machine's peak.

- It times training's own calls on the configuration's own text, one part after another in every round, and repeats
  short ones. Ratios are taken within a round, so that changes of the machine's speed affect them less.
- Multiply-accumulates are those of matrix products: one per token and weight of a matrix. Embeddings are looked up,
  which costs none; the low-rank products with the perturbations are not counted.
- Pure inference runs the shared weights on as many streams as there are members, each with its member's text. The
  number of streams at once is limited so that the logits fit into memory that the process already has.
"""

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from intlm import pictures
from intlm.config import Config
from intlm.data.shards import Corpus
from intlm.errors import ConfigError
from intlm.estimators.member import Member, noise
from intlm.generation import generate
from intlm.language_model import WRITTEN
from intlm.lazy import Array
from intlm.model import SEPARATOR
from intlm.model.forward import zero_states
from intlm.model.parameters import Kind, Parameters, Specification, is_matrix, specifications
from intlm.population import Population, native
from intlm.population.chunks import fold_in_chunks
from intlm.population.sharding import FIRST
from intlm.population.xla import XlaEngine
from intlm.tracking.table import format_table, human
from intlm.trainer import Trainer
from intlm.training import prepare_corpus

ROUNDS, FEWEST_ROUNDS = 5, 3
PATIENCE = 60  # seconds after which no further round begins, once the fewest are done
MOST_LOGITS = 1 << 23  # logits that inference writes at once: more would take new pages of memory every time
MOST_LOGITS_GPU = 1 << 30  # a GPU needs more streams at once
FEWEST_WRITTEN = 256  # tokens that one stream writes; they are written in blocks of WRITTEN
COUNTED = 0.2  # seconds for which a part is repeated in a round
COLDEST = "0.0078125"  # a temperature so low that drawing takes the most likely token

PARTS = ("inference", "evaluation", "noise", "accumulation", "rest", "update", "generation")
PHASES = {
    "peak": "int8 products, at the machine's peak rate",
    "products": "product overhead: rescale, perturb, gates",
    "projection": "projections on the noise",
    "embedding": "embedding lookups",
    "norm": "norms",
    "loss": "losses from logits",
    "votes": "products of the votes",
    "copies": "copies of states",
    "rest": "everything else, and waiting threads",
}


class Round(NamedTuple):
    """The measurements of one round."""

    seconds: dict[str, float]  # the time of one call of each part
    phases: dict[str, dict[str, float]]  # the seconds of evaluation and accumulation by phase
    peak: float | None  # peak multiply-accumulates per second of all threads or the GPU; None where not measurable
    reading: float | None  # peak bytes per second of all threads, each reading its share of the matrices' size


class Spread(NamedTuple):
    """A quantity over the rounds."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Report:
    """The results of all rounds, by part."""

    name: str
    config: Config
    population: Population
    engine: str
    instruction_set: str | None  # the native library's; None without the library
    threads: int
    streams: int  # streams of inference: one per member, and those that fill up the last batch
    written: int  # tokens that generation writes
    peak_memory: int  # bytes
    rounds: list[Round]

    def macs_per_token(self) -> int:
        """Multiply-accumulates of one token."""
        return macs_per_token(self.population)

    def noise_values(self) -> int:
        """Values of noise in an update (`Estimator.noise_values`)."""
        tokens = self.config.train.tokens_per_update
        return self.population.estimator.noise_values(_parameters(self.population), self.population.members, tokens)

    def tokens(self, part: str) -> int:
        """Tokens of text that one call of a part processes."""
        if part == "generation":
            return self.written
        streams = self.streams if part == "inference" else self.population.members
        return streams * self.config.train.tokens_per_update

    def macs(self, part: str) -> int | None:
        """Multiply-accumulates of one call: those of its tokens; for accumulation those of the votes."""
        if part == "accumulation" and isinstance(self.population.estimator, Member):
            weights = sum(_size(s) for s in _parameters(self.population) if is_matrix(s.kind))
            return self.population.units * self.population.estimator.rank * weights
        return None if part in ("accumulation", "noise", "rest") else self.tokens(part) * self.macs_per_token()

    def seconds(self, part: str) -> Spread | None:
        """Seconds of one call."""
        return self._spread(lambda r: r.seconds[part])

    def tokens_per_second(self, part: str) -> Spread | None:
        """Tokens per second if an update consisted of this part alone."""
        return self._spread(lambda r: self._speed(r, part))

    def macs_per_second(self, part: str) -> Spread | None:
        """Multiply-accumulates per second; None for a part that has no products."""
        return self._spread(lambda r: _ratio(self.macs(part), r.seconds[part]))

    def peak(self) -> Spread | None:
        """The peak multiply-accumulates per second of the machine's threads."""
        return self._spread(lambda r: r.peak)

    def share_of_peak(self, part: str) -> Spread | None:
        """A part's multiply-accumulates per second over the machine's peak."""
        return self._spread(lambda r: _ratio(_ratio(self.macs(part), r.seconds[part]), r.peak))

    def over_inference(self, part: str) -> Spread | None:
        """A part's tokens per second over those of pure inference."""
        return self._spread(lambda r: _ratio(self._speed(r, part), self._speed(r, "inference")))

    def share_of_bound(self) -> Spread | None:
        """Generation's speed over that of threads that only read the matrices once per token, one byte per weight."""
        return self._spread(lambda r: _ratio(self._speed(r, "generation"), _ratio(r.reading, self.macs_per_token())))

    def _speed(self, round_: Round, part: str) -> float | None:
        return _ratio(self.tokens(part), round_.seconds[part])

    def _spread(self, value: Callable[[Round], float | None]) -> Spread | None:
        values = [value(round_) for round_ in self.rounds]
        known = [v for v in values if v is not None]
        return Spread(min(known), statistics.median(known), max(known)) if len(known) == len(values) else None

    def summary(self) -> dict[str, Any]:
        """The medians, for JSON; None for values that this machine does not have."""

        def median(spread: Spread | None) -> float | None:
            return spread.median if spread else None

        def ends(spread: Spread | None) -> list[float] | None:
            return [spread.low, spread.high] if spread else None

        timed = [part for part in PARTS if part != "generation"]
        return {
            "config": self.name,
            "engine": self.engine,
            "instruction_set": self.instruction_set,
            "threads": self.threads,
            "rounds": len(self.rounds),
            "members": self.population.members,
            "tokens_per_update": self.config.train.tokens_per_update,
            "parameters": sum(_size(s) for s in _parameters(self.population)),
            "inference_streams": self.streams,
            "macs_per_token": self.macs_per_token(),
            "seconds": {part: median(self.seconds(part)) for part in timed},
            "tokens_per_second": {part: median(self.tokens_per_second(part)) for part in timed if part != "rest"},
            "macs_per_second": median(self.macs_per_second("evaluation")),
            "peak_macs_per_second": median(self.peak()),
            "share_of_peak": median(self.share_of_peak("evaluation")),
            "evaluation_over_inference": median(self.over_inference("evaluation")),
            "evaluation_over_inference_range": ends(self.over_inference("evaluation")),
            "update_over_inference": median(self.over_inference("update")),
            "update_over_inference_range": ends(self.over_inference("update")),
            "noise_values_per_second": median(self._spread(lambda r: _ratio(self.noise_values(), r.seconds["noise"]))),
            "generation": {
                "tokens_per_second": median(self.tokens_per_second("generation")),
                "share_of_bound": median(self.share_of_bound()),
            },
            "peak_memory_bytes": self.peak_memory,
        }

    def text(self) -> str:
        """The report as text for a terminal."""

        def middle(spread: Spread | None, unit: float = 1) -> str:
            return shown(spread.median / unit) if spread else "-"

        def all_of(spread: Spread | None, unit: float = 1) -> str:
            return " / ".join(shown(value / unit) for value in spread) if spread else "-"

        summary = self.summary()
        labels = {
            "inference": "pure inference",
            "noise": "noise, within evaluation",
            "rest": "rest of the update",
            "update": "whole update",
            "generation": f"one stream, {self.written:,} tokens",
        }
        rows = [
            (
                labels.get(part, part),
                all_of(self.seconds(part), 1e-3),
                middle(self.tokens_per_second(part)),
                middle(self.macs_per_second(part), 1e9),
                middle(self.share_of_peak(part), 0.01),
                middle(self.over_inference(part)),
            )
            for part in PARTS
        ]
        made = summary["noise_values_per_second"]
        further = [
            ("evaluation time over inference time", all_of(self.over_inference("evaluation"))),
            ("update time over inference time", all_of(self.over_inference("update"))),
            ("the machine's int8 peak, GMAC/s", all_of(self.peak(), 1e9)),
            ("one stream, % of the bound by reading weights", all_of(self.share_of_bound(), 0.01)),
            ("noise", f"{human(self.noise_values())} values" + (f", {human(made)} a second" if made else "")),
            ("peak memory of training", f"{self.peak_memory / 1e9:.2f} GB"),
        ]
        instructions = f" ({self.instruction_set})" if self.engine == "native" else ""
        return "\n".join(
            [
                f"engine {self.engine}{instructions}, {self.threads} threads",
                f"{self.name}: {summary['members']:,} members of {human(summary['parameters'])} parameters, "
                f"{summary['tokens_per_update']} tokens each, {human(self.macs_per_token())} multiply-adds per token",
                "",
                format_table(["", "ms", "tokens/s", "GMAC/s", "% of peak", "over inference"], rows),
                "",
                format_table([f"of {len(self.rounds)} rounds", "min / median / max"], further),
            ]
        )

    def breakdown(self) -> list[tuple[str, str, float]]:
        """The time of a whole update by phase: the phase, its part of the update, its seconds."""
        times = []
        for part in ("evaluation", "accumulation"):
            took = statistics.median(r.seconds[part] for r in self.rounds)
            known = sum(sum(r.phases[part].values()) for r in self.rounds)
            phases = {
                # Measuring them took time of its own.
                phase: sum(r.phases[part][phase] for r in self.rounds) / known * took
                for phase in self.rounds[0].phases[part]
            }
            peak, macs = self.peak(), self.macs(part)
            if part == "evaluation" and "products" in phases and peak and macs:
                phases["peak"] = min(phases["products"], macs / peak.median)
                phases["products"] -= phases["peak"]
            times += [(PHASES.get(phase, phase), part, seconds) for phase, seconds in phases.items() if seconds]
        rest, whole = (statistics.median(r.seconds[part] for r in self.rounds) for part in ("rest", "update"))
        times.append(("fitness and optimizer", "rest of the update", rest))
        scale = whole / sum(seconds for _, _, seconds in times)  # medians do not add up exactly
        return [(label, part, seconds * scale) for label, part, seconds in times]


class Workload:
    """The calls that are timed: a trainer's, and its engine's on the same text. Each returns its seconds."""

    def __init__(self, config: Config, corpus: Corpus) -> None:
        self.config = config
        self.trainer = trainer = Trainer(config, Path(os.devnull), corpus)  # nothing is written before it runs
        self.population, self.engine = trainer.population, trainer.engine
        self.threads = config.threads or native.cores()
        shares = 256 * self.threads  # a thread reads 256 bytes at once
        self.readable = max(1, macs_per_token(self.population) // shares) * shares
        tokens = config.train.tokens_per_update
        logits = MOST_LOGITS_GPU if jax.default_backend() == "gpu" else MOST_LOGITS
        most = max(1, logits // (tokens * self.population.architecture.vocab_size))
        members = self.population.members
        self.reads = -(-members // most)
        self.streams_at_once = -(-members // self.reads)
        self.evaluate, self.votes = jax.jit(self._evaluate), jax.jit(self._votes)
        self.prepare, self.infer = jax.jit(self.engine.prepare), jax.jit(self.engine.infer)
        self.draw = jax.jit(self._noise)
        self.calls: dict[str, Callable[[], float]] = {
            "update": self.update,
            "evaluation": self.evaluation,
            "accumulation": self.accumulation,
            "inference": self.inference,
            "generation": self.generation,
        }
        self.multiply: Callable[[float], float] | None = None  # seconds to measure for -> the rate
        if native.available():
            self.multiply = partial(native.multiply_rate, self.threads)
        elif jax.default_backend() == "gpu":
            from intlm.population import gpu

            self.multiply = gpu.multiply_rate
        self.written = FEWEST_WRITTEN

    def warm_up(self) -> int:
        """Compile everything and decide how often to repeat short parts. Returns training's peak memory, bytes."""
        self.update()
        self.update()
        memory = peak_memory()
        self.evaluation()
        self.accumulation()
        self.inference()
        self.generation()
        self.written = max(1, _repetitions(self._write, FEWEST_WRITTEN) // WRITTEN) * WRITTEN
        self.generation()  # another length may need another program
        for part in ("evaluation", "accumulation"):
            self.phases(part, 1.0)
        return memory

    def round(self, done: Callable[[], Any]) -> Round:
        """Measure every part once; `done` is called after each.

        The machine's peaks are measured between the parts' calls, at the same clock speed. The fastest measurement of a
        round counts: other work of the machine can lower a measured peak, but not raise it.
        """
        peaks, readings = [], []

        def bound() -> None:
            if self.multiply:
                peaks.append(self.multiply(COUNTED / 16))
            if native.available():
                readings.append(native.read_rate(self.threads, self.readable, COUNTED / 16))

        seconds = {}
        for part, call in self.calls.items():
            seconds[part] = _mean(call, bound)[0]
            done()
        phases = {part: self.phases(part, seconds[part]) for part in ("evaluation", "accumulation")}
        seconds["noise"] = phases["evaluation"]["noise"]
        seconds["rest"] = max(0.0, seconds["update"] - seconds["evaluation"] - seconds["accumulation"])
        done()
        return Round(seconds, phases, max(peaks, default=None), max(readings, default=None))

    def update(self) -> float:
        """Time a whole update. All other parts read the text of the last update."""
        trainer = self.trainer
        self.batch = trainer.streams.batch(trainer.update)
        self.read, self.number = tuple(map(jnp.asarray, self.batch)), jnp.uint32(trainer.update)
        setting = jnp.int32(trainer.optimizer.setting(trainer.update))

        def step() -> Any:
            trainer.state, report = trainer.step(trainer.state, self.read, self.number, setting)
            self.seen = report.seen
            return trainer.state, report

        trainer.update += 1
        return _timed(step)

    def evaluation(self) -> float:
        """Time the population's evaluation on its text."""
        state = self.trainer.state
        return _timed(lambda: self.evaluate(state.parameters, self.read, state.members, state.common, self.number))

    def accumulation(self) -> float:
        """Time gathering the votes from the last update's losses; `token` has gathered them in its evaluation."""
        return _timed(lambda: self.votes(self.seen, self.number))

    def _evaluate(
        self, parameters: Parameters, batch: tuple[Array, ...], members: Any, common: Any, update: Array
    ) -> Any:
        return self.population.estimator.evaluate(self.engine, parameters, batch, members, common, update, FIRST)

    def _votes(self, seen: Any, update: Array) -> Any:
        estimator = self.population.estimator
        return estimator.votes(self.engine, seen, estimator.totals(seen), update, FIRST)

    def inference(self) -> float:
        """Time the shared weights on the population's text."""
        count = self.streams_at_once
        texts = np.repeat(self.batch.tokens, self.population.members // self.population.texts, axis=0)
        texts = np.resize(texts, (self.reads, count, texts.shape[1]))
        tokens = [jnp.asarray(some, jnp.uint16) for some in texts]
        states = zero_states((count,), self.population.architecture)
        prepared = self.prepare(self.trainer.state.parameters)
        jax.block_until_ready((tokens, states, prepared))
        return sum(_timed(partial(self.infer, prepared, some, states)) for some in tokens)

    def generation(self) -> float:
        """Time generation by one stream."""
        model, parameters = self.trainer.model, self.trainer.state.parameters
        head = np.array(parameters["head"])
        # The separator's logit is the mean of the others': it is never the largest, so the document goes on.
        head[SEPARATOR] = np.delete(head, SEPARATOR, axis=0).mean(axis=0)
        model.parameters = {**parameters, "head": jnp.asarray(head)}
        return _timed(lambda: self._write(self.written))

    def phases(self, part: str, took: float) -> dict[str, float]:
        """The seconds of evaluation or accumulation by phase; `took`: its seconds in this round."""
        if self.engine.name == "native":
            with native.phases() as spent:
                took, calls = _mean(self.calls[part])
            by_phase = {phase: seconds / self.threads / calls for phase, seconds in spent.items()}
            return {**by_phase, "rest": max(0.0, took - sum(by_phase.values()))}
        if part == "accumulation":
            return {"noise and its products with fitness": took}
        if not isinstance(self.population.estimator, Member):
            return {"noise": 0.0, "members and their votes": took}
        made, _ = _mean(lambda: _timed(lambda: self.draw(self.number)))
        return {"noise": made, "all but noise": max(0.0, took - made)}

    def _write(self, tokens: int) -> bytes:
        return b"".join(generate(self.trainer.model, b"", tokens, COLDEST))

    def _noise(self, update: Array) -> Array:
        """The sum of all the population's noise, made as the `xla` engine makes it; int32, which may wrap."""
        population = self.population
        perturbation, architecture = population.perturbation, population.architecture
        epoch = perturbation.epoch(update)

        def add(total: Array, pairs: Array) -> Array:
            drawn = jax.tree.leaves(noise(architecture, perturbation, epoch, pairs))
            return total + sum(jnp.sum(values, dtype=jnp.int32) for values in drawn)

        pairs = jnp.arange(self.population.units, dtype=jnp.uint32)
        return fold_in_chunks(add, jnp.int32(0), pairs, XlaEngine(self.population).chunk)


def bench(config: Config, name: str, rounds: int | None = None, drawing: Path | None = None) -> Report:
    """Measure a configuration, which the report calls `name`; `drawing`: the path of a PNG of the result.

    rounds: the number of rounds; None: five, or fewer where they would take more than a minute. Only the prepared text
    and the drawing are written. Raises ConfigError or DataError for mistakes that the user can correct.
    """
    if rounds is not None and rounds < 1:
        raise ConfigError(f"--rounds = {rounds}: must be at least 1")
    if drawing and (drawing.is_dir() or not drawing.parent.is_dir()):
        raise ConfigError(f"--picture = {drawing}: expected a file in an existing directory")
    workload = Workload(config, prepare_corpus(config))
    measured: list[Round] = []
    wanted, fewest = rounds or ROUNDS, rounds or FEWEST_ROUNDS
    steps = len(workload.calls) + 1
    began = time.monotonic()
    with tqdm(desc="bench", total=(wanted + 1) * steps, disable=None, leave=False, bar_format="{l_bar}{bar}") as bar:
        memory = workload.warm_up()
        bar.update(steps)
        while len(measured) < wanted and (len(measured) < fewest or time.monotonic() - began < PATIENCE):
            measured.append(workload.round(bar.update))
    report = Report(
        name,
        config,
        workload.population,
        workload.engine.name,
        native.instruction_set() if native.available() else None,
        workload.threads,
        workload.reads * workload.streams_at_once,
        workload.written,
        memory,
        measured,
    )
    if drawing:
        pictures.breakdown(report.breakdown(), drawing, f"{name}: where an update's time goes")
    return report


def macs_per_token(population: Population) -> int:
    """Multiply-accumulates of one token: the weights of all matrices, those of the embedding left out."""
    return sum(_size(s) for s in _parameters(population) if s.kind is Kind.MATRIX)


def peak_memory() -> int:
    """The peak memory of this process in bytes; on a device with memory of its own, in that memory."""
    if held := jax.local_devices()[0].memory_stats():
        return held["peak_bytes_in_use"]
    try:  # preferred where it exists: getrusage includes the process that started this one
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1 << 10)


def shown(number: float) -> str:
    """A number with three significant digits, and all digits before the point."""
    digits = 2 - math.floor(math.log10(abs(number))) if number else 0
    return f"{number:,.{max(0, digits)}f}"


def _parameters(population: Population) -> list[Specification]:
    return specifications(population.architecture)


def _size(specification: Specification) -> int:
    return int(np.prod(specification.shape))


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _timed(call: Callable[[], Any]) -> float:
    """Seconds until the result of a call is ready."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def _mean(call: Callable[[], float], between: Callable[[], None] = lambda: None) -> tuple[float, int]:
    """The mean of the seconds that calls return, and the number of calls.

    Calls are repeated for COUNTED seconds. `between` is called before the first, and after every eighth of that time.
    """
    seconds: list[float] = []
    turns = 0
    while sum(seconds) < COUNTED:
        if sum(seconds) >= turns * COUNTED / 8:
            between()
            turns += 1
        seconds.append(call())
    return statistics.fmean(seconds), len(seconds)


def _repetitions(call: Callable[[int], Any], fewest: int) -> int:
    """The number of repetitions of a call that take long enough to be timed."""
    count = fewest
    while (took := _timed(lambda: call(count))) < COUNTED / 8:  # noqa: B023 (called at once)
        count *= 4
    return max(fewest, round(count * COUNTED / took))
