"""RV32IM: RISC-V of 32 bits with multiplication and without floating point."""

from dataclasses import dataclass
from typing import Any

from intlm.lazy import np
from intlm.simulate.emulated import MODEL, RETURN, STACK, EmulatedMachine
from intlm.simulate.targets import TARGETS, MachineTarget


class RiscVMachine(EmulatedMachine):
    """RV32IM."""

    target = "riscv32"
    compiled_for = ("riscv32-freestanding-none", "generic_rv32+m")

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


@TARGETS.register("riscv32")
@dataclass(frozen=True, kw_only=True)
class RiscV(MachineTarget):
    """RV32IM, no floating point, in Unicorn."""

    machine = RiscVMachine
