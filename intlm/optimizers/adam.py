"""Adam (arXiv 1412.6980) in integers: the votes' mean over their root mean square (docs/numerics.md, section 9).

Both averages are kept as `momentum` keeps its mean. They start at the values that chance gives, a mean of 0 and a mean
square of 1, so that neither needs a correction for its beginning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from intlm.arithmetic.fixed_point import rounding_shift
from intlm.lazy import Array, jax, jnp
from intlm.model.parameters import Kind, Parameters
from intlm.optimizers import OPTIMIZERS
from intlm.optimizers.steps import (
    FRACTION,
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

SQUARE_SHIFT = 6  # the mean square is over 2^6 updates; even, so that its root is a shift
# 2^15 * sqrt(256 / m) for m from 256 to 1023, rounded.
_RECIPROCAL_ROOT = [(math.isqrt((1 << 40) // m) + 1) >> 1 for m in range(256, 1024)]
_LEAST_SQUARE = 1 << (FRACTION + SQUARE_SHIFT - 2)  # a quarter of chance's mean square


class AdamState(NamedTuple):
    """The state of Adam: int32, by parameter."""

    master: Parameters
    mean: Parameters
    square: Parameters


@OPTIMIZERS.register("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Stepped):
    """Adam (arXiv 1412.6980) on master weights: a running mean of votes over their root mean square."""

    momentum: int = key("votes are averaged over 2**momentum updates", 0, low=0, high=10)

    def init(self, parameters: Parameters) -> AdamState:
        """The state before the first update."""
        chance = {name: zero + (1 << (FRACTION + SQUARE_SHIFT)) for name, zero in zeros(parameters).items()}
        return AdamState(masters(parameters), zeros(parameters), chance)

    def limits(self) -> tuple[tuple[int, int], ...]:
        """See `Optimizer.limits`."""
        return MASTER_LIMITS, mean_limits(self.momentum), (0, (1 << 26) + (1 << 5))

    def update(
        self, kinds: Mapping[str, Kind], parameters: Parameters, votes: Parameters, state: AdamState,
        deviations: Parameters, setting: Array,
    ) -> tuple[Parameters, AdamState]:  # fmt: skip
        """See `Optimizer.update`."""
        master, mean, square = {}, {}, {}
        for name, kind in kinds.items():
            vote = standardised(votes[name], deviations[name])
            mean[name] = state.mean[name] + vote - rounding_shift(state.mean[name], self.momentum)
            kept = rounding_shift(state.square[name], SQUARE_SHIFT)
            square[name] = state.square[name] + rounding_shift(jnp.square(vote), FRACTION) - kept
            root, shift = reciprocal_root(jnp.maximum(square[name], _LEAST_SQUARE))
            # The square has FRACTION + SQUARE_SHIFT bits of fraction, hence its root half as many.
            shift -= (FRACTION + SQUARE_SHIFT) // 2
            product = rounding_shift(mean[name], self.momentum) * root
            ratio = jnp.right_shift(product + jnp.left_shift(1, shift - 1), shift)
            master[name] = moved(kind, state.master[name], ratio, setting, self.weight_decay)
        return rounded(master), AdamState(master, mean, square)


def reciprocal_root(x: Array) -> tuple[Array, Array]:
    """(r, s) with r * 2^-s = 1 / sqrt(x), r from 2^14 to 2^15. x: int32, 2^9 at least."""
    power = (31 - jax.lax.clz(x)) & ~1
    mantissa = jnp.right_shift(x, power - 8)  # [256, 1024)
    return jnp.asarray(_RECIPROCAL_ROOT, jnp.int32)[mantissa - 256], 15 + power // 2
