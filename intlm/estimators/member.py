"""The paper's estimator: low-rank perturbations from the counter (EGGROLL, arXiv 2511.16652, section 4).

Pair p's members see W + s(A B^T) and W - s(A B^T), s = 2^-sigma_shift / sqrt(rank), for a whole text; the difference of
their losses votes for A B^T. The sum is never formed: x (W ± s A B^T)^T is x W^T ± s (x B) A^T. Noise is made where it
is used, and made again for the votes (docs/numerics.md, sections 7 to 9).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from intlm.arithmetic import LARGEST_NOISE
from intlm.arithmetic.fixed_point import (
    MAX8,
    integer_sqrt,
    rank_multiplier,
    rounding_shift,
    saturate8,
    saturate16,
)
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key
from intlm.arithmetic.tables import tables
from intlm.estimators import ESTIMATORS, Estimator
from intlm.fitness import FITNESS, Fitness
from intlm.lazy import Array, jax, jnp
from intlm.model.forward import Weights, matrix_product, zero_states
from intlm.model.parameters import (
    VECTOR_SHIFT,
    Architecture,
    Layered,
    Parameters,
    Specification,
    is_matrix,
    map_specifications,
    stack_layers,
    unstack_layers,
)
from intlm.population.chunks import fold_in_chunks, map_in_chunks, numbered
from intlm.settings import INT32_MAX, choice, key

if TYPE_CHECKING:
    from intlm.population.engine import Engine, Population

MAX_PAIRS = 2**19
INPUT_PRODUCT_LIMIT = 1 << 23  # |x B| is clipped to this before its scaling, which saturates far below it


@ESTIMATORS.register("member")
@dataclass(frozen=True, kw_only=True)
class Member(Estimator):
    """The paper's: antithetic pairs, each with a low-rank perturbation for a whole text, compared by their losses."""

    training_version: ClassVar[int] = 3

    rank: int = key("rank of each member's perturbation of a matrix", 1, low=1, high=256)
    sigma_shift: int = key("sigma, the size of perturbations, is 2**-sigma_shift", 4, low=0, high=12)
    noise_reuse: int = key(
        "consecutive updates that use the same perturbations; 0: all updates do", 1, low=0, high=INT32_MAX
    )
    group_size: int = key(
        "antithetic pairs that read the same text; must divide population / 2", 1, low=1, high=MAX_PAIRS
    )
    fitness: Fitness = choice("how a pair's losses become its fitness", FITNESS, "sign")

    def check(self, config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        """See `Part.check`."""
        population, name = config.eggroll.population, "eggroll.population"
        own = f"eggroll.{self.name}"  # a subclass has a section of its own
        pairs = population // 2
        if population % 2:
            yield (name,), f"{name} = {population}: must be even (members come in antithetic pairs)"
        if pairs % self.group_size:
            yield (
                (f"{own}.group_size", name),
                f"{own}.group_size = {self.group_size}: must divide the number of pairs, {name} / 2 = {pairs}",
            )
        # A vote sums fitness * a * b over pairs and rank; |a|, |b| <= 46, and fitness reaches 1 at the least.
        votes = pairs * self.rank * LARGEST_NOISE**2
        if votes > INT32_MAX:
            yield (
                (name, f"{own}.rank"),
                f"{name} = {population}, {own}.rank = {self.rank}: votes would overflow int32: "
                f"population/2 * rank * {LARGEST_NOISE}^2 = {votes} exceeds {INT32_MAX}; "
                f"lower {name} or {own}.rank",
            )
        if pairs > MAX_PAIRS:
            yield (
                (name,),
                f"{name} = {population}: must be at most {2 * MAX_PAIRS} (the mean absolute difference is summed in "
                "two int32 limbs)",
            )

    def units(self, members: int) -> int:
        """See `Estimator.units`."""
        return members // 2

    def units_of_a_text(self) -> int:
        """See `Estimator.units_of_a_text`."""
        return self.group_size

    def init(self, population: "Population") -> Array:
        """The members' recurrent states: int8 [pairs, 2, layers, hidden]."""
        return zero_states((population.units, 2), population.architecture)

    def evaluate(
        self, engine: "Engine", parameters: Parameters, batch: tuple[Array, ...], kept: Array, common: Any,
        update: Array, first: Array, there: Array | None = None, halves: bool = False,
    ) -> tuple[Array, Array]:  # fmt: skip
        """The members' losses: int32 [pairs, 2], and their states."""
        tokens, targets = batch
        losses, kept = engine.evaluate(parameters, tokens, targets, kept, update, first)
        return losses if there is None else jnp.where(there[:, None], losses, 0), kept

    def losses(self, seen: Array) -> Array:
        """See `Estimator.losses`."""
        return seen.reshape(-1)

    def totals(self, seen: Array) -> Array:
        """See `Estimator.totals`."""
        return self.fitness.totals(seen)

    def votes(
        self, engine: "Engine", seen: Array, totals: Array, update: Array, first: Array, half: int | None = None
    ) -> tuple[Parameters, Array]:
        """See `Estimator.votes`; with them comes the sum of the squared fitness. The halves are of the pairs."""
        shaped = self.fitness.shape(seen, self.rank, engine.population.units, totals)
        if half is not None:
            late = first + numbered(seen) >= engine.population.units // 2
            shaped = jnp.where(late == bool(half), shaped, jnp.int8(0))
        return engine.accumulate(shaped, update, first), jnp.sum(jnp.square(shaped.astype(jnp.int32)))

    def deviations(
        self, population: "Population", specifications: Iterable[Specification], chance: Array
    ) -> Parameters:
        """In 256ths: sqrt(rank * sum of squared fitness), rounded down (rank 1 for a vector)."""
        matrix, vector = integer_sqrt(chance * self.rank), integer_sqrt(chance)
        return {s.name: matrix if is_matrix(s.kind) else vector for s in specifications}

    def saturated(self, kept: Array) -> Array:
        """See `Estimator.saturated`."""
        return jnp.sum(jnp.abs(kept) == MAX8, axis=(1, 2, 3), dtype=jnp.int32)

    def noise_values(self, specifications: Iterable[Specification], members: int, tokens: int) -> int:
        """See `Estimator.noise_values`: of each pair both factors of a matrix, and every element of a vector."""
        values = (s.shape[0] if len(s.shape) == 1 else self.rank * sum(s.shape) for s in specifications)
        return self.units(members) * sum(values)

    def states_of_a_unit(self, architecture: Architecture) -> int:
        """See `Estimator.states_of_a_unit`."""
        return 2 * architecture.num_layers * architecture.state_size

    # In plain JAX: the reference for every engine

    def perturbation(self, seed: int) -> "Perturbation":
        """The settings that the noise is drawn by."""
        return Perturbation(seed, self.rank, self.sigma_shift, self.noise_reuse)

    def noise(self, specification: Specification, number: Array, seed: int, epoch: Array, pairs: Array) -> Any:
        """The noise of the parameters of one shape for the pairs with these numbers (`parameter_noise`)."""
        return parameter_noise(specification, number, self.perturbation(seed), epoch, pairs)

    def weights(self, parameters: Layered[Array], noise: Layered[Any], seed: int) -> Weights:
        """The weights of both members of some pairs: S is [pairs, 2]; the member that adds is first."""
        return PerturbedWeights(parameters, noise, self.perturbation(seed))

    def gathered(self, specification: Specification, noise: Any, fitness: Array, largest: int) -> Array:
        """The votes of some pairs for one parameter (`votes`)."""
        return votes(specification, noise, fitness, largest)

    def read(
        self, population: "Population", chunk: int, parameters: Parameters, batch: tuple[Array, ...], states: Array,
        update: Array, first: Array,
    ) -> tuple[Array, Array]:  # fmt: skip
        """`Engine.evaluate`, `chunk` pairs at a time."""
        epoch = self.perturbation(population.seed).epoch(update)
        architecture, shared = population.architecture, stack_layers(parameters)

        def read_chunk(some: tuple[Array, Array]) -> tuple[Array, Array]:
            pairs, states = some
            drawn = map_specifications(
                lambda specification, number: self.noise(specification, number, population.seed, epoch, first + pairs),
                architecture,
            )
            weights = self.weights(shared, drawn, population.seed)
            texts = tuple(part[pairs // self.group_size][:, None] for part in batch)  # [chunk, 1, ...]
            total, states = population.objective.losses(weights, texts, jnp.moveaxis(states, 2, 0), architecture)
            return total, jnp.moveaxis(states, 0, 2)

        return map_in_chunks(read_chunk, (numbered(states), states), chunk)

    def gather(self, population: "Population", chunk: int, fitness: Array, update: Array, first: Array) -> Parameters:
        """`Engine.accumulate`, `chunk` pairs at a time."""
        epoch = self.perturbation(population.seed).epoch(update)
        gather = partial(self.gather_named, population, chunk, fitness, epoch, first)
        return unstack_layers(map_specifications(gather, population.architecture), population.architecture)

    def gather_named(
        self, population: "Population", chunk: int, fitness: Array, epoch: Array, first: Array,
        specification: Specification, numbers: Array,
    ) -> Array:  # fmt: skip
        """The votes for the parameters of one name: int32 N + their shape. numbers: uint32 N, [] or [layers]."""

        def gather(number: Array) -> Array:
            def add(total: Array, some: tuple[Array, Array]) -> Array:
                pairs, fitness = some
                drawn = self.noise(specification, number, population.seed, epoch, first + pairs)
                return total + self.gathered(specification, drawn, fitness, population.largest_fitness)

            zero = jnp.zeros(specification.shape, jnp.int32)
            return fold_in_chunks(add, zero, (numbered(fitness), fitness), chunk)

        return jax.lax.map(gather, numbers) if numbers.ndim else gather(numbers)


class Perturbation(NamedTuple):
    """The settings of the perturbations. Hashable, so that they can be static under jit."""

    seed: int
    rank: int
    sigma_shift: int
    noise_reuse: int

    def epoch(self, update: Array) -> Array:
        """The counter's first word: updates that share it share their noise. update: uint32 scalar."""
        return update // self.noise_reuse if self.noise_reuse else jnp.zeros_like(update)


class Factors(NamedTuple):
    """A matrix's noise for some pairs, standard deviation 16, at most 46. N is [] or [layers]."""

    a: Array  # int8 N + [pairs, rank, fan-out]
    b: Array  # int8 N + [pairs, rank, fan-in]


Noise = Factors | Array  # a vector's noise is int8 N + [pairs, hidden]


def _blocks(count: int) -> int:
    return -(-count // 16)


def parameter_noise(
    specification: Specification, number: Array, perturbation: Perturbation, epoch: Array, pairs: Array
) -> Noise:
    """The noise of parameters of one shape for the pairs with these numbers.

    number: uint32 N, the parameters'; N is [] or [layers]. epoch: uint32 scalar. pairs: uint32 [pairs].
    """
    words = seed_key(perturbation.seed, Domain.NOISE)
    quantile = jnp.asarray(tables().quantile)
    if len(specification.shape) == 1:
        return quantile[random_bytes(words, (epoch, pairs, number[..., None], 0), specification.shape[0])]
    fan_out, fan_in = specification.shape
    stride = _blocks(fan_in) + _blocks(fan_out)
    first = jnp.arange(perturbation.rank, dtype=jnp.uint32) * stride
    counter = (epoch, pairs[:, None], number[..., None, None])
    return Factors(
        b=quantile[random_bytes(words, (*counter, first), fan_in)],
        a=quantile[random_bytes(words, (*counter, first + _blocks(fan_in)), fan_out)],
    )


def noise(architecture: Architecture, perturbation: Perturbation, epoch: Array, pairs: Array) -> Layered[Noise]:
    """The noise of every parameter for the pairs with these numbers."""
    return map_specifications(
        lambda specification, number: parameter_noise(specification, number, perturbation, epoch, pairs),
        architecture,
    )


class PerturbedWeights:
    """The weights of both members of some pairs: S is [pairs, 2]; the member that adds is first."""

    def __init__(self, parameters: Layered[Array], noise: Layered[Noise], perturbation: Perturbation) -> None:
        self.parameters, self.noise = parameters.outer, noise.outer
        self.layers = (parameters.layers, noise.layers)
        self.seen: dict[str, Array] = {}
        self.perturbation = perturbation
        self.rank_multiplier = rank_multiplier(perturbation.rank)
        self.sigma_shift = perturbation.sigma_shift

    def layer(self, entry: tuple[dict[str, Array], dict[str, Noise]]) -> "PerturbedWeights":
        """See `Weights.layer`."""
        parameters, noise = entry
        return PerturbedWeights(Layered(parameters, {}), Layered(noise, {}), self.perturbation)

    def _factors(self, name: str) -> Factors:
        factors = self.noise[name]
        assert isinstance(factors, Factors)
        return factors

    def embed(self, tokens: Array) -> Array:
        """tokens: int32 [pairs, 2], the same for both. Returns int8 [pairs, 2, hidden]."""
        a, b = self._factors("embedding")
        tokens = tokens[:, 0]
        row = jnp.take_along_axis(a, tokens[:, None, None], axis=2)[..., 0].astype(jnp.int32)  # [pairs, rank]
        change = jnp.sum((row * self.rank_multiplier)[..., None] * b.astype(jnp.int32), axis=1)
        change = rounding_shift(change, 11 + self.sigma_shift)
        base = self.parameters["embedding"][tokens].astype(jnp.int32)
        return saturate8(jnp.stack([base + change, base - change], axis=1))

    def multiply(self, name: str, x: Array) -> Array:
        """x: int8 [pairs, 2, fan-in]. Returns int32 [pairs, 2, fan-out]."""
        a, b = self._factors(name)
        product = matrix_product(x, self.parameters[name])
        along = jnp.sum(x[:, :, None, :].astype(jnp.int32) * b[:, None].astype(jnp.int32), axis=-1)
        along = jnp.clip(along, -INPUT_PRODUCT_LIMIT, INPUT_PRODUCT_LIMIT) * self.rank_multiplier
        along = saturate16(rounding_shift(along, 11))  # [pairs, 2, rank]
        change = jnp.sum(along[..., None] * a[:, None].astype(jnp.int32), axis=2)
        change = rounding_shift(change, self.sigma_shift)
        return product + change * jnp.array([1, -1], jnp.int32)[:, None]

    def vector(self, name: str) -> Array:
        """Returns int8 [pairs, 2, hidden]."""
        z = self.noise[name]
        assert isinstance(z, jax.Array)
        change = rounding_shift(z.astype(jnp.int32), self.sigma_shift + VECTOR_SHIFT)
        base = self.parameters[name].astype(jnp.int32)
        return saturate8(jnp.stack([base + change, base - change], axis=1))


def votes(specification: Specification, noise: Noise, fitness: Array, largest: int) -> Array:
    """The votes of some pairs for one parameter: the sum over pairs of f A B^T, or of 16 f z for a vector.

    fitness: int8 [pairs], at most largest in magnitude. Returns int32 of the parameter's shape. Where the
    fitness says nothing, a vote has mean 0 and standard deviation 256 sqrt(rank * sum f^2) (rank 1 for a vector).
    """
    weight = fitness.astype(jnp.int32)
    if isinstance(noise, Factors):
        # f A fits int8 for small f, and byte products are several times faster.
        dtype = jnp.int8 if largest * LARGEST_NOISE <= MAX8 else jnp.int32
        a = (noise.a * weight[:, None, None]).astype(dtype).reshape(-1, specification.shape[0])
        b = noise.b.astype(dtype).reshape(-1, specification.shape[1])
        return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return 16 * jnp.sum(weight[:, None] * noise.astype(jnp.int32), axis=0)
