"""From the losses of antithetic pairs to one int8 fitness a pair, over the whole population (docs/numerics.md, 8)."""

import jax.numpy as jnp

from intlm.arithmetic import LARGEST_NOISE
from intlm.arithmetic.fixed_point import MAX8, Array

CUT = 4  # normalised fitness saturates at this many mean absolute differences
_DIFFERENCE_LIMIT = (1 << 23) - 1
_LIMB = 12


def fitness_maximum(pairs: int, rank: int) -> int:
    """The largest |fitness| whose votes cannot pass int32: pairs * rank * f * 46^2 < 2^31; 0 if there is none."""
    return min(MAX8, (2**31 - 1) // (pairs * rank * LARGEST_NOISE**2))


def sign(losses: Array) -> Array:
    """1 where the member that adds lost less, -1 where it lost more. losses: int32 [pairs, 2]. Returns int8 [pairs]."""
    return jnp.sign(losses[:, 1] - losses[:, 0]).astype(jnp.int8)


def _difference(losses: Array) -> Array:
    return jnp.clip(losses[:, 1] - losses[:, 0], -_DIFFERENCE_LIMIT, _DIFFERENCE_LIMIT)


def sizes(losses: Array) -> Array:
    """What `normalised` must know of all pairs, to be added up over the parts of a population: int32 [2].

    losses: int32 [some pairs, 2]. It is the sum of up to 2^19 absolute differences below 2^23 in two limbs of 12 bits.
    """
    size = jnp.abs(_difference(losses))
    return jnp.stack([jnp.sum(size >> _LIMB), jnp.sum(size & (2**_LIMB - 1))])


def normalised(losses: Array, rank: int, pairs: int, sizes: Array) -> Array:
    """The difference over the population's mean absolute difference, cut at 4 of them, which is fitness_maximum.

    losses: int32 [some pairs, 2]. pairs, sizes: of the whole population, at most 2^19. Returns int8 [some pairs].
    """
    largest = fitness_maximum(pairs, rank)
    difference = _difference(losses)
    size, (high, low) = jnp.abs(difference), sizes
    rest = (high % pairs).astype(jnp.uint32) * 2**_LIMB + low.astype(jnp.uint32)
    mean = (high // pairs) * 2**_LIMB + (rest // jnp.uint32(pairs)).astype(jnp.int32)
    mean = jnp.maximum(mean, 1)
    rounded = (size * largest + (CUT // 2) * mean) // (CUT * mean)
    return (jnp.sign(difference) * jnp.minimum(rounded, largest)).astype(jnp.int8)


def shape(name: str, losses: Array, rank: int, pairs: int | None = None, sizes_of_all: Array | None = None) -> Array:
    """The fitness called `name` in a configuration, of all pairs or of some.

    pairs, sizes_of_all: of the whole population (`sizes`), where these are some of its pairs.
    """
    if name == "sign":
        return sign(losses)
    return normalised(losses, rank, pairs or losses.shape[0], sizes(losses) if sizes_of_all is None else sizes_of_all)


def energy(fitness: Array) -> Array:
    """The sum of the squared fitness, int32 scalar: what votes are measured by. fitness: int8 [pairs]."""
    return jnp.sum(jnp.square(fitness.astype(jnp.int32)))
