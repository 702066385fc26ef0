"""Noise, perturbed weights and votes against the oracle, also at the extremes, where accumulators nearly overflow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from intlm.arithmetic.fixed_point import Array
from intlm.estimators.member import Factors, Noise, Perturbation, PerturbedWeights, parameter_noise, votes
from intlm.model.parameters import Kind, Layered, Specification

SEED = 2**63 + 11
# Rank, sigma shift and a matrix's shape: ranks 1 to 5, both ends of sigma, sizes that fill no block of 16.
CASES = [(1, 0, 2, 8), (2, 4, 3, 24), (3, 12, 257, 40), (4, 1, 17, 104), (5, 3, 40, 24)]
PAIRS = [0, 1, 700, 2**19 - 1]
EPOCH = 2**31 - 2
NUMBERS = [0, 1, 631]  # of the embedding, a vector and a matrix
TOKEN = 1


def perturbed(w: Array, noise: Noise, perturbation: Perturbation) -> PerturbedWeights:
    """One parameter, called "w" (an embedding has its own name), as the members of some pairs see it."""
    both = {"w": w, "embedding": w}, dict.fromkeys(("w", "embedding"), noise)
    return PerturbedWeights(Layered(both[0], {}), Layered(both[1], {}), perturbation)


def matrix(fan_out: int, fan_in: int) -> Specification:
    """A matrix: a parameter that is multiplied."""
    return Specification("w", (fan_out, fan_in), Kind.MATRIX)


def vector(size: int) -> Specification:
    """A vector: a parameter that is added."""
    return Specification("w", (size,), Kind.BIAS)


class Case:
    """An embedding, a vector and a matrix in both implementations."""

    def __init__(self, rank: int, sigma: int, fan_out: int, fan_in: int, bridge: Any) -> None:
        rng = np.random.default_rng(rank)
        self.setting = oracle.Noise(SEED, rank, sigma, 1)
        self.perturbation = bridge.perturbation(self.setting)
        embedding = Specification("embedding", (fan_out, fan_in), Kind.EMBEDDING)
        self.described = [embedding, vector(fan_in), matrix(fan_out, fan_in)]
        self.values = [rng.integers(-127, 127, s.shape, endpoint=True) for s in self.described]
        self.x = rng.integers(-127, 127, (len(PAIRS), 2, fan_in), endpoint=True)
        self.x[0] = 127
        self.x[1, 1] = self.x[1, 0]
        self.draw = jax.jit(self._draw)
        self.drawn = self.draw(jnp.array(PAIRS, jnp.uint32))
        self.seen = jax.jit(self._seen)(
            [jnp.asarray(v, jnp.int8) for v in self.values], self.drawn, jnp.asarray(self.x, jnp.int8)
        )

    def _draw(self, pairs: Array) -> list[Noise]:
        epoch = jnp.uint32(EPOCH)
        return [
            parameter_noise(s, jnp.uint32(n), self.perturbation, epoch, pairs)
            for s, n in zip(self.described, NUMBERS, strict=True)
        ]

    def _seen(self, values: list[Array], drawn: list[Noise], x: Array) -> tuple[Array, Array, Array]:
        w = [perturbed(v, n, self.perturbation) for v, n in zip(values, drawn, strict=True)]
        return w[0].embed(jnp.full((len(PAIRS), 2), TOKEN, jnp.int32)), w[1].vector("w"), w[2].multiply("w", x)

    def member(self, pair: int, second: int) -> oracle.Member:
        """The oracle's member: with a noise_reuse of 1 the update is the epoch."""
        values: oracle.Parameters = [np.zeros(0, np.int64)] * (NUMBERS[-1] + 1)
        for number, value in zip(NUMBERS, self.values, strict=True):
            values[number] = value
        return oracle.Member(values, self.setting, EPOCH, 2 * pair + second)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest, bridge: Any) -> Case:
    """A case; all its tests share its compiled programs."""
    return Case(*request.param, bridge)


def test_noise(case: Case) -> None:
    for number, value, drawn in zip(NUMBERS, case.values, case.drawn, strict=True):
        for j, pair in enumerate(PAIRS):
            stream = (EPOCH, pair, number)
            if isinstance(drawn, Factors):
                a, b = oracle.noise_factors(case.setting, stream, value.shape)
                np.testing.assert_array_equal(drawn.a[j], a)
                np.testing.assert_array_equal(drawn.b[j], b)
            else:
                np.testing.assert_array_equal(drawn[j], oracle.noise_vector(case.setting, stream, value.size))


def test_noise_does_not_depend_on_the_company(case: Case) -> None:
    """Some pairs, in another order, draw the same noise as when all pairs are drawn."""
    drawn = case.draw(jnp.array(PAIRS[::-1], jnp.uint32))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[::-1]), drawn, case.drawn)


