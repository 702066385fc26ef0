"""A trained model on other machines, held to the JAX reference bit for bit (`intlm simulate`)."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from intlm.errors import ConfigError
from intlm.evaluation import file_documents, split_documents
from intlm.model import SEPARATOR
from intlm.run import BLOCK, LanguageModel, load, open_corpus, open_run
from intlm.simulate.machines import MACHINES, Machine
from intlm.tracking.table import format_table

RATE = 100  # tokens a second, for which the clock is given


@dataclass
class Difference:
    """Where a machine first differs from the reference."""

    token: int  # how many were read before
    what: str  # "state", "logit" or "loss"
    layer: int | None
    index: int
    machine: int
    reference: int

    def __str__(self) -> str:
        where = f"layer {self.layer}, " if self.layer is not None else ""
        return f"token {self.token}: {self.what}: {where}index {self.index}: {self.machine}, reference {self.reference}"


@dataclass
class Report:
    """What a simulation found."""

    target: str
    tokens: int
    bytes: int
    bits_per_byte: float  # of the integer losses
    difference: Difference | None
    cost_per_token: float | None
    unit: str | None
    weights: int
    state: int
    buffers: int | None
    code: int | None
    constants: int | None

    def summary(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"same_bits": self.difference is None, "clock_hz": self.clock()}

    def clock(self) -> float | None:
        """The clock, in Hz, for RATE tokens a second at one instruction a cycle."""
        return self.cost_per_token * RATE if self.cost_per_token and self.unit == "instructions" else None

    def text(self) -> str:
        """For people."""
        rows = [
            ("bits", "the same" if self.difference is None else f"DIFFER: {self.difference}"),
            ("tokens compared", f"{self.tokens:,}"),
            ("bits per byte", f"{self.bits_per_byte:.4f}"),
        ]
        if self.cost_per_token:
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


def simulate(run: Path, target: str, text: Path | None, tokens: int) -> Report:
    """Run the model of a run (or of an export) on one of MACHINES over the first `tokens` tokens of a text.

    text: a file; None: the run's held-out split. The reference is the `xla` engine. Raises MissingPackage where the
    machine is not installed, BuildError where the model does not compile for it.
    """
    config, tokenizer = open_run(run)
    reference = load(run, "xla")
    if text:
        documents = file_documents(text, config.data.document_separator, tokenizer)
    else:
        documents = split_documents(open_corpus(config, tokenizer).split("valid"))
    read = _first(documents, tokens)
    if len(read) < 2:
        raise ConfigError(f"{text or 'valid split'}: nothing to simulate: it holds no text")
    with tempfile.TemporaryDirectory(prefix="intlm-") as work:
        machine: Machine = MACHINES[target](reference, Path(work))
        total, costs, difference = compare(reference, machine, read)
    size = len(tokenizer.decode(read))
    a = reference.architecture
    return Report(
        target,
        len(read) - 1,
        size,
        total / 256 / size,
        difference,
        float(np.median(costs)) if machine.unit == "ns" else float(np.mean(costs)),
        machine.unit,
        sum(v.size for v in reference.parameters.values()),
        a.num_layers * a.hidden_size,
        machine.buffers,
        machine.code,
        machine.constants,
    )


def _first(documents: Iterator[np.ndarray], tokens: int) -> np.ndarray:
    """A separator before each document, and that many tokens after the first separator."""
    found: list[np.ndarray] = []
    left = tokens + 1
    for document in documents:
        if left <= 0:
            break
        found.append(np.concatenate([[SEPARATOR], document])[:left].astype(np.int32))
        left -= len(found[-1])
    return np.concatenate(found) if found else np.empty(0, np.int32)


def compare(
    reference: LanguageModel, machine: Machine, tokens: np.ndarray
) -> tuple[int, list[float], Difference | None]:
    """Every logit, loss and, where they differ, state: the losses' sum, each step's cost, the first difference."""
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
                costs.append(machine.cost() or 0)
                found = machine.logits()
                if not np.array_equal(found, logits[0, i]):
                    _, expected = reference.read(block[None, : i + 1], before)
                    return total, costs, _locate(first + i, machine, np.asarray(expected)[0], logits[0, i])
                loss = machine.loss(int(following[i]))
                if loss != losses[i]:
                    return total, costs, Difference(first + i, "loss", None, int(following[i]), loss, int(losses[i]))
                # A separator is a document's end, which is predicted but is no byte of the text.
                total += loss if following[i] != SEPARATOR else 0
            bar.update(len(block))
    return total, costs, None


def _locate(token: int, machine: Machine, states: np.ndarray, logits: np.ndarray) -> Difference:
    """Which layer's state, or else which logit."""
    found = machine.states()
    for layer in range(len(states)):
        wrong = np.flatnonzero(found[layer] != states[layer])
        if len(wrong):
            at = int(wrong[0])
            return Difference(token, "state", layer, at, int(found[layer, at]), int(states[layer, at]))
    at = int(np.flatnonzero(machine.logits() != logits)[0])
    return Difference(token, "logit", None, at, int(machine.logits()[at]), int(logits[at]))
