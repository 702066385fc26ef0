"""Plain steps of master weights along the votes (docs/numerics.md, section 9)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from intlm.lazy import Array
from intlm.model.parameters import Kind, Parameters
from intlm.optimizers import OPTIMIZERS
from intlm.optimizers.steps import MASTER_LIMITS, Stepped, masters, moved, rounded, standardised


class SgdState(NamedTuple):
    """The state of sgd: int32, by parameter."""

    master: Parameters


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd(Stepped):
    """Plain steps of master weights along the votes of the update."""

    former = ("mean",)  # once `momentum` with momentum = 0

    def init(self, parameters: Parameters) -> SgdState:
        """The state before the first update."""
        return SgdState(masters(parameters))

    def limits(self) -> tuple[tuple[int, int], ...]:
        """See `Optimizer.limits`."""
        return (MASTER_LIMITS,)

    def update(
        self, kinds: Mapping[str, Kind], parameters: Parameters, votes: Parameters, state: SgdState,
        deviations: Parameters, setting: Array,
    ) -> tuple[Parameters, SgdState]:  # fmt: skip
        """See `Optimizer.update`."""
        master = {}
        for name, kind in kinds.items():
            vote = standardised(votes[name], deviations[name])
            master[name] = moved(kind, state.master[name], vote, setting, self.weight_decay)
        return rounded(master), SgdState(master)
