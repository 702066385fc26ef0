"""A target of `intlm simulate`: RISC-V at several cycles an instruction."""

from dataclasses import dataclass

from intlm.settings import key
from intlm.simulate.targets import TARGETS, MachineTarget
from intlm.simulate.targets.riscv32 import RiscVMachine


class SlowMachine(RiscVMachine):
    unit = "cycles"

    def cost(self):
        return self.cycles * super().cost()


@TARGETS.register("slow")
@dataclass(frozen=True, kw_only=True)
class Slow(MachineTarget):
    """RV32IM at several cycles an instruction, in Unicorn."""

    cycles: int = key("cycles that an instruction takes", 4, low=1)

    def machine(self, model, work):
        made = SlowMachine(model, work)
        made.cycles = self.cycles
        return made
