"""The reference engine: the specification in plain JAX, compiled by XLA. Every other engine is held to it."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from intlm.arithmetic.fixed_point import Array
from intlm.eggroll.perturbation import PerturbedWeights, noise, parameter_noise, votes
from intlm.model.forward import PlainWeights, step
from intlm.model.loss import loss
from intlm.model.parameters import (
    Architecture,
    Parameters,
    Specification,
    map_specifications,
    specifications,
    stack_layers,
    unstack_layers,
)
from intlm.model.sampling import sample
from intlm.population.engine import FIRST, Prepared, Problem

# Members times the widest activation in one chunk: what keeps a token's working set in cache.
_CHUNK_ELEMENTS = 1 << 19
# On a GPU a chunk takes what memory there is, up to so many bytes: noise and widest activations, _COPIES of them.
_MOST_SPARE = 1 << 29
_COPIES = 4

Tree = TypeVar("Tree")


class XlaEngine:
    """See `Engine`."""

    name = "xla"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        architecture, perturbation = problem.architecture, problem.perturbation
        widest = max(architecture.hidden_size, architecture.feed_forward_size, architecture.vocab_size)
        pairs = (problem.chunk_size or _CHUNK_ELEMENTS // widest) // 2
        if not problem.chunk_size and (spare := spare_bytes(architecture)):
            noise = perturbation.rank * sum(sum(s.shape) for s in specifications(architecture))
            pairs = even_chunk(problem.pairs, spare // (_COPIES * (noise + 2 * widest * 4)))
        self.chunk_pairs = min(problem.pairs, max(1, pairs))

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = FIRST
    ) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        problem = self.problem
        epoch = problem.perturbation.epoch(update)
        shared = stack_layers(parameters)

        def evaluate_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
            pairs, states = chunk
            drawn = noise(problem.architecture, problem.perturbation, epoch, first + pairs)
            weights = PerturbedWeights(shared, drawn, problem.perturbation)
            own = pairs // problem.group_size
            reading = tokens[own].astype(jnp.int32).T[..., None]  # [T, chunk, 1]
            follow = jnp.moveaxis(targets[own].astype(jnp.int32), 1, 0)[:, :, None]  # [T, chunk, 1, K]
            both = (*reading.shape[:2], 2)
            texts = (jnp.broadcast_to(reading, both), jnp.broadcast_to(follow, (*both, targets.shape[-1])))

            def read(carry: tuple[Array, Array], token: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
                states, total = carry
                logits, states = step(weights, token[0], states, problem.architecture)
                return (states, total + loss(logits, token[1])), None

            start = (jnp.moveaxis(states, 2, 0), jnp.zeros(states.shape[:2], jnp.int32))
            (states, total), _ = jax.lax.scan(read, start, texts)
            return total, jnp.moveaxis(states, 0, 2)

        return map_in_chunks(evaluate_chunk, (numbered(states), states), self.chunk_pairs)

    def accumulate(self, fitness: Array, update: Array, first: Array = FIRST) -> Parameters:
        """See `Engine.accumulate`."""
        epoch = self.problem.perturbation.epoch(update)
        architecture = self.problem.architecture
        found = map_specifications(partial(self._gather, fitness, epoch, first), architecture)
        return unstack_layers(found, architecture)

    def _gather(
        self, fitness: Array, epoch: Array, first: Array, specification: Specification, numbers: Array
    ) -> Array:
        """The votes of the parameters of one name: int32 N + their shape. numbers: uint32 N, [] or [layers]."""
        perturbation = self.problem.perturbation

        def gather(number: Array) -> Array:
            def add(total: Array, chunk: tuple[Array, Array]) -> Array:
                pairs, fitness = chunk
                drawn = parameter_noise(specification, number, perturbation, epoch, first + pairs)
                return total + votes(specification, drawn, fitness, self.problem.fitness_maximum)

            zero = jnp.zeros(specification.shape, jnp.int32)
            return fold_in_chunks(add, zero, (numbered(fitness), fitness), self.chunk_pairs)

        return jax.lax.map(gather, numbers) if numbers.ndim else gather(numbers)

    def prepare(self, parameters: Parameters) -> Prepared:
        """See `Engine.prepare`."""
        return stack_layers(parameters)

    def infer(self, prepared: Prepared, tokens: Array, states: Array) -> tuple[Array, Array]:
        """See `Engine.infer`."""
        weights = PlainWeights(prepared)

        def read(states: Array, token: Array) -> tuple[Array, Array]:
            logits, states = step(weights, token, states, self.problem.architecture)
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


def numbered(entries: Array) -> Array:
    """0, 1, 2, … for the entries of an array's first axis: uint32."""
    return jnp.arange(entries.shape[0], dtype=jnp.uint32)


def spare_bytes(architecture: Architecture) -> int:
    """Memory that a chunk may take, bytes; 0 on a device that does not tell how much it has (a CPU).

    More where the model is wide, for its members are then few.
    """
    held = jax.local_devices()[0].memory_stats() or {}
    most = _MOST_SPARE * -(-architecture.hidden_size // 256)
    return min(most, (held.get("bytes_limit", 0) - held.get("bytes_in_use", 0)) // 4)


def even_chunk(pairs: int, most: int, multiple: int = 1) -> int:
    """Up to `most` pairs, a multiple of something, such that nothing remains after the last chunk if that can be.

    A remainder is another program to compile, and takes copies of all states.
    """
    most = max(multiple, most // multiple * multiple)
    fewest = -(-pairs // most)
    for chunks in range(fewest, 2 * fewest + 1):
        if pairs % (chunks * multiple) == 0:
            return pairs // chunks
    return most


def _split(tree: Tree, size: int) -> tuple[Tree, Tree | None]:
    """Whole chunks, stacked on a new first axis, and what remains."""
    count = jax.tree.leaves(tree)[0].shape[0]
    whole = count // size * size
    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), tree)
    return chunks, jax.tree.map(lambda x: x[whole:], tree) if whole < count else None


def map_in_chunks(function: Callable[[Tree], Tree], xs: Tree, size: int) -> Tree:
    """function over the first axis of xs, `size` entries at a time, one chunk after another."""
    chunks, rest = _split(xs, size)
    done = jax.lax.map(function, chunks)
    done = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done)
    if rest is None:
        return done
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), done, function(rest))


def fold_in_chunks(function: Callable[[Array, Tree], Array], start: Array, xs: Tree, size: int) -> Array:
    """Fold function over the chunks of the first axis of xs."""
    chunks, rest = _split(xs, size)
    total, _ = jax.lax.scan(lambda total, chunk: (function(total, chunk), None), start, chunks)
    return total if rest is None else function(total, rest)
