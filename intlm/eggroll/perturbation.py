"""Low-rank perturbations from the counter (EGGROLL, arXiv 2511.16652, section 4; docs/numerics.md, section 7).

Pair p's members see W + s(A B^T) and W - s(A B^T), s = 2^-sigma_shift / sqrt(rank). The sum is never formed:
x (W ± s A B^T)^T is x W^T ± s (x B) A^T. Noise is made where it is used, and made again for the votes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from intlm.arithmetic import LARGEST_NOISE
from intlm.arithmetic.fixed_point import MAX8, Array, rank_multiplier, rounding_shift, saturate8, saturate16
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key
from intlm.arithmetic.tables import tables
from intlm.model.forward import matrix_product
from intlm.model.parameters import Architecture, Kind, Layered, Specification, map_specifications

VECTOR_SHIFT = 1  # a vector's perturbation, and its step, are half a matrix's: its elements matter more
INPUT_PRODUCT_LIMIT = 1 << 23  # |x B| is held to this before its scaling, which saturates far below it


class Perturbation(NamedTuple):
    """The settings of the perturbations; hashable, so that they can be static under jit."""

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
    key = seed_key(perturbation.seed, Domain.NOISE)
    quantile = jnp.asarray(tables().quantile)
    if len(specification.shape) == 1:
        return quantile[random_bytes(key, (epoch, pairs, number[..., None], 0), specification.shape[0])]
    fan_out, fan_in = specification.shape
    stride = _blocks(fan_in) + _blocks(fan_out)
    first = jnp.arange(perturbation.rank, dtype=jnp.uint32) * stride
    counter = (epoch, pairs[:, None], number[..., None, None])
    return Factors(
        b=quantile[random_bytes(key, (*counter, first), fan_in)],
        a=quantile[random_bytes(key, (*counter, first + _blocks(fan_in)), fan_out)],
    )


def noise(architecture: Architecture, perturbation: Perturbation, epoch: Array, pairs: Array) -> Layered[Noise]:
    """The noise of every parameter for the pairs with these numbers."""
    return map_specifications(
        lambda specification, number: parameter_noise(specification, number, perturbation, epoch, pairs),
        architecture,
    )


class PerturbedWeights:
    """The weights of both members of some pairs: S is [pairs, 2], the member that adds first."""

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


def votes(specification: Specification, noise: Noise, fitness: Array, fitness_maximum: int) -> Array:
    """What some pairs' fitness says of one parameter: the sum over pairs of f A B^T, or of 16 f z for a vector.

    fitness: int8 [pairs], at most fitness_maximum in magnitude. Returns int32 of the parameter's shape. Where the
    fitness has nothing to say, a vote has mean 0 and standard deviation 256 sqrt(rank * sum f^2) (rank 1 for a vector).
    """
    weight = fitness.astype(jnp.int32)
    if isinstance(noise, Factors):
        # f A fits int8 for small f, and byte products are several times faster.
        dtype = jnp.int8 if fitness_maximum * LARGEST_NOISE <= MAX8 else jnp.int32
        a = (noise.a * weight[:, None, None]).astype(dtype).reshape(-1, specification.shape[0])
        b = noise.b.astype(dtype).reshape(-1, specification.shape[1])
        return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return 16 * jnp.sum(weight[:, None] * noise.astype(jnp.int32), axis=0)


def is_matrix(kind: Kind) -> bool:
    """Whether a parameter is perturbed by factors."""
    return kind in (Kind.MATRIX, Kind.EMBEDDING)
