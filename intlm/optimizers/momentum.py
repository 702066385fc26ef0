"""Momentum in integers: a step along the mean of the last votes (Polyak, 1964; docs/numerics.md, section 9).

The mean is kept multiplied by its length, A += z - round(A / 2^k): for a constant z it settles at z exactly, from
either side, and no difference is too small to move it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from intlm.arithmetic.fixed_point import rounding_shift
from intlm.lazy import Array
from intlm.model.parameters import Kind, Parameters
from intlm.optimizers import OPTIMIZERS
from intlm.optimizers.steps import (
    MASTER_LIMITS,
    Stepped,
    masters,
    mean_limits,
    moved,
    rounded,
    standardised,
    zeros,
)
from intlm.settings import key


class MomentumState(NamedTuple):
    """The state of momentum: int32, by parameter."""

    master: Parameters
    mean: Parameters


@OPTIMIZERS.register("momentum")
@dataclass(frozen=True, kw_only=True)
class Momentum(Stepped):
    """Steps of master weights along a running mean of votes."""

    momentum: int = key("votes are averaged over 2**momentum updates", 3, low=1, high=10)

    def init(self, parameters: Parameters) -> MomentumState:
        """The state before the first update."""
        return MomentumState(masters(parameters), zeros(parameters))

    def limits(self) -> tuple[tuple[int, int], ...]:
        """See `Optimizer.limits`."""
        return MASTER_LIMITS, mean_limits(self.momentum)

    def update(
        self, kinds: Mapping[str, Kind], parameters: Parameters, votes: Parameters, state: MomentumState,
        deviations: Parameters, setting: Array,
    ) -> tuple[Parameters, MomentumState]:  # fmt: skip
        """See `Optimizer.update`."""
        master, mean = {}, {}
        for name, kind in kinds.items():
            vote = standardised(votes[name], deviations[name])
            mean[name] = state.mean[name] + vote - rounding_shift(state.mean[name], self.momentum)
            ratio = rounding_shift(mean[name], self.momentum)
            master[name] = moved(kind, state.master[name], ratio, setting, self.weight_decay)
        return rounded(master), MomentumState(master, mean)
