"""The exported ONNX graph in ONNX Runtime."""

from __future__ import annotations  # NumPy is imported when it is used

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intlm.errors import MissingPackage
from intlm.lazy import np
from intlm.simulate.machine import Machine
from intlm.simulate.targets import TARGETS, MachineTarget

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel


class OnnxRuntimeMachine(Machine):
    """ONNX Runtime on the processor; nanoseconds by its clock."""

    unit = "ns"

    def __init__(self, model: LanguageModel, work: Path) -> None:
        super().__init__(model)
        try:
            import onnxruntime
        except ImportError:
            raise MissingPackage("onnxruntime", "the target onnxruntime") from None
        from intlm.export import onnx

        onnx.write(model, work)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(work / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        a = self.architecture
        self._logits = np.zeros((1, a.vocab_size), np.int16)
        self._sum = np.zeros(1, np.int32)
        self._states = np.zeros((a.num_layers, a.state_size), np.int8)
        self._took = 0

    def step(self, token: int) -> None:
        began = time.perf_counter_ns()
        given = {"token": np.array([token], np.int32), "state": self._states}
        self._logits, self._sum, self._states = self._session.run(None, given)
        self._took = time.perf_counter_ns() - began

    def logits(self) -> np.ndarray:
        return self._logits[0]

    def loss(self, token: int) -> int:
        return int(self._sum[0]) - int(self._logits[0, token])

    def states(self) -> np.ndarray:
        return self._states

    def cost(self) -> float:
        return self._took


@TARGETS.register("onnxruntime")
@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(MachineTarget):
    """The ONNX graph in ONNX Runtime."""

    machine = OnnxRuntimeMachine
