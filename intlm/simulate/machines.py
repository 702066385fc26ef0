"""The machines that a model is simulated on: each reads a token and shows its logits, its loss and its states.

host             the system's C compiler, called in this process
riscv32          RV32IM, no F, no D, in Unicorn
cortex-m         a Cortex-M3, which has no floating-point unit, in Unicorn
wasm             WebAssembly in wasmtime
onnxruntime      the ONNX graph
"""

import ctypes
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from intlm.errors import MissingPackage
from intlm.export import c, onnx
from intlm.model.parameters import Architecture
from intlm.run import LanguageModel
from intlm.simulate import build, elf
from intlm.simulate import wasm as wasm_module

RETURN = 0x7FFF0000  # where calls return to: nothing is there
MODEL, STACK = 0x40000000, 0x50000000
STACK_BYTES = 1 << 16


class Layout:
    """An `intlm_model_t` in memory. What is compiled with it (`check`) is refused where the header has another."""

    def __init__(self, a: Architecture) -> None:
        self.state = a.num_layers * a.state_size
        self.logits = self.state + self.state % 2
        widest = max(a.hidden_size, a.feed_forward_size)
        used = self.logits + 2 * a.vocab_size + 2 * a.hidden_size + 2 * widest + a.hidden_size
        used += a.cell.scratch_size(a.hidden_size)
        self.bytes = used + used % 2

    def check(self) -> str:
        """C that compiles where this is the struct's layout."""
        return (
            '#include "intlm.h"\n'
            f"typedef char intlm_size_check[sizeof(intlm_model_t) == {self.bytes} ? 1 : -1];\n"
            f"typedef char intlm_logits_check[offsetof(intlm_model_t, logits) == {self.logits} ? 1 : -1];\n"
        )


class Machine(ABC):
    """One stream of a model on a machine."""

    unit: str  # of what `cost` counts
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
        """What it expects next: int16 [vocabulary]."""

    @abstractmethod
    def loss(self, token: int) -> int:
        """The integer loss of a token that comes next."""

    @abstractmethod
    def states(self) -> np.ndarray:
        """int8 [layers, hidden]."""

    @abstractmethod
    def cost(self) -> float:
        """What the last step took, in `unit`."""


class _Compiled(Machine):
    """A machine with an `intlm_model_t` in its memory."""

    def __init__(self, model: LanguageModel, work: Path) -> None:
        super().__init__(model)
        self.layout = Layout(self.architecture)
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


class Host(_Compiled):
    """The processor that runs this; nanoseconds by its clock."""

    unit = "ns"

    def __init__(self, model: LanguageModel, work: Path) -> None:
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


class _Emulated(_Compiled):
    """An instruction-set simulator: Unicorn, which is QEMU's. Instructions are counted, exactly, block by block."""

    unit = "instructions"
    NAME: str
    TARGET: tuple[str, str]  # what the compiler calls the machine and its processor

    def __init__(self, model: LanguageModel, work: Path) -> None:
        super().__init__(model, work)
        try:
            import unicorn
        except ImportError:
            raise MissingPackage("unicorn", f"the target {self.NAME}") from None
        self._image = elf.read(build.cross(work, *self.TARGET))
        self.code, self.constants = self._image.code, self._image.constants
        self._machine = self._open(unicorn)
        for address, contents in self._image.segments:
            first = address & ~0xFFF
            last = (address + len(contents) + 0xFFF) & ~0xFFF
            self._map(first, last)
            self._machine.mem_write(address, contents)
        self._map(MODEL, MODEL + ((self.layout.bytes + 0xFFF) & ~0xFFF))
        self._map(STACK - STACK_BYTES, STACK)
        self._map(RETURN, RETURN + 0x1000)
        self._blocks: Counter[tuple[int, int]] = Counter()
        self._lengths: dict[tuple[int, int], int] = {}
        self._machine.hook_add(unicorn.UC_HOOK_BLOCK, self._count)

    def _map(self, first: int, last: int) -> None:
        """Pages that may be there already, where two segments share one."""
        there = {page for start, end, _ in self._machine.mem_regions() for page in range(start, end + 1, 0x1000)}
        for page in range(first, last, 0x1000):
            if page not in there:
                self._machine.mem_map(page, 0x1000)

    def _count(self, machine: Any, address: int, size: int, data: Any) -> None:
        self._blocks[address, size] += 1

    @abstractmethod
    def _open(self, unicorn: Any) -> Any:
        """The simulator."""

    @abstractmethod
    def _call(self, function: int, token: int) -> int:
        """function(model, token), whatever it returns in a register."""

    def _run(self, function: int) -> None:
        """Until it returns. An interrupt (Ctrl-C) stops it: raised in a hook, it would be lost."""
        interrupted = []

        def stop(*_: Any) -> None:
            interrupted.append(True)
            self._machine.emu_stop()

        before = signal.getsignal(signal.SIGINT)
        heeded = threading.current_thread() is threading.main_thread() and callable(before)  # else nobody is to hear it
        if heeded:
            signal.signal(signal.SIGINT, stop)
        try:
            self._machine.emu_start(function, RETURN)
        finally:
            if heeded:
                signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt

    @abstractmethod
    def _instructions(self, code: bytes) -> int:
        """How many instructions a block of code holds."""

    def step(self, token: int) -> None:
        self._blocks.clear()
        self._call(self._image.functions["intlm_step"], token)

    def loss(self, token: int) -> int:
        return self._call(self._image.functions["intlm_loss"], token)

    def memory(self, start: int, count: int) -> bytes:
        return bytes(self._machine.mem_read(MODEL + start, count))

    def cost(self) -> int:
        for block in self._blocks.keys() - self._lengths.keys():
            self._lengths[block] = self._instructions(bytes(self._machine.mem_read(*block)))
        return sum(times * self._lengths[block] for block, times in self._blocks.items())


