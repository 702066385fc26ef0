"""A fitness shaping: the sign of a pair's loss difference if it is large enough, else 0."""

from dataclasses import dataclass

from intlm.fitness import FITNESS
from intlm.fitness.normalised import Normalised
from intlm.lazy import jnp
from intlm.settings import key


@FITNESS.register("clear")
@dataclass(frozen=True, kw_only=True)
class Clear(Normalised):
    """The sign of a pair's loss difference if it is large enough, else 0."""

    share: int = key("the least difference that votes, in sixteenths of the population's mean", 8, low=0, high=64)

    def shape(self, losses, rank, pairs, totals):
        largest = self.largest(pairs, rank)  # four mean differences
        size = super().shape(losses, rank, pairs, totals).astype(jnp.int32)
        return (jnp.sign(size) * (64 * jnp.abs(size) >= self.share * largest)).astype(jnp.int8)
