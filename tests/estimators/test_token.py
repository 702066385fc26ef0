"""The estimator `token` against its oracle: layers, nonlinearities, separators, and any chunk; then its bounds."""

from functools import partial
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_token
import pytest
import tiny

from intlm.estimators import token
from intlm.model.parameters import specifications

TEXTS, TOKENS = 3, 5
SHAPES = [oracle.Shape(3, 8, 16, 1, "clip"), oracle.Shape(131, 8, 8, 2, "table"), oracle.Shape(5, 16, 8, 2, "clip")]


def draw(shape: oracle.Shape, targets: int) -> tuple[Any, ...]:
    """Parameters, states, tokens with separators and their targets."""
    rng = np.random.default_rng(shape.hidden + shape.vocabulary)
    tokens = rng.integers(0, shape.vocabulary, (TEXTS, TOKENS))
    tokens[0, 2] = tokens[1, 0] = tokens[2, 4] = 0
    states = rng.integers(-127, 127, (TEXTS, shape.layers, shape.hidden), endpoint=True)
    return oracle.first_values(shape, 3), states, tokens, rng.integers(0, shape.vocabulary, (TEXTS, TOKENS, targets))


@pytest.mark.parametrize(
    ("shape", "members", "sigma", "credit", "means", "chunks"),
    [
        (SHAPES[0], 3, 3, 4, (1, 1), (1, 2, 3)),
        (SHAPES[1], 2, 0, 7, (40, 90), (2,)),
        (SHAPES[2], 1, 6, 6, (9, 11), (3,)),
    ],
)
def test_an_update(
    shape: oracle.Shape, members: int, sigma: int, credit: int, means: tuple[int, int], chunks: tuple[int, ...],
    bridge: Any,
) -> None:  # fmt: skip
    values, states, tokens, targets = draw(shape, 2)
    update, seed = 2**32 - 1, 2**63 + 5
    expected = oracle_token.evaluate(
        shape, oracle_token.Settings(seed, TEXTS, members, sigma, credit), update, values, states, means, tokens, targets
    )
    assert any(np.any(vote) for vote in expected.votes)
    architecture, settings = bridge.architecture(shape), token.Token(seed, TEXTS, members, sigma, credit=credit)
    for chunk in chunks:
        run = jax.jit(
            partial(token.evaluate, architecture, settings, chunk=chunk), compiler_options=tiny.quick_options()
        )
        found = run(
            bridge.parameters(shape, values), jnp.asarray(states, jnp.int8), jnp.asarray(means, jnp.int32),
            jnp.asarray(tokens, jnp.uint16), jnp.asarray(targets, jnp.uint16), jnp.uint32(update), jnp.uint32(0),
        )  # fmt: skip
        np.testing.assert_array_equal(found.losses, expected.losses)
        np.testing.assert_array_equal(found.states, expected.states)
        bridge.assert_equal(shape, found.told.votes, expected.votes)
        np.testing.assert_array_equal(token.means(found.told.sizes, settings, TOKENS), expected.means)
        for s, deviations, z in zip(
            specifications(architecture), expected.deviations, expected.standardised, strict=True
        ):
            deviation = token.deviation(found.told.chance[s.name])
            np.testing.assert_array_equal(deviation, deviations, err_msg=s.name)
            standardised = token.standardised(found.told.votes[s.name], token.broadcast(s.name, deviation))
            np.testing.assert_array_equal(standardised, z, err_msg=s.name)


def test_parts_of_an_update_add_up(bridge: Any) -> None:
    """Two devices' texts, each numbered in the whole update, say together what one device's say."""
    shape = SHAPES[0]
    values, states, tokens, targets = draw(shape, 1)
    architecture, settings = bridge.architecture(shape), token.Token(1, TEXTS, 2, 3)

    def evaluate(first: int, last: int) -> token.Evaluation:
        own = slice(first, last)
        return token.evaluate(
            architecture, settings, bridge.parameters(shape, values), jnp.asarray(states[own], jnp.int8),
            jnp.asarray([30, 40]), jnp.asarray(tokens[own], jnp.uint16), jnp.asarray(targets[own], jnp.uint16),
            jnp.uint32(7), jnp.uint32(first), 2,
        )  # fmt: skip

    whole, parts = evaluate(0, 3), (evaluate(0, 1), evaluate(1, 3))
    added = jax.tree.map(jnp.add, parts[0].told, parts[1].told)
    jax.tree.map(np.testing.assert_array_equal, whole.told, added)
    np.testing.assert_array_equal(whole.states, np.concatenate([part.states for part in parts]))


