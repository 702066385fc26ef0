"""Fitness against the oracle and against exact rational arithmetic, up to the largest population and losses."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm import config
from intlm.arithmetic import LARGEST_NOISE
from intlm.estimators.member import MAX_PAIRS
from intlm.fitness import FITNESS, largest_fitness

LARGEST_LOSS = 32_768 * 36_865  # of a text
LOSS = st.one_of(st.integers(0, LARGEST_LOSS), st.integers(0, 1000), st.just(0))
LOSSES = st.sampled_from([1, 7]).flatmap(lambda p: st.lists(LOSS, min_size=2 * p, max_size=2 * p))
RANKS = st.sampled_from([1, 256])


@partial(jax.jit, static_argnums=(0, 2))
def compiled(kind: str, losses: jax.Array, rank: int) -> jax.Array:
    """The fitness of a whole population."""
    shaping = FITNESS[kind]()
    return shaping.shape(losses, rank, losses.shape[0], shaping.totals(losses))


def package(kind: str, losses: list[int], rank: int) -> list[int]:
    """The package's fitness of members 0, 1, 2, …"""
    result = compiled(kind, np.array(losses, np.int32).reshape(-1, 2), rank)
    assert result.dtype == jnp.int8
    return result.tolist()


@given(LOSSES, RANKS)
def test_against_the_oracle(losses: list[int], rank: int) -> None:
    for kind in ("sign", "normalised"):
        assert package(kind, losses, rank) == oracle.fitness(kind, losses, rank)


@given(LOSSES)
def test_sign_is_positive_where_adding_was_better(losses: list[int]) -> None:
    expected = [(a < b) - (a > b) for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert package("sign", losses, 1) == expected


@given(LOSSES, RANKS)
def test_exchanging_the_members_negates(losses: list[int], rank: int) -> None:
    exchanged = [loss for p in range(0, len(losses), 2) for loss in (losses[p + 1], losses[p])]
    for kind in ("sign", "normalised"):
        assert package(kind, exchanged, rank) == [-f for f in package(kind, losses, rank)]


@given(LOSSES, RANKS)
def test_normalised_is_the_rounded_quotient(losses: list[int], rank: int) -> None:
    d = [b - a for a, b in zip(losses[::2], losses[1::2], strict=True)]
    d = [max(-(2**23) + 1, min(2**23 - 1, x)) for x in d]
    mean = max(1, sum(map(abs, d)) // len(d))
    largest = largest_fitness(len(d), rank)
    for x, f in zip(d, package("normalised", losses, rank), strict=True):
        wanted = min(Fraction(largest), Fraction(abs(x) * largest, 4 * mean))
        assert abs(abs(f) - wanted) <= Fraction(1, 2) and f * x >= 0


def test_all_pairs_alike_reach_a_quarter() -> None:
    assert package("normalised", [0, 0] * 7, 1) == [0] * 7
    assert package("normalised", [5, 6] * 7, 1) == [32] * 7  # 127/4, rounded


@pytest.mark.parametrize("pairs", [2**16 + 2, 2**19])
def test_the_largest_populations(pairs: int) -> None:
    """The largest populations, with every difference at the limit: the two limbs of their sum are at their fullest."""
    losses = np.zeros((pairs, 2), np.int32)
    losses[:, 1] = LARGEST_LOSS
    assert set(compiled("sign", losses, 1).tolist()) == {1}
    largest = largest_fitness(pairs, 1)
    assert set(compiled("normalised", losses, 1).tolist()) == {(largest + 2) // 4}
    losses[: pairs // 2, 1] = 4095  # low limbs alone, and a mean that is no power of two
    losses[5::7, 1] = 123_456
    kinds, inverse = np.unique(losses[:, 1], return_inverse=True)
    mean = int(np.minimum(losses[:, 1].astype(np.int64), 2**23 - 1).sum()) // pairs
    expected = [min(largest, (min(int(d), 2**23 - 1) * largest + 2 * mean) // (4 * mean)) for d in kinds]
    np.testing.assert_array_equal(compiled("normalised", losses, 1), np.array(expected)[inverse])


def test_largest_fitness() -> None:
    """In every valid configuration it is above 0, equals the oracle's, and keeps all votes within int32."""
    for pairs in [*range(1, 3000), *(2**k for k in range(12, 20)), 3 * 2**17, 2**19]:
        for rank in (1, 2, 3, 5, 16, 256):
            if pairs * rank * 46**2 > config.INT32_MAX:  # configuration refuses it
                assert largest_fitness(pairs, rank) == 0
                continue
            largest = largest_fitness(pairs, rank)
            assert 1 <= largest == oracle.fitness_bound(pairs, rank) <= 127
            assert pairs * rank * largest * 46**2 < 2**31 and 16 * 46 * pairs * largest < 2**31
            assert rank * pairs * largest**2 <= 128_900_000  # the update's sum of squares
    assert largest_fitness(2**16, 1) == 15  # the bound that docs/numerics.md exists for


def test_limits_are_those_of_the_page() -> None:
    """docs/numerics.md has the same limits, at the beginning of section 11, and in sections 9 and 11 for the others."""
    assert (MAX_PAIRS, config.MAX_TOKENS_PER_UPDATE) == (2**19, 32_768)
    assert (config.MIN_VOCAB, config.MAX_VOCAB, LARGEST_NOISE) == (2, 65_536, 46)
    highest = {name: key.field.metadata["high"] for name, key in config.keys().items() if not key.family}
    assert highest["model.hidden_size"] == highest["model.feed_forward_size"] == 65_536
    assert highest["eggroll.member.rank"] == 256 and highest["eggroll.member.sigma_shift"] == 12
    assert highest["eggroll.threshold.alpha"] == 16 and highest["next_token.targets"] == 1024
    optimizer = {"momentum": 10, "step": 512, "weight_decay": 255}
    for name in ("momentum", "adam"):
        assert {setting: highest[f"eggroll.{name}.{setting}"] for setting in optimizer} == optimizer
