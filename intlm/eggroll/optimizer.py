"""What an optimizer is, and what all of them need: votes measured against chance, steps, master weights.

An optimizer is a pair of pure functions, as in optax: `init` makes its state, `update` turns a population's votes into
the next weights. `setting` is its schedule: one integer for each update, which is an argument of `update`, so that one
compiled program serves the whole run.

Weights that move by less than one int8 unit have a master with 16 fraction bits; members see its rounding
(docs/numerics.md, section 9).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8, Array, integer_sqrt, rounding_shift
from intlm.eggroll.perturbation import VECTOR_SHIFT, is_matrix
from intlm.model.parameters import Parameters, Specification
from intlm.schema import check_range

FRACTION = 8  # bits of a vote in standard deviations
MASTER = 16  # fraction bits of a master weight
_VOTE_LIMIT = 1 << 14  # 64 standard deviations
_RATIO_LIMIT = (1 << 11) - 1  # a step is that of just below 8 standard deviations at most
MASTER_LIMITS = -MAX8 << MASTER, MAX8 << MASTER
_KEPT = 10  # bits of a master that decay does not look at


class Optimizer(NamedTuple):
    """Built from a configuration by `intlm.update.make_optimizer`."""

    init: Callable[[Parameters], Any]
    # update(specifications, parameters, votes, state, energy, rank, setting) -> (parameters, state), element by
    # element: arrays may be any slice of a parameter's. energy: of the fitness that voted.
    update: Callable[..., tuple[Parameters, Any]]
    setting: Callable[[int], int]
    limits: tuple[tuple[int, int], ...] = ()  # of each field of the state, the least and the greatest value


def check_state(optimizer: Optimizer, state: Any, place: object) -> None:
    """Raise RunError that names `place` and the field for a value that no update can have left (numerics.md, 11)."""
    for field, arrays, (low, high) in zip(getattr(state, "_fields", ()), state, optimizer.limits, strict=True):
        for name, array in arrays.items():
            check_range(np.asarray(array), low, high, f"{place}: optimizer: {field} of {name}")


def mean_limits(momentum: int) -> tuple[int, int]:
    """Of the mean of standardised votes over 2^momentum updates."""
    greatest = (_VOTE_LIMIT << momentum) + (1 << momentum >> 1)
    return -greatest, greatest


def deviation(specification: Specification, energy: Array, rank: int) -> Array:
    """A 256th of a vote's standard deviation where fitness says nothing: int32 scalar, rounded down.

    energy: int32 scalar, the sum of the squared fitness.
    """
    return integer_sqrt(energy * (rank if is_matrix(specification.kind) else 1))


def standardised(votes: Array, deviation: Array) -> Array:
    """Votes in standard deviations of chance, 256 = one, at most 64. votes: int32; deviation: see `deviation`."""
    unit = jnp.maximum(deviation, 1).astype(jnp.uint32)
    size = jnp.minimum((jnp.abs(votes).astype(jnp.uint32) + unit // 2) // unit, _VOTE_LIMIT)
    return jnp.sign(votes) * size.astype(jnp.int32)


def scheduled_step(step: int, warmup_updates: int, decay_updates: int, update: int) -> int:
    """The step at an update, 2^16 = one int8 unit, from `step`, 256 = one.

    It rises on a straight line for `warmup_updates`, and falls on one from there to nothing at `decay_updates`.
    """
    if update < warmup_updates:
        return (step << 8) * (update + 1) // (warmup_updates + 1)
    return (step << 8) * max(0, decay_updates - update) // max(1, decay_updates - warmup_updates)


def masters(parameters: Parameters) -> Parameters:
    """The master weights of int8 weights: int32."""
    return {name: weight.astype(jnp.int32) << MASTER for name, weight in parameters.items()}


def moved(specification: Specification, master: Array, ratio: Array, step: Array, weight_decay: int) -> Array:
    """A master weight after a step of so many standard deviations, 256 = one.

    step: int32 scalar, 2^16 = one int8 unit a standard deviation, at most 2^17; a vector's is half of it.
    weight_decay: 0 to 255; a matrix loses the share step * weight_decay / 2^32 of itself.
    """
    if is_matrix(specification.kind):
        share = rounding_shift(step * weight_decay, 8)  # 2^24 = all
        master = master - rounding_shift(rounding_shift(master, _KEPT) * share, 24 - _KEPT)
    else:
        step = rounding_shift(step, VECTOR_SHIFT)
    move = rounding_shift(jnp.clip(ratio, -_RATIO_LIMIT, _RATIO_LIMIT) * step, FRACTION)
    return jnp.clip(master + move, *MASTER_LIMITS)


def rounded(masters: Parameters) -> Parameters:
    """The int8 weights that members see."""
    return {name: rounding_shift(master, MASTER).astype(jnp.int8) for name, master in masters.items()}
