"""Momentum in integers: a step along the mean of the last votes (Polyak, 1964; docs/numerics.md, section 9).

The mean is kept multiplied by its length, A += z - round(A / 2^k): it comes to rest at z exactly, from either side, and
no difference is too small to move it. With k = 0 there is no memory: each vote is a step.
"""

from typing import NamedTuple

import jax.numpy as jnp

from intlm.arithmetic.fixed_point import Array, rounding_shift
from intlm.eggroll.optimizer import MASTER_LIMITS, deviation, masters, mean_limits, moved, rounded, standardised
from intlm.model.parameters import Parameters, Specification


class MomentumState(NamedTuple):
    """By parameter, int32."""

    master: Parameters
    mean: Parameters


def init(parameters: Parameters) -> MomentumState:
    """The state before the first update."""
    return MomentumState(
        masters(parameters), {name: jnp.zeros(weight.shape, jnp.int32) for name, weight in parameters.items()}
    )


def limits(momentum: int) -> tuple[tuple[int, int], ...]:
    """See `Optimizer.limits`."""
    return MASTER_LIMITS, mean_limits(momentum)


def update(
    momentum: int,
    weight_decay: int,
    specifications: list[Specification],
    parameters: Parameters,
    votes: Parameters,
    state: MomentumState,
    energy: Array,
    rank: int,
    step: Array,
) -> tuple[Parameters, MomentumState]:
    """votes: int32, by parameter. energy: int32 scalar. step: int32 scalar, 2^16 = one int8 unit, at most 2^17."""
    master, mean = {}, {}
    for specification in specifications:
        name = specification.name
        vote = standardised(votes[name], deviation(specification, energy, rank))
        mean[name] = state.mean[name] + vote - rounding_shift(state.mean[name], momentum)
        ratio = rounding_shift(mean[name], momentum)
        master[name] = moved(specification, state.master[name], ratio, step, weight_decay)
    return rounded(master), MomentumState(master, mean)
