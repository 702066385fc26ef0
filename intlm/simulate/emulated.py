"""Processors in Unicorn, an instruction-set simulator (QEMU's)."""

import signal
import threading
from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from intlm.errors import MissingPackage
from intlm.simulate import build, elf
from intlm.simulate.machine import CompiledMachine

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel

RETURN = 0x7FFF0000  # where calls return to: nothing is there
MODEL, STACK = 0x40000000, 0x50000000
STACK_BYTES = 1 << 16


class EmulatedMachine(CompiledMachine):
    """An instruction-set simulator: Unicorn, which is QEMU's. Instructions are counted, exactly, block by block."""

    unit = "instructions"
    target: ClassVar[str]
    compiled_for: ClassVar[tuple[str, str]]  # what the compiler calls the machine and its processor

    def __init__(self, model: "LanguageModel", work: Path) -> None:
        super().__init__(model, work)
        try:
            import unicorn
        except ImportError:
            raise MissingPackage("unicorn", f"the target {self.target}") from None
        self._image = elf.read(build.cross(work, *self.compiled_for))
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
        """Maps pages of memory, some of which may be mapped already, where two segments share one."""
        there = {page for start, end, _ in self._machine.mem_regions() for page in range(start, end + 1, 0x1000)}
        for page in range(first, last, 0x1000):
            if page not in there:
                self._machine.mem_map(page, 0x1000)

    def _count(self, machine: Any, address: int, size: int, data: Any) -> None:
        self._blocks[address, size] += 1

    @abstractmethod
    def _open(self, unicorn: Any) -> Any:
        """Opens the simulator."""

    @abstractmethod
    def _call(self, function: int, token: int) -> int:
        """Calls function(model, token); returns its result from a register."""

    def _run(self, function: int) -> None:
        """Runs a function until it returns. An interrupt (Ctrl-C) stops it: raised in a hook, it would be lost."""
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
        """The number of instructions in a block of code."""

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