class RiscV(_Emulated):
    """RV32IM."""

    NAME = "riscv32"
    TARGET = ("riscv32-freestanding-none", "generic_rv32+m")

    def _open(self, unicorn: Any) -> Any:
        from unicorn import riscv_const

        self._names = riscv_const
        return unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)

    def _call(self, function: int, token: int) -> int:
        names, machine = self._names, self._machine
        for register, value in (
            (names.UC_RISCV_REG_A0, MODEL),
            (names.UC_RISCV_REG_A1, token),
            (names.UC_RISCV_REG_SP, STACK),
            (names.UC_RISCV_REG_RA, RETURN),
        ):
            machine.reg_write(register, value)
        self._run(function)
        return int(np.int32(np.uint32(machine.reg_read(names.UC_RISCV_REG_A0))))

    def _instructions(self, code: bytes) -> int:
        return len(code) // 4


class CortexM(_Emulated):
    """A Cortex-M3: Thumb-2, no floating-point unit."""

    NAME = "cortex-m"
    TARGET = ("thumb-freestanding-eabi", "cortex_m3")

    def _open(self, unicorn: Any) -> Any:
        from unicorn import arm_const

        self._names = arm_const
        machine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        machine.ctl_set_cpu_model(arm_const.UC_CPU_ARM_CORTEX_M3)
        return machine

    def _call(self, function: int, token: int) -> int:
        names, machine = self._names, self._machine
        for register, value in (
            (names.UC_ARM_REG_R0, MODEL),
            (names.UC_ARM_REG_R1, token),
            (names.UC_ARM_REG_SP, STACK),
            (names.UC_ARM_REG_LR, RETURN | 1),
        ):
            machine.reg_write(register, value)
        self._run(function | 1)
        return int(np.int32(np.uint32(machine.reg_read(names.UC_ARM_REG_R0))))

    def _instructions(self, code: bytes) -> int:
        return sum(1 for _ in elf.thumb_lengths(code))


class Wasm(_Compiled):
    """WebAssembly in wasmtime, whose fuel is a count of the instructions that were run."""

    unit = "instructions"

    def __init__(self, model: LanguageModel, work: Path) -> None:
        super().__init__(model, work)
        try:
            import wasmtime
        except ImportError:
            raise MissingPackage("wasmtime", "the target wasm") from None
        binary = build.wasm(work).read_bytes()
        self.code, self.constants = wasm_module.check(binary)
        config = wasmtime.Config()
        config.consume_fuel = True
        engine = wasmtime.Engine(config)
        self._store = wasmtime.Store(engine)
        self._store.set_fuel(1 << 62)
        exports: Any = wasmtime.Instance(self._store, wasmtime.Module(engine, binary), []).exports(self._store)
        self._step, self._loss = exports["intlm_step"], exports["intlm_loss"]
        self._memory = exports["memory"]
        self._at = exports["__heap_base"].value(self._store)
        missing = self._at + self.layout.bytes - self._memory.data_len(self._store)
        if missing > 0:
            self._memory.grow(self._store, -(-missing // 65536))
        self._took = 0

    def step(self, token: int) -> None:
        before = self._store.get_fuel()
        self._step(self._store, self._at, token)
        self._took = before - self._store.get_fuel()

    def loss(self, token: int) -> int:
        return self._loss(self._store, self._at, token)

    def memory(self, start: int, count: int) -> bytes:
        return bytes(self._memory.read(self._store, self._at + start, self._at + start + count))

    def cost(self) -> int:
        return self._took


class OnnxRuntime(Machine):
    """ONNX Runtime on the processor; nanoseconds by its clock."""

    unit = "ns"

    def __init__(self, model: LanguageModel, work: Path) -> None:
        super().__init__(model)
        try:
            import onnxruntime
        except ImportError:
            raise MissingPackage("onnxruntime", "the target onnxruntime") from None
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


MACHINES: dict[str, type] = {
    "host": Host,
    "riscv32": RiscV,
    "cortex-m": CortexM,
    "wasm": Wasm,
    "onnxruntime": OnnxRuntime,
}
