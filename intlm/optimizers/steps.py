"""Steps of master weights, which `sgd`, `momentum` and `adam` share (docs/numerics.md, section 9).

Weights that move by less than one int8 unit have a master with 16 fraction bits; members see its rounding. Votes are
measured in standard deviations of chance, 256 = one.
"""

from dataclasses import dataclass

from intlm.arithmetic.fixed_point import MAX8, rounding_shift
from intlm.lazy import Array, jnp
from intlm.model.parameters import VECTOR_SHIFT, Kind, Parameters, is_matrix
from intlm.optimizers import Optimizer
from intlm.settings import INT32_MAX, key

FRACTION = 8  # bits of a vote in standard deviations
MASTER = 16  # fraction bits of a master weight
_VOTE_LIMIT = 1 << 14  # 64 standard deviations
_RATIO_LIMIT = (1 << 11) - 1  # a step is that of just below 8 standard deviations at most
MASTER_LIMITS = -MAX8 << MASTER, MAX8 << MASTER
_KEPT = 10  # bits of a master that decay ignores


@dataclass(frozen=True, kw_only=True)
class Stepped(Optimizer):
    """An optimizer whose step rises linearly, and then falls linearly to zero."""

    step: int = key(
        "the peak learning rate: the step of a vote of one standard deviation; 256 = one int8 unit",
        256, low=1, high=512,
    )  # fmt: skip
    weight_decay: int = key(
        "matrices shrink by weight_decay / 65536 in an update of step 256, by proportionally less at smaller steps",
        0, low=0, high=255,
    )  # fmt: skip
    warmup_updates: int = key("updates over which the step rises to its peak", 0, low=0, high=INT32_MAX)
    decay_updates: int = key(
        "updates from the start until the step has fallen linearly to 0", 1000, low=1, high=INT32_MAX
    )

    def setting(self, update: int) -> int:
        """The step size at an update, 2^16 = one int8 unit."""
        if update < self.warmup_updates:
            return (self.step << 8) * (update + 1) // (self.warmup_updates + 1)
        left = max(0, self.decay_updates - update)
        return (self.step << 8) * left // max(1, self.decay_updates - self.warmup_updates)

    def schedule_end(self) -> int:
        """See `Optimizer.schedule_end`."""
        return self.decay_updates


def standardised(votes: Array, deviation: Array) -> Array:
    """Votes in standard deviations of chance, 256 = one, at most 64. votes, deviation: int32 (`Optimizer.update`)."""
    unit = jnp.maximum(deviation, 1).astype(jnp.uint32)
    size = jnp.minimum((jnp.abs(votes).astype(jnp.uint32) + unit // 2) // unit, _VOTE_LIMIT)
    return jnp.sign(votes) * size.astype(jnp.int32)


def mean_limits(momentum: int) -> tuple[int, int]:
    """The least and the greatest value of the mean of standardised votes over 2^momentum updates."""
    greatest = (_VOTE_LIMIT << momentum) + (1 << momentum >> 1)
    return -greatest, greatest


def masters(parameters: Parameters) -> Parameters:
    """Returns the master weights of int8 weights: int32."""
    return {name: weight.astype(jnp.int32) << MASTER for name, weight in parameters.items()}


def zeros(parameters: Parameters) -> Parameters:
    """Returns an int32 zero for each weight."""
    return {name: jnp.zeros(weight.shape, jnp.int32) for name, weight in parameters.items()}


def moved(kind: Kind, master: Array, ratio: Array, step: Array, weight_decay: int) -> Array:
    """Returns a master weight after a step. ratio: the step in standard deviations, 256 = one.

    step: int32 scalar, 2^16 = one int8 unit a standard deviation, at most 2^17; a vector's is half of it.
    weight_decay: 0 to 255; a matrix loses the share step * weight_decay / 2^32 of itself.
    """
    if is_matrix(kind):
        share = rounding_shift(step * weight_decay, 8)  # 2^24 = all
        master = master - rounding_shift(rounding_shift(master, _KEPT) * share, 24 - _KEPT)
    else:
        step = rounding_shift(step, VECTOR_SHIFT)
    move = rounding_shift(jnp.clip(ratio, -_RATIO_LIMIT, _RATIO_LIMIT) * step, FRACTION)
    return jnp.clip(master + move, *MASTER_LIMITS)


def rounded(masters: Parameters) -> Parameters:
    """The int8 weights that members see."""
    return {name: rounding_shift(master, MASTER).astype(jnp.int8) for name, master in masters.items()}
