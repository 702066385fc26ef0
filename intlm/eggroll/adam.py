"""Adam (arXiv 1412.6980) in integers: the votes' mean over their root mean square.

Both averages are kept as `momentum` keeps its mean. They start at what chance gives, so that neither is corrected for
its beginning: a mean of 0, a mean square of 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import Array, rounding_shift
from intlm.eggroll.optimizer import (
    FRACTION,
    MASTER_LIMITS,
    deviation,
    masters,
    mean_limits,
    moved,
    rounded,
    standardised,
)
from intlm.model.parameters import Parameters, Specification

SQUARE_SHIFT = 6  # the mean square's length is 2^6 updates; even, so that its root is a shift
# 2^15 * sqrt(256 / m) for m from 256 to 1023, rounded.
_RECIPROCAL_ROOT = np.array([(math.isqrt((1 << 40) // m) + 1) >> 1 for m in range(256, 1024)], np.int32)
_LEAST_SQUARE = 1 << (FRACTION + SQUARE_SHIFT - 2)  # a quarter of what chance gives


class AdamState(NamedTuple):
    """By parameter, int32."""

    master: Parameters
    mean: Parameters
    square: Parameters


def init(parameters: Parameters) -> AdamState:
    """The state before the first update."""
    shapes = {name: weight.shape for name, weight in parameters.items()}
    return AdamState(
        masters(parameters),
        {name: jnp.zeros(shape, jnp.int32) for name, shape in shapes.items()},
        {name: jnp.full(shape, 1 << (FRACTION + SQUARE_SHIFT), jnp.int32) for name, shape in shapes.items()},
    )


def limits(momentum: int) -> tuple[tuple[int, int], ...]:
    """See `Optimizer.limits`."""
    return MASTER_LIMITS, mean_limits(momentum), (0, (1 << 26) + (1 << 5))


def reciprocal_root(x: Array) -> tuple[Array, Array]:
    """(r, s) with r * 2^-s = 1 / sqrt(x), r from 2^14 to 2^15. x: int32, 2^9 at least."""
    power = (31 - jax.lax.clz(x)) & ~1
    mantissa = jnp.right_shift(x, power - 8)  # [256, 1024)
    return jnp.asarray(_RECIPROCAL_ROOT)[mantissa - 256], 15 + power // 2


def update(
    momentum: int,
    weight_decay: int,
    specifications: list[Specification],
    parameters: Parameters,
    votes: Parameters,
    state: AdamState,
    energy: Array,
    rank: int,
    step: Array,
) -> tuple[Parameters, AdamState]:
    """votes: int32, by parameter. energy: int32 scalar. step: int32 scalar, 2^16 = one int8 unit, at most 2^17."""
    master, mean, square = {}, {}, {}
    for specification in specifications:
        name = specification.name
        vote = standardised(votes[name], deviation(specification, energy, rank))
        mean[name] = state.mean[name] + vote - rounding_shift(state.mean[name], momentum)
        kept = rounding_shift(state.square[name], SQUARE_SHIFT)
        square[name] = state.square[name] + rounding_shift(jnp.square(vote), FRACTION) - kept
        root, shift = reciprocal_root(jnp.maximum(square[name], _LEAST_SQUARE))
        # The square has FRACTION + SQUARE_SHIFT bits of fraction, hence its root half as many.
        shift -= (FRACTION + SQUARE_SHIFT) // 2
        product = rounding_shift(mean[name], momentum) * root
        ratio = jnp.right_shift(product + jnp.left_shift(1, shift - 1), shift)
        master[name] = moved(specification, state.master[name], ratio, step, weight_decay)
    return rounded(master), AdamState(master, mean, square)
