"""The gpu engine: fused kernels (kernels/gpu, docs/gpu.md), run layer by layer over many tokens of many members.

A layer reads a block of tokens of a chunk of members before the next layer does, so that noise, which belongs to a pair
and a matrix, is made once for many tokens; only the recurrence goes token by token. XLA does what no kernel serves.
"""

import os
import time
from functools import cache, partial

import jax
import jax.numpy as jnp

from intlm.arithmetic.fixed_point import (
    STATE_SHIFT,
    Array,
    activation_rescale,
    rank_multiplier,
    rounding_shift,
    saturate8,
)
from intlm.arithmetic.random_bits import Domain, seed_key, threefry4x32
from intlm.arithmetic.tables import tables
from intlm.cells.mgu import Mgu, recur
from intlm.estimators.member import Factors, Member, PerturbedWeights, parameter_noise
from intlm.model.forward import matrix_product, norm
from intlm.model.parameters import (
    Kind,
    Layered,
    Parameters,
    Specification,
    map_specifications,
    stack_layers,
    unstack_layers,
)
from intlm.objectives.next_token import NextToken
from intlm.population.chunks import even_chunk, map_in_chunks, numbered
from intlm.population.engine import Population, unserved
from intlm.population.kernels import Setting, padded, power_of_two
from intlm.population.kernels import feed_forward as fused
from intlm.population.kernels import recurrence as cells
from intlm.population.kernels.head import losses
from intlm.population.kernels.product import product
from intlm.population.kernels.votes import votes
from intlm.population.sharding import FIRST
from intlm.population.xla import XlaEngine, spare_bytes

TOKENS = 32  # in a block: longer blocks share noise among more tokens, shorter ones leave memory for more members
TILE = 2  # pairs whose rows share a product's weights
_OLDEST = 8.0  # compute capability: Triton's products of bytes need it


def interpreted() -> bool:
    """Whether the kernels run in Pallas's interpreter, on any processor: for tests, and slow."""
    return os.environ.get("INTLM_INTERPRET") == "1"


@cache
def missing() -> str:
    """The reason why the kernels cannot run here; empty if they can."""
    if jax.default_backend() != "gpu":
        return "JAX finds no GPU"
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", "")
    if "cuda" not in getattr(device.client, "platform_version", "").lower():
        return "the kernels are for NVIDIA's GPUs"
    if float(capability or 0) < _OLDEST:
        return f"compute capability {capability}, and the kernels need {_OLDEST}"
    return ""


def multiply_rate(seconds: float, size: int = 8192) -> float:
    """Measures for `seconds` the exact signed byte products a second of XLA's products of two square matrices."""
    cells = jnp.arange(size * size, dtype=jnp.uint32).reshape(size, size)
    matrix = (cells * jnp.uint32(2654435761) >> 24).astype(jnp.int8)  # varied values: equal ones would use less power
    jax.block_until_ready(_multiply(matrix, matrix))
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not count:
        for _ in range(8):  # waiting for each would count the wait
            made = _multiply(matrix, matrix)
        jax.block_until_ready(made)
        count += 8
    return count * size**3 / took


_multiply = jax.jit(matrix_product)


