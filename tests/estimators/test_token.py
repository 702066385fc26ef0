"""The estimator `token`: parts of an update in any chunks, its sums and its bounds, against its oracle.

tests/conformance/test_golden.py holds whole updates to the oracle.
"""

from functools import cache, partial
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_token
import pytest

from intlm.arithmetic import digits
from intlm.estimators import token
from intlm.model.parameters import Architecture
from intlm.objectives.next_token import NextToken
from intlm.population import Population, make_engine

TEXTS, TOKENS = 3, 5
SHAPE = oracle.Shape(3, 8, 16, 1, "clip")


def draw(shape: oracle.Shape, targets: int) -> tuple[Any, ...]:
    """Parameters, states, tokens with separators and their targets."""
    rng = np.random.default_rng(shape.hidden + shape.vocabulary)
    tokens = rng.integers(0, shape.vocabulary, (TEXTS, TOKENS))
    tokens[0, 2] = tokens[1, 0] = tokens[2, 4] = 0
    states = rng.integers(-127, 127, (TEXTS, shape.layers, shape.hidden), endpoint=True)
    return oracle.first_values(shape, 3), states, tokens, rng.integers(0, shape.vocabulary, (TEXTS, TOKENS, targets))


@cache
def compiled(architecture: Architecture, settings: token.Settings, chunk: int) -> Any:
    """`token.evaluate`, compiled once for each of these."""
    run = partial(token.evaluate, architecture, NextToken(targets=2), settings, chunk)
    return jax.jit(run)


def evaluate(
    bridge: Any, shape: oracle.Shape, settings: token.Settings, means: tuple[int, int], drawn: tuple[Any, ...],
    update: int, chunk: int, own: slice = slice(0, TEXTS), there: list[bool] | None = None,
    voters: list[bool] | None = None,
) -> token.Evaluation:  # fmt: skip
    """`token.evaluate` of some of the texts that were drawn."""
    values, states, tokens, targets = drawn
    return compiled(bridge.architecture(shape), settings, chunk)(
        bridge.parameters(shape, values), jnp.asarray(tokens[own], jnp.uint16), jnp.asarray(targets[own], jnp.uint16),
        jnp.asarray(states[own], jnp.int8), jnp.asarray(means, jnp.int32), jnp.uint32(update), jnp.uint32(own.start),
        None if there is None else jnp.asarray(there), None if voters is None else jnp.asarray(voters),
    )  # fmt: skip


def test_parts_of_an_update_add_up(bridge: Any) -> None:
    """Two devices' texts, each numbered in the whole update, say together what one device's say, whatever the texts of
    those that do not count; and two halves of the noisy members, of all but the head, what all say."""
    shape, drawn, settings = SHAPE, draw(SHAPE, 2), token.Settings(1, TEXTS, 4)
    read = partial(evaluate, bridge, shape, settings, (30, 40), drawn, 7, 2)
    whole, parts = read(), (read(own=slice(0, 1)), read(own=slice(1, 3)))
    jax.tree.map(np.testing.assert_array_equal, whole.sums, jax.tree.map(jnp.add, parts[0].sums, parts[1].sums))
    np.testing.assert_array_equal(whole.states, np.concatenate([part.states for part in parts]))
    some = read(there=[True, False, False])
    jax.tree.map(np.testing.assert_array_equal, some.sums, parts[0].sums)
    np.testing.assert_array_equal(some.losses, [parts[0].losses[0], 0, 0])
    halves = [read(voters=voters).sums.votes for voters in ([True, True, False, False], [False, False, True, True])]
    for name, vote in whole.sums.votes.items():
        expected = vote if name != "head" else 2 * vote
        np.testing.assert_array_equal(halves[0][name] + halves[1][name], expected, err_msg=name)


def test_sums_of_digits() -> None:
    """The largest values that an update can add up, and all sizes below."""
    largest = (2**7 - 1) * digits.MOST_TERMS
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
    for divisor in (1, 3 * 2**24, 127 * digits.MOST_TERMS):
        fits = [value // divisor < 2**31 for value in exact]
        found = digits.quotient(jnp.asarray(sums[:, fits], jnp.int32), divisor)
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


def test_states_start_again(bridge: Any) -> None:
    """Text 3 + i of update 5 starts with states of 0 where `reset_updates` divides 8 + i; the others go on."""
    values, states, tokens, targets = draw(SHAPE, 2)
    batch = (jnp.asarray(tokens, jnp.uint16), jnp.asarray(targets, jnp.uint16))

    def read(kept: np.ndarray, reset_updates: int) -> Any:
        estimator = token.Token(members=2, reset_updates=reset_updates)
        population = Population(bridge.architecture(SHAPE), estimator, 18, 1, NextToken(targets=2), tokens=TOKENS)
        given = (bridge.parameters(SHAPE, values), batch, jnp.asarray(kept, jnp.int8), jnp.ones(2, jnp.int32))
        return estimator.evaluate(make_engine("auto", population), *given, jnp.uint32(5), jnp.uint32(3))

    assert np.all(np.any(states, axis=(1, 2)))
    for reset_updates, again in ((3, [1]), (2, [0, 2]), (11, [])):
        zeroed = states.copy()
        zeroed[again] = 0
        jax.tree.map(np.testing.assert_array_equal, read(states, reset_updates), read(zeroed, 0))
