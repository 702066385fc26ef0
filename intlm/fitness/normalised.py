"""A pair's loss difference over the population's mean difference (docs/numerics.md, section 8)."""

from dataclasses import dataclass

from intlm.fitness import FITNESS, Fitness
from intlm.lazy import Array, jnp

CUT = 4  # fitness saturates at this many mean absolute differences
_DIFFERENCE_LIMIT = (1 << 23) - 1
_LIMB = 12


def _difference(losses: Array) -> Array:
    return jnp.clip(losses[:, 1] - losses[:, 0], -_DIFFERENCE_LIMIT, _DIFFERENCE_LIMIT)


@FITNESS.register("normalised")
@dataclass(frozen=True, kw_only=True)
class Normalised(Fitness):
    """A pair's loss difference over the population's mean absolute one, cut at four of them."""

    def totals(self, losses: Array) -> Array:
        """The sum of up to 2^19 absolute differences below 2^23, in two limbs of 12 bits: int32 [2]."""
        size = jnp.abs(_difference(losses))
        return jnp.stack([jnp.sum(size >> _LIMB), jnp.sum(size & (2**_LIMB - 1))])

    def shape(self, losses: Array, rank: int, pairs: int, totals: Array) -> Array:
        """See `Fitness.shape`; pairs: at most 2^19. A difference of four mean differences gives `largest`."""
        largest = self.largest(pairs, rank)
        difference = _difference(losses)
        size, (high, low) = jnp.abs(difference), totals
        rest = (high % pairs).astype(jnp.uint32) * 2**_LIMB + low.astype(jnp.uint32)
        mean = (high // pairs) * 2**_LIMB + (rest // jnp.uint32(pairs)).astype(jnp.int32)
        mean = jnp.maximum(mean, 1)
        rounded = (size * largest + (CUT // 2) * mean) // (CUT * mean)
        return (jnp.sign(difference) * jnp.minimum(rounded, largest)).astype(jnp.int8)
