"""The paper's integer optimizer: a weight moves by one where its vote passes a Z-test (arXiv 2511.16652, section 6).

Under the hypothesis that fitness says nothing of a weight, its vote has mean 0 and standard deviation
256 sqrt(rank * sum of squared fitness). A weight moves when the vote is beyond the two-sided quantile of level
alpha, which decays from 1 as 1 / (1 + (2^alpha_log2 - 1) * update / horizon).
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from intlm.arithmetic.fixed_point import MAX8, Array
from intlm.arithmetic.tables import threshold_quantile
from intlm.eggroll.optimizer import Optimizer, deviation
from intlm.model.parameters import Parameters, Specification


class ThresholdState(NamedTuple):
    """Nothing is remembered between updates."""


def optimizer(alpha: int, decay_updates: int) -> Optimizer:
    """alpha: 0 to 16; decay_updates: 1 or more."""
    return Optimizer(init, update, partial(quantile, alpha, decay_updates))


def init(parameters: Parameters) -> ThresholdState:
    """The state before the first update."""
    return ThresholdState()


def quantile(alpha: int, decay_updates: int, update: int) -> int:
    """256 times the quantile that a vote must pass at this update (0 for the first: then every vote moves)."""
    return threshold_quantile(decay_updates, decay_updates + (2**alpha - 1) * update)


def update(
    specifications: list[Specification],
    parameters: Parameters,
    votes: Parameters,
    state: ThresholdState,
    energy: Array,
    rank: int,
    quantile: Array,
) -> tuple[Parameters, ThresholdState]:
    """Move each weight by the sign of its vote where the vote passes the test.

    votes: int32, by parameter. energy: int32 scalar. quantile: int32 scalar, 256 times the test's quantile.
    """
    after = {}
    for specification in specifications:
        vote, weight = votes[specification.name], parameters[specification.name].astype(jnp.int32)
        least = quantile * deviation(specification, energy, rank)
        move = jnp.where(jnp.abs(vote) >= least, jnp.sign(vote), 0)
        after[specification.name] = jnp.clip(weight + move, -MAX8, MAX8).astype(jnp.int8)
    return after, state
