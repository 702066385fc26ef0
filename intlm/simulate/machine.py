"""A model on a machine that is stepped token by token; most have the C export's memory."""

from __future__ import annotations  # NumPy is imported when it is used

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from intlm.lazy import np
from intlm.model.parameters import Architecture

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel


class Machine(ABC):
    """One stream of a model on a machine."""

    unit: str  # the unit of `cost`
    code: int | None = None  # bytes
    constants: int | None = None  # bytes: weights and tables
    buffers: int | None = None  # bytes beside the states

    def __init__(self, model: LanguageModel) -> None:
        self.architecture = model.architecture

    @abstractmethod
    def step(self, token: int) -> None:
        """Read a token."""

    @abstractmethod
    def logits(self) -> np.ndarray:
        """The logits of the next token: int16 [vocabulary]."""

    @abstractmethod
    def loss(self, token: int) -> int:
        """The integer loss if this token comes next."""

    @abstractmethod
    def states(self) -> np.ndarray:
        """The states: int8 [layers, hidden]."""

    @abstractmethod
    def cost(self) -> float:
        """The cost of the last step, in `unit`."""


class Layout:
    """The layout of an `intlm_model_t` in memory. `check` makes a compilation fail where the header has another."""

    def __init__(self, a: Architecture) -> None:
        self.state = a.num_layers * a.state_size
        self.logits = self.state + self.state % 2
        widest = max(a.hidden_size, a.feed_forward_size)
        used = self.logits + 2 * a.vocab_size + 2 * a.hidden_size + 2 * widest + a.hidden_size
        used += a.cell.scratch_size(a.hidden_size)
        self.bytes = used + used % 2

    def check(self) -> str:
        """C code that compiles only if this is the struct's layout."""
        return (
            '#include "intlm.h"\n'
            f"typedef char intlm_size_check[sizeof(intlm_model_t) == {self.bytes} ? 1 : -1];\n"
            f"typedef char intlm_logits_check[offsetof(intlm_model_t, logits) == {self.logits} ? 1 : -1];\n"
        )


class CompiledMachine(Machine):
    """A machine with an `intlm_model_t` in its memory."""

    def __init__(self, model: LanguageModel, work: Path) -> None:
        super().__init__(model)
        self.layout = Layout(self.architecture)
        from intlm.export import c

        c.write_library(model, work)
        (work / "layout.c").write_text(self.layout.check(), "utf-8")
        self.buffers = self.layout.bytes - self.layout.state

    @abstractmethod
    def memory(self, start: int, count: int) -> bytes:
        """Bytes of the model's memory."""

    def logits(self) -> np.ndarray:
        return np.frombuffer(self.memory(self.layout.logits, 2 * self.architecture.vocab_size), "<i2")

    def states(self) -> np.ndarray:
        a = self.architecture
        return np.frombuffer(self.memory(0, self.layout.state), np.int8).reshape(a.num_layers, a.state_size)
