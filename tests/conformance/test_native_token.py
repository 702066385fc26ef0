"""The native engine's `evaluate_tokens` on each of this processor's instruction sets, against the reference, bit for
bit."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import here, parameters_of

from intlm.estimators.token import Evaluation, Token
from intlm.model.parameters import Architecture
from intlm.population import native
from intlm.population.engine import Population
from intlm.population.xla import XlaEngine

pytestmark = pytest.mark.skipif(not native.available(), reason="installed without a C++ compiler")


def exact(digits: Any) -> np.ndarray:
    """The values of sums of digits: [4] + S to int64 S."""
    return np.tensordot(2 ** (7 * np.arange(4)), np.asarray(digits, np.int64), (0, 0))


def assert_equal(found: Evaluation, expected: Evaluation, where: str) -> None:
    """Compares two evaluations, sums of digits by their value."""
    np.testing.assert_array_equal(found.losses, expected.losses, where)
    np.testing.assert_array_equal(found.states, expected.states, where)
    np.testing.assert_array_equal(exact(found.sums.sizes.T), exact(expected.sums.sizes.T), where)
    for name, votes in expected.sums.votes.items():
        np.testing.assert_array_equal(found.sums.votes[name], votes, f"{where} {name}")
        values = (exact(evaluation.sums.chance[name]) for evaluation in (found, expected))
        np.testing.assert_array_equal(*values, f"{where} chance of {name}")


# architecture, members, texts, tokens, targets, weights, texts of the update, threads, seed
SHAPES: list[tuple[Architecture, int, int, int, int, str, int, int, int]] = [
    (Architecture(300, 8, 1, 8, "clip"), 127, 2, 1, 4, "any", 2, 1, 2**64 - 1),
    # More texts than a tile has, the last tile not full; the votes of a text are shifted by 6.
    (Architecture(84, 48, 1, 96, "clip"), 8, 19, 7, 1, "normal", 2**19, 2, 2**63 + 5),
    (Architecture(2, 40, 3, 24, "table"), 4, 16, 5, 4, "ends", 16, 3, 7),
    (Architecture(131, 88, 2, 56, "table"), 1, 37, 6, 1, "any", 37, 1, 0),
    # Texts longer than a tile of several, and products that come near the ends of int32.
    (Architecture(3, 8, 1, 8, "clip"), 1, 3, 4100, 1, "ends", 4000, 2, 9),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: tuple[Architecture, int, int, int, int, str, int, int, int]) -> None:
    """Odd remainders of tiles, blocks and lanes; extreme weights; separators; members that do not vote, and a text that
    does not count: the other texts' results are as without it."""
    architecture, members, texts, tokens, targets, kind, all_texts, threads, seed = shape
    rng = np.random.default_rng(members)
    estimator = Token(members=members, credit=members % 8, sigma_shift=members % 5)
    population = Population(
        architecture, estimator, all_texts * (1 + members), seed, chunk_size=16 * (1 + members), threads=threads,
        tokens=tokens,
    )  # fmt: skip
    reference, engine = XlaEngine(population), native.NativeEngine(population)
    read = rng.integers(0, architecture.vocab_size, (texts, tokens))
    read[rng.random(read.shape) < 0.1] = 0
    states = rng.integers(-127, 128, (texts, architecture.num_layers, architecture.hidden_size))
    given = {
        "tokens": jnp.asarray(read, jnp.uint16),
        "targets": jnp.asarray(rng.integers(0, architecture.vocab_size, (texts, tokens, targets)), jnp.uint16),
        "states": jnp.asarray(states, jnp.int8),
    }
    common = {
        "parameters": parameters_of(architecture, rng, kind),
        "means": jnp.asarray(rng.integers(1, 3000, 2), jnp.int32),
        "update": jnp.uint32(rng.integers(0, 2**32)),
        "first": jnp.uint32(rng.integers(0, 2**18)),
    }
    voters = jnp.asarray(rng.random(members) < 0.7)
    jit = jax.jit
    voting = jit(partial(reference.evaluate_tokens, **common))
    expected = [voting(**given, voters=some) for some in (jnp.ones(members, bool), voters)]
    # The same texts, and one behind them that does not count.
    more = {name: jnp.concatenate([values, values[:1]]) for name, values in given.items()}
    evaluate = jit(partial(engine.evaluate_tokens, **common))
    there = jnp.arange(texts + 1) < texts
    with pytest.MonkeyPatch.context() as patch:
        for name in here():
            patch.setenv("INTLM_ISA", name)
            assert_equal(evaluate(**given), expected[0], name)
            found = evaluate(**more, there=there, voters=voters)
            assert found.losses[-1] == 0
            assert_equal(
                found._replace(losses=found.losses[:-1], states=found.states[:-1]), expected[1], f"{name}, some"
            )


def test_hostile_shapes_are_refused() -> None:
    """Wrong shapes and settings are refused at the boundary, before a kernel reads anything."""
    architecture, estimator = Architecture(16, 8, 1, 8, "clip"), Token(members=3)
    parameters = parameters_of(architecture, np.random.default_rng(0), "any")
    given = {
        "tokens": jnp.zeros((2, 3), jnp.uint16),
        "targets": jnp.zeros((2, 3, 4), jnp.uint16),
        "states": jnp.zeros((2, 1, 8), jnp.int8),
        "means": jnp.ones(2, jnp.int32),
        "voters": jnp.ones(3, bool),
    }

    def evaluate(estimator: Token = estimator, texts: int = 2, **wrong: jax.Array) -> None:
        call = native.NativeEngine(Population(architecture, estimator, 4 * texts)).evaluate_tokens
        jax.block_until_ready(call(parameters, **{**given, **wrong}, update=jnp.uint32(0), first=jnp.uint32(0)))

    evaluate()
    for name in ("tokens", "targets"):
        with pytest.raises(Exception, match="a token is outside the vocabulary"):
            evaluate(**{name: given[name].at[-1].set(16)})
    for name, values in given.items():
        with pytest.raises(Exception, match="shape does not fit"):
            evaluate(**{name: values[1:]})
    with pytest.raises(Exception, match="shape does not fit"):
        evaluate(targets=given["targets"][..., :3])
    with pytest.raises(Exception, match="sigma_embedding = 9: expected 0 to 8"):
        evaluate(replace(estimator, sigma_shift=5))
    with pytest.raises(Exception, match="credit = 8: expected 0 to 7"):
        evaluate(replace(estimator, credit=8))
    with pytest.raises(Exception, match="texts = 524289: expected 1 to 524288"):
        evaluate(texts=2**19 + 1)
    with pytest.raises(Exception, match="means = 0: expected 1 to 294920"):
        evaluate(means=jnp.zeros(2, jnp.int32))
    longer = {"tokens": jnp.zeros((2, 33), jnp.uint16), "targets": jnp.zeros((2, 33, 4), jnp.uint16)}
    with pytest.raises(Exception, match="expected 1 to 16777216"):
        evaluate(texts=2**19, **longer)
