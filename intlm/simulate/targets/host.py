"""The model in C, compiled by the system's compiler and called in this process."""

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intlm.simulate import build
from intlm.simulate.machine import CompiledMachine
from intlm.simulate.targets import TARGETS, MachineTarget

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel


class HostMachine(CompiledMachine):
    """The processor that runs this; nanoseconds by its clock."""

    unit = "ns"

    def __init__(self, model: "LanguageModel", work: Path) -> None:
        super().__init__(model, work)
        self._library = ctypes.CDLL(str(build.host(work)))
        self._model = (ctypes.c_int8 * self.layout.bytes)()
        self._took = 0

    def step(self, token: int) -> None:
        began = time.perf_counter_ns()
        self._library.intlm_step(self._model, ctypes.c_uint16(token))
        self._took = time.perf_counter_ns() - began

    def loss(self, token: int) -> int:
        return self._library.intlm_loss(self._model, ctypes.c_uint16(token))

    def memory(self, start: int, count: int) -> bytes:
        return bytes(self._model)[start : start + count]

    def cost(self) -> float:
        return self._took


@TARGETS.register("host")
@dataclass(frozen=True, kw_only=True)
class Host(MachineTarget):
    """This processor, through the system's C compiler."""

    machine = HostMachine
