"""A trained model on another machine, held to the JAX reference bit for bit."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from intlm.errors import ConfigError
from intlm.evaluation import documents_of
from intlm.language_model import BLOCK, LanguageModel
from intlm.model import SEPARATOR
from intlm.run import load
from intlm.simulate.machine import Machine
from intlm.tracking.table import format_table

RATE = 100  # tokens a second, for which the clock is given


@dataclass
class Difference:
    """Where a machine first differs from the reference."""

    token: int  # the number of tokens read before
    what: str  # "state", "logit" or "loss"
    layer: int | None  # the layer of a state
    index: int  # the index of a state or a logit; for a loss the token
    machine: int
    reference: int

    def __str__(self) -> str:
        where = f"layer {self.layer}, " if self.layer is not None else ""
        return f"token {self.token}: {self.what}: {where}index {self.index}: {self.machine}, reference {self.reference}"


@dataclass
class Report:
    """The result of a simulation on a machine."""

    target: str
    tokens: int
    bytes: int
    bits_per_byte: float | None  # of the integer losses; None where bits differ
    difference: Difference | None
    cost_per_token: float
    unit: str
    weights: int
    state: int
    buffers: int | None
    code: int | None
    constants: int | None

    @property
    def same_bits(self) -> bool:
        """Whether every bit was the reference's."""
        return self.difference is None

    def summary(self) -> dict[str, Any]:
        """The report as a dictionary, for --json."""
        return asdict(self) | {"same_bits": self.same_bits, "clock_hz": self.clock()}

    def clock(self) -> float | None:
        """The clock, in Hz, for RATE tokens a second at one instruction a cycle."""
        return self.cost_per_token * RATE if self.unit == "instructions" else None

    def text(self) -> str:
        """The report as a table for a terminal."""
        rows = [
            ("bits", "the same" if self.difference is None else f"DIFFER: {self.difference}"),
            ("tokens compared", f"{self.tokens:,}"),
        ]
        if self.bits_per_byte is not None:
            rows.append(("bits per byte", f"{self.bits_per_byte:.4f}"))
        rows.append((f"{self.unit} per token", f"{self.cost_per_token:,.0f}"))
        if clock := self.clock():
            rows.append((f"clock for {RATE} tokens/s, an instruction a cycle", f"{clock / 1e6:.3g} MHz"))
        rows.append(("weights", f"{self.weights:,} bytes"))
        rows.append(("state", f"{self.state:,} bytes"))
        for name, size in (
            ("buffers", self.buffers),
            ("code", self.code),
            ("weights and tables as stored", self.constants),
        ):
            if size is not None:
                rows.append((name, f"{size:,} bytes"))
        return format_table([self.target, ""], rows)


def simulate(
    run: Path, target: str, make: Callable[[LanguageModel, Path], Machine], text: Path | None, tokens: int
) -> Report:
    """Run the model of a run (or of an export) on a machine over the first `tokens` tokens of a text.

    target: the machine's name. make: makes it, of the model, with a directory for its files. text: a file; None: the
    run's held-out split. A separator that begins a document is one of the tokens. The reference
    is the `xla` engine. Raises MissingPackage where the machine is not installed, BuildError where the model does not
    compile for it.
    """
    documents, what, _ = documents_of(run, text)
    reference = load(run, "xla")
    read = np.concatenate([np.empty(0, np.int32), *first_tokens(documents, tokens)])
    size = len(reference.tokenizer.decode(read))
    if not size:
        raise ConfigError(f"{what}: nothing to simulate: no whole byte in its first {tokens} tokens")
    with tempfile.TemporaryDirectory(prefix="intlm-") as work:
        machine = make(reference, Path(work))
        compared = compare(reference, machine, read)
    a = reference.architecture
    return Report(
        target,
        compared.tokens,
        size,
        None if compared.difference else compared.loss / 256 / size,
        compared.difference,
        float(np.median(compared.costs)) if machine.unit == "ns" else float(np.mean(compared.costs)),
        machine.unit,
        sum(v.size for v in reference.parameters.values()),
        a.num_layers * a.state_size,
        machine.buffers,
        machine.code,
        machine.constants,
    )


def first_tokens(documents: Iterable[np.ndarray], tokens: int) -> Iterator[np.ndarray]:
    """Yields documents, each after its separator, cut so that `tokens` tokens follow the first separator."""
    left = tokens + 1
    for document in documents:
        if left <= 0:
            return
        part = np.concatenate([[SEPARATOR], document])[:left].astype(np.int32)
        left -= len(part)
        yield part


class Comparison(NamedTuple):
    """The comparison of a machine with the reference."""

    tokens: int  # the number of tokens compared
    loss: int  # the sum of their integer losses, 256 = one bit
    costs: list[float]  # the cost of each step, in the machine's unit
    difference: Difference | None


def compare(reference: LanguageModel, machine: Machine, tokens: np.ndarray) -> Comparison:
    """Compares every logit and loss, and the states where they differ and at the end; stops at the first difference.

    tokens: int32 [n], a separator first. The last is only predicted.
    """
    states, total = reference.start(1), 0
    costs: list[float] = []
    with tqdm(total=len(tokens) - 1, unit="token", delay=1, leave=False, disable=None) as bar:
        for first in range(0, len(tokens) - 1, BLOCK):
            block, following = tokens[first : first + BLOCK], tokens[first + 1 : first + BLOCK + 1]
            block = block[: len(following)]
            before = states
            logits, states = reference.read(block[None], states)
            losses = reference.integer_losses(logits[0], following)
            for i, token in enumerate(block.tolist()):
                machine.step(token)
                costs.append(machine.cost())
                at, own = first + i, machine.logits()
                if not np.array_equal(own, logits[0, i]):
                    _, expected = reference.read(block[None, : i + 1], before)
                    different = _state_difference(at, machine, np.asarray(expected)[0])
                    index = int(np.flatnonzero(own != logits[0, i])[0])
                    logit = Difference(at, "logit", None, index, int(own[index]), int(logits[0, i, index]))
                    return Comparison(at, total, costs, different or logit)
                loss = machine.loss(int(following[i]))
                if loss != losses[i]:
                    different = Difference(at, "loss", None, int(following[i]), loss, int(losses[i]))
                    return Comparison(at, total, costs, different)
                # A separator is a document's end, which is predicted but is no byte of the text.
                total += loss if following[i] != SEPARATOR else 0
            bar.update(len(block))
    read = len(tokens) - 1
    return Comparison(read, total, costs, _state_difference(read - 1, machine, np.asarray(states)[0]))


def _state_difference(token: int, machine: Machine, states: np.ndarray) -> Difference | None:
    """states: int8 [layers, hidden], the reference's."""
    own = machine.states()
    for layer in range(len(states)):
        wrong = np.flatnonzero(own[layer] != states[layer])
        if len(wrong):
            at = int(wrong[0])
            return Difference(token, "state", layer, at, int(own[layer, at]), int(states[layer, at]))
    return None
