"""From the losses of antithetic pairs to one int8 fitness a pair, over the whole population (docs/numerics.md, 8)."""

from collections.abc import Callable

import jax.numpy as jnp

from intlm.arithmetic import LARGEST_NOISE
from intlm.arithmetic.fixed_point import MAX8, Array

Total = Callable[[Array], Array]  # from the sums of one part of a population to those of all
CUT = 4  # normalised fitness saturates at this many mean absolute differences
_DIFFERENCE_LIMIT = (1 << 23) - 1
_LIMB = 12


def fitness_maximum(pairs: int, rank: int) -> int:
    """The largest |fitness| whose votes cannot pass int32: pairs * rank * f * 46^2 < 2^31; 0 if there is none."""
    return min(MAX8, (2**31 - 1) // (pairs * rank * LARGEST_NOISE**2))


def sign(losses: Array) -> Array:
    """1 where the member that adds lost less, -1 where it lost more. losses: int32 [pairs, 2]. Returns int8 [pairs]."""
    return jnp.sign(losses[:, 1] - losses[:, 0]).astype(jnp.int8)


def normalised(losses: Array, rank: int, pairs: int, total: Total) -> Array:
    """The difference over the population's mean absolute difference, cut at 4 of them, which is fitness_maximum.

    losses: int32 [some pairs, 2]. pairs: of the whole population, at most 2^19. Returns int8 [some pairs].
    """
    largest = fitness_maximum(pairs, rank)
    difference = jnp.clip(losses[:, 1] - losses[:, 0], -_DIFFERENCE_LIMIT, _DIFFERENCE_LIMIT)
    size = jnp.abs(difference)
    # The sum of up to 2^19 values below 2^23 in two limbs of 12 bits, then divided by the number of pairs.
    high, low = total(jnp.stack([jnp.sum(size >> _LIMB), jnp.sum(size & (2**_LIMB - 1))]))
    rest = (high % pairs).astype(jnp.uint32) * 2**_LIMB + low.astype(jnp.uint32)
    mean = (high // pairs) * 2**_LIMB + (rest // jnp.uint32(pairs)).astype(jnp.int32)
    mean = jnp.maximum(mean, 1)
    rounded = (size * largest + (CUT // 2) * mean) // (CUT * mean)
    return (jnp.sign(difference) * jnp.minimum(rounded, largest)).astype(jnp.int8)


def shape(name: str, losses: Array, rank: int, pairs: int | None = None, total: Total = lambda x: x) -> Array:
    """The fitness called `name` in a configuration, of all pairs or of some.

    pairs: of the whole population, where these are some of them. total: adds up what each part of the population has.
    """
    return sign(losses) if name == "sign" else normalised(losses, rank, pairs or losses.shape[0], total)


def energy(fitness: Array, total: Total = lambda x: x) -> Array:
    """The sum of the squared fitness, int32: what votes are measured by. fitness: int8 [pairs]. total: see `shape`."""
    return total(jnp.sum(jnp.square(fitness.astype(jnp.int32))))
