"""The sign of a pair's loss difference (the paper's integer experiments, arXiv 2511.16652, section 6)."""

from dataclasses import dataclass

from intlm.fitness import FITNESS, Fitness
from intlm.lazy import Array, jnp


@FITNESS.register("sign")
@dataclass(frozen=True, kw_only=True)
class Sign(Fitness):
    """The sign of a pair's loss difference."""

    def largest(self, pairs: int, rank: int) -> int:
        """See `Fitness.largest`."""
        return 1

    def shape(self, losses: Array, rank: int, pairs: int, totals: Array) -> Array:
        """See `Fitness.shape`."""
        return jnp.sign(losses[:, 1] - losses[:, 0]).astype(jnp.int8)
