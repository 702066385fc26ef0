"""WebAssembly in wasmtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intlm.errors import MissingPackage
from intlm.simulate import build
from intlm.simulate import wasm as wasm_module
from intlm.simulate.machine import CompiledMachine
from intlm.simulate.targets import TARGETS, MachineTarget

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel


class WasmMachine(CompiledMachine):
    """WebAssembly in wasmtime, whose fuel is a count of the instructions that were run."""

    unit = "instructions"

    def __init__(self, model: "LanguageModel", work: Path) -> None:
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


@TARGETS.register("wasm")
@dataclass(frozen=True, kw_only=True)
class Wasm(MachineTarget):
    """WebAssembly in wasmtime."""

    machine = WasmMachine