class GpuEngine(XlaEngine):
    """See `Engine`. Inference and generation are those of the `xla` engine."""

    name = "gpu"

    def __init__(self, population: Population) -> None:
        super().__init__(population)
        self.setting = Setting(population.perturbation, interpreted())
        architecture = population.architecture
        self.hidden, self.inner = padded(architecture.hidden_size), padded(architecture.feed_forward_size)
        self.fuses_feed_forward = self.hidden <= fused.LARGEST
        self.fuses_recurrence = self.hidden <= cells.LARGEST
        if not population.chunk_size:
            most = even_chunk(population.units, spare_bytes(architecture) // self._pair_bytes(), cells.PAIRS)
            self.chunk = min(population.units, most)

    @staticmethod
    def serves(population: Population) -> str:
        """See `Engine.serves`."""
        return ("" if interpreted() else missing()) or unserved(population, Member, NextToken, Mgu)

    def unserved(self) -> list[str]:
        """The operations that no kernel serves and XLA does, with the reason."""
        size = self.population.architecture.hidden_size
        found = []
        if not self.fuses_recurrence:
            found.append(f"recurrence (hidden {size} is above {cells.LARGEST})")
        if not self.fuses_feed_forward:
            found.append(f"norms (hidden {size} is above {fused.LARGEST})")
        return found

    def _block(self, length: int) -> int:
        return min(TOKENS, max(16, power_of_two(length)))

    def _pair_bytes(self) -> int:
        """Bytes of memory that a pair of a chunk takes: two streams, pre-activations of two matrices, states, the inner
        values of a feed-forward that is not fused, the noise of a layer's recurrence."""
        rows = 2 * TOKENS
        wide = self.hidden * (2 + 4 + 1) + (0 if self.fuses_feed_forward else self.inner)
        states = 4 * self.hidden * self.population.architecture.num_layers
        return rows * wide + states + 4 * self.population.perturbation.rank * self.hidden

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = FIRST
    ) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        population = self.population
        epoch = population.perturbation.epoch(update)
        shared = self._padded(parameters)

        def evaluate_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
            pairs, states = chunk
            count = pairs.shape[0]
            tile = min(cells.PAIRS, max(TILE, power_of_two(count)))
            more = -count % tile  # fills up whole tiles; their results are dropped
            pairs = jnp.pad(pairs, (0, more), mode="edge")
            states = jnp.pad(states, ((0, more), (0, 0), (0, 0), (0, 0)))
            own = pairs // population.group_size
            total, after = self._read(shared, epoch, first + pairs, tokens[own], targets[own], states, tile)
            return total[:count], after[:count]

        return map_in_chunks(evaluate_chunk, (numbered(states), states), self.chunk)

    def _padded(self, parameters: Parameters) -> Layered[Array]:
        """The weights, matrices padded with zeros to whole tiles."""

        def fill(array: Array) -> Array:
            if array.ndim < 2 + (array.ndim == 3):  # a vector
                return array
            rows, columns = array.shape[-2:]
            more = ((0, padded(rows) - rows), (0, padded(columns) - columns))
            return jnp.pad(array, ((0, 0),) * (array.ndim - 2) + more)

        shared = stack_layers(parameters)
        layers = {n: v if n.endswith("bias") else fill(v) for n, v in shared.layers.items()}
        for kind in ("input", "state"):  # the gate's and the candidate's are used together
            layers[kind] = jnp.stack([layers.pop(f"gate_{kind}"), layers.pop(f"candidate_{kind}")], axis=1)
        return Layered({name: fill(value) for name, value in shared.outer.items()}, layers)

    def _read(
        self,
        shared: Layered[Array],
        epoch: Array,
        pairs: Array,
        tokens: Array,
        targets: Array,
        states: Array,
        tile: int,
    ) -> tuple[Array, Array]:
        """Losses, int32 [pairs, 2], and states of a chunk. tokens: [pairs, T]; targets: [pairs, T, K]."""
        length = tokens.shape[1]
        size = self._block(length)
        count = -(-length // size)
        more = count * size - length
        blocks = jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, more)), constant_values=cells.PADDING)
        follow = jnp.pad(targets.astype(jnp.int32), ((0, 0), (0, more), (0, 0))).swapaxes(1, 2)
        blocks = jnp.moveaxis(blocks.reshape(-1, count, size), 1, 0)
        follow = jnp.moveaxis(follow.reshape(*follow.shape[:2], count, size), 2, 0)
        steps = min(length, size)

        def read(carry: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            states, total = carry
            lost, states = self._read_block(shared, epoch, pairs, *block, states, tile, steps)
            lost = jnp.where(block[0][:, None] == cells.PADDING, 0, lost.reshape(-1, 2, size))
            return (states, total + jnp.sum(lost, axis=2)), None

        extra = self.hidden - states.shape[-1]
        start = jnp.pad(jnp.moveaxis(states, 2, 0), ((0, 0),) * 3 + ((0, extra),))  # [layers, pairs, 2, H]
        (after, total), _ = jax.lax.scan(read, (start, jnp.zeros(states.shape[:2], jnp.int32)), (blocks, follow))
        return total, jnp.moveaxis(after, 0, 2)[..., : states.shape[-1]]

    def _read_block(
        self, shared: Layered[Array], epoch: Array, pairs: Array, tokens: Array, targets: Array, states: Array,
        tile: int, steps: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Losses of some tokens, int32 [pairs, 2 * tokens], and the states after them, int8 [layers, pairs, 2, H]."""
        setting, architecture = self.setting, self.population.architecture
        hidden, inner = architecture.hidden_size, architecture.feed_forward_size
        numbers = map_specifications(lambda _, number: number, architecture)
        counter = (epoch[None], pairs)
        x = self._embed(shared.outer["embedding"], epoch, pairs, tokens)

        def read_layer(
            carry: tuple[Array, Array], layer: tuple[dict[str, Array], dict[str, Array], Array]
        ) -> tuple[tuple[Array, Array], Array]:
            (x, normed), (weights, numbers, states) = carry, layer

            def where(*names: str) -> tuple[Array, Array, Array]:
                return (*counter, jnp.stack([numbers[name] for name in names]))

            squares = where("gate_input", "candidate_input")
            rescale = activation_rescale(hidden)
            from_input = product(
                setting, "value", normed, weights["input"], (hidden, hidden), rescale, squares, tile=TILE
            )
            after = self._recur(weights, numbers, epoch, pairs, from_input, tokens, states, tile, steps)
            both = where("up", "down")
            if self.fuses_feed_forward:
                x, normed = fused.feed_forward(
                    setting, architecture, x, after, weights["up"], weights["down"], both, TILE
                )
            else:
                added = after.astype(jnp.int32)
                added = rounding_shift(added, STATE_SHIFT) if architecture.nonlinearity == "table" else added
                x = saturate8(x + added)
                up = (*counter, both[2][:1])
                down = (*counter, both[2][1:])
                wide = product(
                    setting, "magnitude", self._norm(x), weights["up"][None], (inner, hidden), rescale, up, tile=TILE
                )[0]
                rescale = activation_rescale(inner)
                x = product(setting, "residual", wide, weights["down"][None], (hidden, inner), rescale, down, x, TILE)[
                    0
                ]
                normed = self._norm(x)
            last = after.reshape(*states.shape[:2], tokens.shape[1], self.hidden)[:, :, steps - 1]
            return (x, normed), last

        (_, normed), after = jax.lax.scan(read_layer, (x, self._norm(x)), (shared.layers, numbers.layers, states))
        where = (*counter, numbers.outer["head"][None])
        return losses(setting, architecture, normed, targets, shared.outer["head"], where, TILE), after

    def _norm(self, x: Array) -> Array:
        """Normalises the true channels; those of the padding stay 0."""
        size = self.population.architecture.hidden_size
        return jnp.pad(norm(x[..., :size]), ((0, 0), (0, 0), (0, self.hidden - size)))

    def _embed(self, embedding: Array, epoch: Array, pairs: Array, tokens: Array) -> Array:
        """The embedding of each token for both members: int8 [pairs, 2 * tokens, H]."""
        architecture, perturbation = self.population.architecture, self.population.perturbation
        vocabulary, size = architecture.vocab_size, architecture.hidden_size
        specification = Specification("embedding", (vocabulary, size), Kind.EMBEDDING)
        b = parameter_noise(specification, jnp.uint32(0), perturbation, epoch, pairs)
        assert isinstance(b, Factors)
        into = -(-size // 16)
        stride = into + -(-vocabulary // 16)
        read = jnp.maximum(tokens, 0)
        quantile = jnp.asarray(tables().quantile)
        key = seed_key(perturbation.seed, Domain.NOISE)

        def component(k: Array | int, total: Array) -> Array:
            block = (read // 16).astype(jnp.uint32) + jnp.uint32(into) + jnp.uint32(k) * jnp.uint32(stride)
            words = threefry4x32(key, (epoch, pairs[:, None], 0, block))
            word = jnp.select([read % 16 < 4 * (i + 1) for i in range(3)], words[:3], words[3])
            a = quantile[(word >> ((read % 4) * 8).astype(jnp.uint32)) & 255].astype(jnp.int32)  # [pairs, tokens]
            own = jax.lax.dynamic_index_in_dim(b.b, k, axis=1, keepdims=False).astype(jnp.int32)
            return total + (a * rank_multiplier(perturbation.rank))[..., None] * own[:, None, :]

        zero = jnp.zeros((*tokens.shape, size), jnp.int32)
        rank = perturbation.rank
        change = component(0, zero) if rank == 1 else jax.lax.fori_loop(0, rank, component, zero)
        change = rounding_shift(change, 11 + perturbation.sigma_shift)
        base = embedding[read, :size].astype(jnp.int32)
        x = saturate8(jnp.stack([base + change, base - change], axis=1))
        return jnp.pad(x.reshape(tokens.shape[0], -1, size), ((0, 0), (0, 0), (0, self.hidden - size)))

    def _recur(
        self, weights: dict[str, Array], numbers: dict[str, Array], epoch: Array, pairs: Array, from_input: Array,
        tokens: Array, states: Array, tile: int, steps: int,
    ) -> Array:  # fmt: skip
        """The states after each token: int8 [pairs, 2 * tokens, H]."""
        architecture, perturbation = self.population.architecture, self.population.perturbation
        size = architecture.hidden_size
        names = ("gate", "candidate")
        square = Specification("", (size, size), Kind.MATRIX)
        vector = Specification("", (size,), Kind.BIAS)
        draw = partial(parameter_noise, perturbation=perturbation, epoch=epoch, pairs=pairs)
        factors = [draw(square, numbers[f"{name}_state"]) for name in names]
        seen = PerturbedWeights(
            Layered({f"{name}_bias": weights[f"{name}_bias"] for name in names}, {}),
            Layered({f"{name}_bias": draw(vector, numbers[f"{name}_bias"]) for name in names}, {}),
            perturbation,
        )
        biases = jnp.stack([seen.vector(f"{name}_bias") for name in names])

        def fill(array: Array) -> Array:
            return jnp.pad(array, ((0, 0),) * (array.ndim - 1) + ((0, self.hidden - size),))

        if self.fuses_recurrence:
            noise = jax.tree.map(lambda *both: fill(jnp.stack(both)), *factors)
            read = cells.Cells(weights["state"], noise, fill(biases), from_input)
            return cells.recurrence(self.setting, architecture, read, tokens, states, steps, tile)
        shape = (2, tokens.shape[0], 2, tokens.shape[1], self.hidden)
        inputs = jnp.moveaxis(from_input.reshape(shape), 3, 0)[..., :size]  # [tokens, 2, pairs, 2, H]
        matrices = {f"{name}_state": weights["state"][i, :size, :size] for i, name in enumerate(names)}
        noise = {f"{name}_state": factors[i] for i, name in enumerate(names)}
        state_weights = PerturbedWeights(Layered(matrices, {}), Layered(noise, {}), perturbation)

        def read_one(state: Array, entry: tuple[Array, Array]) -> tuple[Array, Array]:
            token, inputs = entry
            token = token[:, None, None]
            state = jnp.where(token == cells.SEPARATOR, jnp.int8(0), state)
            others = inputs + biases.astype(jnp.int32)
            new = recur(state_weights, others[0], others[1], state, architecture)
            new = jnp.where(token == cells.PADDING, state, new)
            return new, new

        _, after = jax.lax.scan(read_one, states[..., :size], (tokens.T, inputs))
        return fill(jnp.moveaxis(after, 0, 2).reshape(tokens.shape[0], -1, size))

    def accumulate(self, fitness: Array, update: Array, first: Array = FIRST) -> Parameters:
        """See `Engine.accumulate`; XLA does the vectors."""
        population = self.population
        epoch = population.perturbation.epoch(update)

        def gather(specification: Specification, numbers: Array) -> Array:
            if len(specification.shape) == 1:
                return population.estimator.gather_named(
                    population, self.chunk, fitness, epoch, first, specification, numbers
                )
            where = (epoch[None], first + numbered(fitness), numbers.reshape(-1))
            fan_out, fan_in = specification.shape
            found = votes(self.setting, (fan_out, fan_in), population.largest_fitness, where, fitness)
            return found.reshape(*numbers.shape, *specification.shape)

        return unstack_layers(map_specifications(gather, population.architecture), population.architecture)