@pytest.mark.parametrize(("reuse", "expected"), [(0, [0, 0, 0]), (1, [0, 5, 2**32 - 1]), (3, [0, 1, (2**32 - 1) // 3])])
def test_epoch(reuse: int, expected: list[int], bridge: Any) -> None:
    perturbation = bridge.perturbation(oracle.Noise(1, 1, 4, reuse))
    epochs = [perturbation.epoch(jnp.uint32(update)) for update in (0, 5, 2**32 - 1)]
    assert [int(e) for e in epochs] == expected and all(e.dtype == jnp.uint32 for e in epochs)
    assert [oracle.epoch(oracle.Noise(1, 1, 4, reuse), update) for update in (0, 5, 2**32 - 1)] == expected


def test_what_members_see(case: Case) -> None:
    embedded, summed, multiplied = case.seen
    assert (embedded.dtype, summed.dtype, multiplied.dtype) == (jnp.int8, jnp.int8, jnp.int32)
    for j, pair in enumerate(PAIRS):
        for second in (0, 1):
            member = case.member(pair, second)
            np.testing.assert_array_equal(embedded[j, second], member.embed(TOKEN))
            np.testing.assert_array_equal(summed[j, second], member.vector(NUMBERS[1]))
            np.testing.assert_array_equal(multiplied[j, second], member.product(NUMBERS[2], case.x[j, second]))


def test_pairs_are_antithetic(case: Case) -> None:
    """With the same input the two members' changes are exactly opposite, to the last bit."""
    embedded, summed, multiplied = (np.asarray(seen).astype(np.int64) for seen in case.seen)
    w = case.values[2] @ case.x[1, 0]
    np.testing.assert_array_equal(multiplied[1, 0] - w, w - multiplied[1, 1])
    for base, seen in ((case.values[0][TOKEN], embedded), (case.values[1], summed)):
        free = (np.abs(seen) < 127).all(axis=(0, 1))  # where nothing was saturated
        assert free.any()
        np.testing.assert_array_equal((seen[:, 0] - base)[:, free], (base - seen[:, 1])[:, free])


class Given(oracle.Member):
    """The oracle's member with given noise, such as no generator would draw."""

    def __init__(self, w: oracle.Array, a: oracle.Array, b: oracle.Array, rank: int, sigma: int, sign: int) -> None:
        super().__init__([w], oracle.Noise(0, rank, sigma), 0, 0)
        self.sign, self.given = sign, (a, b)

    def factors(self, n: int) -> tuple[oracle.Array, oracle.Array]:
        return self.given


@pytest.mark.parametrize("rank", [1, 256])
def test_nothing_overflows_where_all_is_largest(rank: int, bridge: Any) -> None:
    """The largest fan-in, inputs, weights and noise that a configuration can have, all of one sign or of both."""
    fan_in = 65536
    perturbation = bridge.perturbation(oracle.Noise(0, rank, 0))

    @jax.jit
    def multiply(w: Array, x: Array, a: Array, b: Array) -> Array:
        return perturbed(w, Factors(a[None], b[None]), perturbation).multiply("w", jnp.stack([x, x])[None])

    for w, x, a, b in [(127, 127, 46, 46), (127, -127, 46, 46), (-127, 127, -46, 46)]:
        wide = [np.full(size, v, np.int64) for size, v in (((2, fan_in), w), (fan_in, x), ((rank, 2), a))]
        wide.append(np.full((rank, fan_in), b, np.int64))
        wide[3][rank // 2 :, ::3] *= -1  # x·B of half the components is a third as large
        expected = [Given(wide[0], wide[2], wide[3], rank, 0, sign).product(0, wide[1]) for sign in (1, -1)]
        products = multiply(*(jnp.asarray(v, jnp.int8) for v in wide))
        np.testing.assert_array_equal(products[0], np.stack(expected))


@pytest.mark.parametrize("rank", [1, 256])
def test_the_clamp_is_never_seen(rank: int, bridge: Any) -> None:
    """x·B on both sides of 2^23, at the rank whose scale is largest and at the one whose scale is smallest."""
    size = 5736
    perturbation = bridge.perturbation(oracle.Noise(0, rank, 0))

    @jax.jit
    def multiply(x: Array) -> Array:
        factors = Factors(jnp.ones((1, rank, 8), jnp.int8), jnp.full((1, rank, size), 46, jnp.int8))
        return perturbed(jnp.zeros((8, size), jnp.int8), factors, perturbation).multiply("w", x)

    for count in (8, 1428, 1436, 1440, size):  # 127·46·1436 is the first beyond
        products = multiply(jnp.zeros((1, 2, size), jnp.int8).at[..., :count].set(127))
        along = min(32767, (127 * 46 * count * oracle.rank_scale(rank) + 2**10) >> 11)  # in Python: no clamp at all
        assert products.ravel().tolist() == [rank * along] * 8 + [-rank * along] * 8


@pytest.mark.parametrize("largest", [2, 3])
def test_votes(case: Case, largest: int) -> None:
    """Votes equal sums of the noise above, computed here; f A fits int8 in the first two cases."""
    scores = np.array([largest, -largest, 1, 0])
    for specification, drawn in zip(case.described, case.drawn, strict=True):
        result = votes(specification, drawn, jnp.asarray(scores, jnp.int8), largest)
        assert result.dtype == jnp.int32
        wide = jax.tree.map(lambda x: np.asarray(x).astype(np.int64), drawn)
        if isinstance(wide, Factors):
            expected = np.einsum("p,pko,pki->oi", scores, *wide)
        else:
            expected = 16 * scores @ wide
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("rank", "largest"), [(1, 1), (2, 2), (1, 127)])
def test_votes_where_all_is_largest(rank: int, largest: int) -> None:
    """Every pair, component and factor has the same sign: no int8 product may be clipped."""
    pairs = 4
    factors = Factors(jnp.full((pairs, rank, 8), -46, jnp.int8), jnp.full((pairs, rank, 24), 46, jnp.int8))
    score = jnp.full(pairs, largest, jnp.int8)
    result = votes(matrix(8, 24), factors, score, largest)
    assert set(np.asarray(result).ravel().tolist()) == {-pairs * rank * largest * 46**2}
    result = votes(vector(24), jnp.full((pairs, 24), -46, jnp.int8), score, largest)
    assert set(np.asarray(result).ravel().tolist()) == {-16 * pairs * largest * 46}
