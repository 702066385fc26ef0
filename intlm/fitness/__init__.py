"""Fitness shapings: from the losses of antithetic pairs to one int8 fitness a pair (docs/numerics.md, section 8)."""

from intlm.arithmetic import LARGEST_NOISE
from intlm.arithmetic.fixed_point import MAX8
from intlm.lazy import Array, jnp
from intlm.settings import Family, Part


class Fitness(Part):
    """Turns losses into fitness. A population may be spread over devices: quantities of the whole population are summed
    first (`totals`)."""

    def largest(self, pairs: int, rank: int) -> int:
        """The largest |fitness|, at most `largest_fitness`."""
        return largest_fitness(pairs, rank)

    def totals(self, losses: Array) -> Array:
        """The sums that `shape` needs, to be added up over the parts of a population: int32 [any].

        losses: int32 [some pairs, 2], 256 = one bit; the member that adds its perturbation is first.
        """
        return jnp.zeros(0, jnp.int32)

    def shape(self, losses: Array, rank: int, pairs: int, totals: Array) -> Array:
        """Each pair's fitness, positive where the member that adds has the lower loss: int8 [some pairs].

        losses: as in `totals`; both 0 for a pair that does not count, whose fitness must be 0. pairs, totals: of the
        whole population.
        """
        raise NotImplementedError


FITNESS: Family[Fitness] = Family("fitness shaping", "intlm.fitness", of_training=True)


def largest_fitness(pairs: int, rank: int) -> int:
    """The largest |fitness| whose votes cannot pass int32: pairs * rank * f * 46^2 < 2^31; 0 if there is none."""
    return min(MAX8, (2**31 - 1) // (pairs * rank * LARGEST_NOISE**2))