def test_halves_add_up(bridge: Any) -> None:
    """What two halves of the noisy members vote is together what all vote: `heard` is exact."""
    shape = SHAPES[0]
    values, states, tokens, targets = draw(shape, 1)
    settings = token.Token(1, TEXTS, 4, 3)

    def votes(heard: list[bool]) -> Any:
        return token.evaluate(
            bridge.architecture(shape), settings, bridge.parameters(shape, values), jnp.asarray(states, jnp.int8),
            jnp.asarray([30, 40]), jnp.asarray(tokens, jnp.uint16), jnp.asarray(targets, jnp.uint16), jnp.uint32(7),
            jnp.uint32(0), 3, jnp.asarray(heard),
        ).told.votes  # fmt: skip

    halves = votes([True, True, False, False]), votes([False, False, True, True])
    jax.tree.map(np.testing.assert_array_equal, votes([True] * 4), jax.tree.map(jnp.add, *halves))


def test_sums_of_digits() -> None:
    """The largest values that an update can add up, and all sizes below."""
    largest = (2**7 - 1) * token.MOST_TEXT_TOKENS
    rng = np.random.default_rng(0)
    sums = np.concatenate(
        [
            np.full((4, 1), largest),
            *(rng.integers(0, largest >> down, (4, 20), endpoint=True) for down in range(31)),
            [[0], [0], [0], [1]] * rng.integers(0, largest, 50),
        ],
        axis=1,
    )
    exact = [sum(int(s) << 7 * k for k, s in enumerate(column)) for column in sums.T]
    assert max(exact) < 2**52
    for shift in (0, 7):
        expected = [oracle_token.deviation(value, shift) for value in exact]
        np.testing.assert_array_equal(token.deviation(jnp.asarray(sums, jnp.int32), shift), expected)
    assert all(abs(oracle_token.deviation(v, 0) - isqrt(v)) <= v**0.5 / 2**14 for v in exact if v)
    for divisor in (1, 3 * 2**24, 127 * token.MOST_TEXT_TOKENS):
        fits = [value // divisor < 2**31 for value in exact]
        found = token.quotient(jnp.asarray(sums[:, fits], jnp.int32), divisor)
        np.testing.assert_array_equal(found, [v // divisor for v, fit in zip(exact, fits, strict=True) if fit])


def test_standardised() -> None:
    rng = np.random.default_rng(0)
    deviations = np.concatenate([[1, 2, 2**16 - 1, 2**16, 2**26 - 1], rng.integers(1, 1 << rng.integers(1, 27, 300))])
    votes = rng.integers(-(1 << 31) + 1, 1 << 31, deviations.size) >> rng.integers(0, 31, deviations.size)
    found = token.standardised(jnp.asarray(votes, jnp.int32), jnp.asarray(deviations, jnp.int32))
    pairs = zip(votes.tolist(), deviations.tolist(), strict=True)
    np.testing.assert_array_equal(found, [oracle_token.standardised(*pair) for pair in pairs])


def test_votes_of_many_text_tokens() -> None:
    """The shift is the oracle's, and with it no configuration within the limits passes int32; without it some do."""
    for texts, tokens in ((1, 32_768), (4, 32_768), (5, 32_768), (4161, 32), (2**19, 32), (2**9, 2**15)):
        shift = token.vote_shift(texts, tokens)
        assert shift == oracle_token.vote_shift(texts, tokens)
        text = (tokens * 127**2 + (1 << shift >> 1)) >> shift
        assert texts * text < 2**31
        assert shift == 0 or texts * ((tokens * 127**2 + (1 << shift - 1 >> 1)) >> shift - 1) >= 2**31


@pytest.mark.parametrize("shift", [0, 3])
def test_matrix_votes(shift: int) -> None:
    rng = np.random.default_rng(shift)
    y, x = (rng.integers(-127, 127, (4, 3, size), endpoint=True) for size in (5, 6))
    expected = sum(oracle.rshift(np.einsum("to,tk->ok", y[:, i], x[:, i]), shift) for i in range(3))
    found = token.matrix_votes(jnp.asarray(y, jnp.int8), jnp.asarray(x, jnp.int8), shift)
    np.testing.assert_array_equal(found, expected)
