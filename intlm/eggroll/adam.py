"""Adam (arXiv 1412.6980) in integers: the votes' mean over their root mean square, into weights with fraction bits.

- A vote is measured in standard deviations of what chance alone would give, with 8 fraction bits.
- Averages are kept multiplied by their length, A += x - round(A / 2^k): they come to rest at x exactly, from either
  side, and no difference is too small to move them. They start at what chance gives, so that none is corrected
  for its beginning: a mean of 0, a mean square of 1.
- The master weights have 16 fraction bits; the int8 weights that the members see are their rounding.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8, Array, rounding_shift
from intlm.eggroll.perturbation import is_matrix
from intlm.eggroll.threshold import integer_sqrt
from intlm.model.parameters import Parameters, Specification

MEAN_SHIFT = 3  # the mean's length is 2^3 updates
SQUARE_SHIFT = 6  # the mean square's is 2^6; even, so that its root is a shift
FRACTION = 8  # bits of a vote in standard deviations
MASTER = 16  # fraction bits of the master weights
STEP_ONE = 1 << 16  # a step of one int8 unit for a mean as large as its root mean square
_VOTE_LIMIT = 1 << 14  # 64 standard deviations
_RATIO_LIMIT = (1 << 11) - 1  # just below 8
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
    wide = {name: weight.astype(jnp.int32) for name, weight in parameters.items()}
    return AdamState(
        {name: weight << MASTER for name, weight in wide.items()},
        {name: jnp.zeros_like(weight) for name, weight in wide.items()},
        {name: jnp.full_like(weight, 1 << (FRACTION + SQUARE_SHIFT)) for name, weight in wide.items()},
    )


def scheduled_step(update: int, step: int, decay_updates: int) -> int:
    """The step at an update, 2^16 = one int8 unit: `step` (2^8 = one unit) falling to nothing on a straight line."""
    return (step << 8) * max(0, decay_updates - update) // decay_updates


def reciprocal_root(x: Array) -> tuple[Array, Array]:
    """(r, s) with r * 2^-s = 1 / sqrt(x), r from 2^14 to 2^15. x: int32, 2^9 at least."""
    power = (31 - jax.lax.clz(x)) & ~1
    mantissa = jnp.right_shift(x, power - 8)  # [256, 1024)
    return jnp.asarray(_RECIPROCAL_ROOT)[mantissa - 256], 15 + power // 2


def update(
    specifications: list[Specification],
    parameters: Parameters,
    votes: Parameters,
    state: AdamState,
    fitness: Array,
    rank: int,
    step: Array,
) -> tuple[Parameters, AdamState]:
    """Move each weight by step * mean / root mean square of its votes.

    votes: int32, by parameter. fitness: int8 [pairs]. step: int32 scalar, 2^16 = one int8 unit, at most 2^17.
    """
    energy = jnp.sum(jnp.square(fitness.astype(jnp.int32)))
    after, master, mean, square = {}, {}, {}, {}
    for specification in specifications:
        name = specification.name
        # 256 of these is a vote's standard deviation where fitness says nothing.
        deviation = jnp.maximum(integer_sqrt(energy * (rank if is_matrix(specification.kind) else 1)), 1)
        unit = deviation.astype(jnp.uint32)
        size = jnp.minimum((jnp.abs(votes[name]).astype(jnp.uint32) + unit // 2) // unit, _VOTE_LIMIT)
        vote = jnp.sign(votes[name]) * size.astype(jnp.int32)
        mean[name] = state.mean[name] + vote - rounding_shift(state.mean[name], MEAN_SHIFT)
        kept = rounding_shift(state.square[name], SQUARE_SHIFT)
        square[name] = state.square[name] + rounding_shift(jnp.square(vote), FRACTION) - kept
        root, shift = reciprocal_root(jnp.maximum(square[name], _LEAST_SQUARE))
        # The square has FRACTION + SQUARE_SHIFT bits of fraction, hence its root half as many.
        shift -= (FRACTION + SQUARE_SHIFT) // 2
        product = rounding_shift(mean[name], MEAN_SHIFT) * root
        ratio = jnp.right_shift(product + jnp.left_shift(1, shift - 1), shift)
        move = rounding_shift(jnp.clip(ratio, -_RATIO_LIMIT, _RATIO_LIMIT) * step, FRACTION)
        master[name] = jnp.clip(state.master[name] + move, -MAX8 << MASTER, MAX8 << MASTER)
        after[name] = rounding_shift(master[name], MASTER).astype(jnp.int8)
    return after, AdamState(master, mean, square)
