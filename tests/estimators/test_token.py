"""The estimator `token` against its oracle: layers, nonlinearities, separators, and any chunk; then its bounds."""

from functools import cache, partial
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_token
import pytest
import tiny

from intlm.arithmetic import digits
from intlm.estimators import token
from intlm.model.parameters import Architecture, specifications
from intlm.objectives.next_token import NextToken

TEXTS, TOKENS = 3, 5
SHAPES = [oracle.Shape(3, 8, 16, 1, "clip"), oracle.Shape(131, 8, 8, 2, "table"), oracle.Shape(5, 16, 8, 2, "clip")]


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
    return jax.jit(run, compiler_options=tiny.quick_options())


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


@pytest.mark.parametrize(
    ("shape", "members", "sigmas", "credit", "means", "chunk"),
    [
        (SHAPES[0], 3, (4, 1, 2, 3, 4), 4, (1, 1), 3),
        (SHAPES[1], 2, (0, 8, 1, 2, 3), 7, (40, 90), 2),
        (SHAPES[2], 1, (6, 5, 4, 3, 2), 6, (9, 11), 1),
    ],
)
def test_an_update(
    shape: oracle.Shape, members: int, sigmas: tuple[int, ...], credit: int, means: tuple[int, int], chunk: int,
    bridge: Any,
) -> None:  # fmt: skip
    drawn = draw(shape, 2)
    update, seed = 2**32 - 1, 2**63 + 5
    expected = oracle_token.evaluate(
        shape, oracle_token.Settings(seed, TEXTS, members, sigmas, credit), update, *drawn[:2], means, *drawn[2:]
    )
    assert any(np.any(vote) for vote in expected.votes)
    settings = token.Settings(seed, TEXTS, members, sigmas, credit)
    found = evaluate(bridge, shape, settings, means, drawn, update, chunk)
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(found.states, expected.states)
    bridge.assert_equal(shape, found.sums.votes, expected.votes)
    np.testing.assert_array_equal(token.means(found.sums.sizes, settings, TOKENS), expected.means)
    described = specifications(bridge.architecture(shape))
    for s, deviations, z in zip(described, expected.deviations, expected.standardised, strict=True):
        deviation = token.deviation(found.sums.chance[s.name])
        np.testing.assert_array_equal(deviation, deviations, err_msg=s.name)
        along = deviation[:, None] if s.name == "embedding" else deviation
        standardised = token.standardised(found.sums.votes[s.name], along)
        np.testing.assert_array_equal(standardised, z, err_msg=s.name)


def test_parts_of_an_update_add_up(bridge: Any) -> None:
    """Two devices' texts, each numbered in the whole update, say together what one device's say, whatever the texts of
    those that do not count; and two halves of the noisy members, of all but the head, what all say."""
    shape, drawn, settings = SHAPES[0], draw(SHAPES[0], 1), token.Settings(1, TEXTS, 4)
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
