"""The reference engine: the specification in plain JAX, compiled by XLA. Every other engine must give its bits."""

import jax
import jax.numpy as jnp

from intlm.estimators.member import Member
from intlm.estimators.token import Evaluation
from intlm.lazy import Array
from intlm.model.forward import PlainWeights, step
from intlm.model.parameters import Architecture, Parameters, specifications, stack_layers
from intlm.model.sampling import sample
from intlm.population.chunks import even_chunk
from intlm.population.engine import Population, Prepared
from intlm.population.sharding import FIRST

# Members times the widest activation in one chunk: keeps a token's working set in cache.
_CHUNK_ELEMENTS = 1 << 19
# On a GPU a chunk takes the free memory up to so many bytes: for _COPIES of its noise and widest activations.
_MOST_SPARE = 1 << 29
_COPIES = 4


class XlaEngine:
    """See `Engine`. It serves every estimator, objective and cell, because they are written in JAX."""

    name = "xla"

    def __init__(self, population: Population) -> None:
        self.population = population
        architecture = population.architecture
        widest = max(architecture.hidden_size, architecture.feed_forward_size, architecture.vocab_size)
        of_a_unit = max(1, population.members // population.units)
        units = (population.chunk_size or _CHUNK_ELEMENTS // widest) // of_a_unit
        if not population.chunk_size and (spare := spare_bytes(architecture)):
            rank = population.estimator.rank if isinstance(population.estimator, Member) else 1
            noise = rank * sum(sum(s.shape) for s in specifications(architecture))
            units = even_chunk(population.units, spare // (_COPIES * (noise + of_a_unit * widest * 4)))
        self.chunk = min(population.units, max(1, units))

    @staticmethod
    def serves(population: Population) -> str:
        """See `Engine.serves`."""
        return ""

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = FIRST
    ) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        return self.population.estimator.read(
            self.population, self.chunk, parameters, (tokens, targets), states, update, first
        )

    def accumulate(self, fitness: Array, update: Array, first: Array = FIRST) -> Parameters:
        """See `Engine.accumulate`."""
        return self.population.estimator.gather(self.population, self.chunk, fitness, update, first)

    def evaluate_tokens(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, means: Array, update: Array,
        first: Array, there: Array | None = None, voters: Array | None = None,
    ) -> Evaluation:  # fmt: skip
        """See `Engine.evaluate_tokens`."""
        return self.population.estimator.read_tokens(
            self.population, self.chunk, parameters, tokens, targets, states, means, update, first, there, voters
        )

    def prepare(self, parameters: Parameters) -> Prepared:
        """See `Engine.prepare`."""
        return stack_layers(parameters)

    def infer(self, prepared: Prepared, tokens: Array, states: Array) -> tuple[Array, Array]:
        """See `Engine.infer`."""
        weights = PlainWeights(prepared)

        def read(states: Array, token: Array) -> tuple[Array, Array]:
            logits, states = step(weights, token, states, self.population.architecture)
            return states, logits.astype(jnp.int16)

        states, logits = jax.lax.scan(read, jnp.moveaxis(states, 1, 0), tokens.astype(jnp.int32).T)
        return logits.swapaxes(0, 1), jnp.moveaxis(states, 0, 1)

    def generate(
        self, prepared: Prepared, logits: Array, states: Array, key: Array, position: Array, inverse: Array,
        top_k: int, count: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """See `Engine.generate`."""

        def write(carry: tuple[Array, Array], position: Array) -> tuple[tuple[Array, Array], Array]:
            logits, states = carry
            token = sample(logits, key, position, inverse, top_k)
            logits, states = self.infer(prepared, token[None, None], states[None])
            return (logits[0, 0], states[0]), token

        (logits, states), drawn = jax.lax.scan(write, (logits, states), position + jnp.arange(count, dtype=jnp.uint32))
        return drawn, logits, states


def spare_bytes(architecture: Architecture) -> int:
    """The memory that a chunk may take in bytes; 0 on a device that does not report how much it has (a CPU).

    It is more for a wide model, because its chunks have few members.
    """
    held = jax.local_devices()[0].memory_stats() or {}
    most = _MOST_SPARE * -(-architecture.hidden_size // 256)
    return min(most, (held.get("bytes_limit", 0) - held.get("bytes_in_use", 0)) // 4)
