"""The estimator `member` with full-rank perturbations, every element drawn by itself, to measure what low rank costs.

    intlm sweep benchmarks/learning/full-rank.toml --plugin benchmarks/learning/full_rank.py --data.train TEXT

Every member's matrices W ± round(Z 2^-sigma_shift) are stored in full, so the model must be small, and it is slow.
"""

import math
from dataclasses import dataclass
from typing import Any

from intlm.arithmetic.fixed_point import rounding_shift, saturate8
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key
from intlm.arithmetic.tables import tables
from intlm.estimators import ESTIMATORS
from intlm.estimators.member import Member
from intlm.lazy import Array, jnp
from intlm.model.parameters import VECTOR_SHIFT, Layered, Specification


@ESTIMATORS.register("full_rank")
@dataclass(frozen=True, kw_only=True)
class FullRank(Member):
    """Antithetic pairs, each with a perturbation of full rank for a whole text."""

    def noise(self, specification: Specification, number: Array, seed: int, epoch: Array, pairs: Array) -> Array:
        """int8 N + [pairs] + the parameter's shape, standard deviation 16."""
        counter = (epoch, pairs, number[..., None], 0)
        octets = random_bytes(seed_key(seed, Domain.NOISE), counter, math.prod(specification.shape))
        return jnp.asarray(tables().quantile)[octets].reshape(*octets.shape[:-1], *specification.shape)

    def weights(self, parameters: Layered[Array], noise: Layered[Any], seed: int) -> "FullRankWeights":
        """See `Member.weights`."""

        def perturb(w: Array, z: Array, axis: int) -> Array:
            vector = z.ndim - axis == 2
            change = rounding_shift(z.astype(jnp.int32), self.sigma_shift + (VECTOR_SHIFT if vector else 0))
            w = jnp.expand_dims(w.astype(jnp.int32), axis)
            return saturate8(jnp.stack([w + change, w - change], axis=axis + 1))

        outer = {name: perturb(parameters.outer[name], z, 0) for name, z in noise.outer.items()}
        layers = {name: perturb(parameters.layers[name], z, 1) for name, z in noise.layers.items()}
        return FullRankWeights(Layered(outer, layers))

    def gathered(self, specification: Specification, noise: Array, fitness: Array, largest: int) -> Array:
        """16 Σ f z for every parameter."""
        return 16 * jnp.tensordot(fitness.astype(jnp.int32), noise.astype(jnp.int32), axes=1)

    def deviations(self, population: Any, specifications: Any, chance: Array) -> dict[str, Array]:
        """Those of rank 1, which has the same variance."""
        return Member().deviations(population, specifications, chance)


class FullRankWeights:
    """`intlm.model.forward.Weights` with full matrices: by name, int8 [(layers,) pairs, 2] + its shape."""

    def __init__(self, perturbed: Layered[Array]) -> None:
        self.outer, self.layers = perturbed
        self.seen: dict[str, Array] = {}

    def layer(self, entry: dict[str, Array]) -> "FullRankWeights":
        """See `Weights`."""
        return FullRankWeights(Layered(entry, {}))

    def embed(self, tokens: Array) -> Array:
        """See `Weights`."""
        return jnp.take_along_axis(self.outer["embedding"], tokens[..., None, None], axis=2)[:, :, 0]

    def multiply(self, name: str, x: Array) -> Array:
        """See `Weights`."""
        return jnp.einsum("psi,psoi->pso", x, self.outer[name], preferred_element_type=jnp.int32)

    def vector(self, name: str) -> Array:
        """See `Weights`."""
        return self.outer[name]
