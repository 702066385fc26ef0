"""A Cortex-M3: Thumb-2, no floating-point unit."""

from dataclasses import dataclass
from typing import Any

from intlm.lazy import np
from intlm.simulate import elf
from intlm.simulate.emulated import MODEL, RETURN, STACK, EmulatedMachine
from intlm.simulate.targets import TARGETS, MachineTarget


class CortexMMachine(EmulatedMachine):
    """A Cortex-M3: Thumb-2, no floating-point unit."""

    target = "cortex-m"
    compiled_for = ("thumb-freestanding-eabi", "cortex_m3")

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


@TARGETS.register("cortex-m")
@dataclass(frozen=True, kw_only=True)
class CortexM(MachineTarget):
    """A Cortex-M3, no floating point, in Unicorn."""

    machine = CortexMMachine
