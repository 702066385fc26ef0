"""The native engine's `evaluate_tokens` on each of this processor's instruction sets, against the reference, bit for
bit."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import here, parameters_of

from intlm.estimators import token
from intlm.model.parameters import Architecture
from intlm.objectives.next_token import NextToken
from intlm.population import native
from intlm.population.engine import Population

pytestmark = pytest.mark.skipif(not native.available(), reason="installed without a C++ compiler")


@dataclass(frozen=True)
class Given:
    """Stands for the estimator in a population: it has these settings."""

    own: token.Settings

    def settings(self, population: Population) -> token.Settings:
        return self.own

    def units(self, members: int) -> int:
        return members // (1 + self.own.members)

    def units_of_a_text(self) -> int:
        return 1


def exact(digits: np.ndarray) -> np.ndarray:
    """The values of sums of digits: [4] + S to int64 S."""
    return np.tensordot(2 ** (7 * np.arange(4)), np.asarray(digits, np.int64), (0, 0))


@pytest.mark.parametrize(
    ("architecture", "members", "texts", "tokens", "targets", "kind", "parts", "seed"),
    [
        # One text of one token; many members; a vocabulary of a few blocks.
        (Architecture(300, 8, 1, 8, "clip"), 127, 2, 1, 4, "any", {"threads": 1}, 2**64 - 1),
        # More texts than a tile has, and a tile that is not full.
        (Architecture(84, 48, 1, 96, "clip"), 8, 19, 7, 1, "normal", {"threads": 2}, 2**63 + 5),
        (Architecture(2, 40, 3, 24, "table"), 4, 16, 5, 4, "ends", {"threads": 3}, 7),
        (Architecture(131, 88, 2, 56, "table"), 1, 37, 6, 1, "any", {"threads": 1}, 0),
    ],
)
def test_every_shape(
    architecture: Architecture, members: int, texts: int, tokens: int, targets: int, kind: str,
    parts: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    """Odd remainders of tiles, blocks and lanes; extreme weights; separators; texts that do not count; members that do
    not vote; a vote shift, as that of a larger update."""
    rng = np.random.default_rng(members)
    settings = token.Settings(seed, texts, members, tuple(rng.integers(0, 9, 5).tolist()), members % 8)
    if parts["threads"] > 1:
        settings = settings._replace(texts=2**19)
    parameters = parameters_of(architecture, rng, kind)
    read = rng.integers(0, architecture.vocab_size, (texts, tokens))
    read[rng.random(read.shape) < 0.1] = 0
    given = {
        "parameters": parameters,
        "tokens": jnp.asarray(read, jnp.uint16),
        "targets": jnp.asarray(rng.integers(0, architecture.vocab_size, (texts, tokens, targets)), jnp.uint16),
        "states": jnp.asarray(
            rng.integers(-127, 128, (texts, architecture.num_layers, architecture.hidden_size)), jnp.int8
        ),
        "means": jnp.asarray(rng.integers(1, 3000, 2), jnp.int32),
        "update": jnp.uint32(rng.integers(0, 2**32)),
        "first": jnp.uint32(rng.integers(0, 2**18)),
    }
    voters = jnp.asarray(rng.random(members) < 0.7)
    reference = jax.jit(partial(token.evaluate, architecture, NextToken(targets=targets), settings, 16))
    expected = {
        "all": reference(**given, voters=jnp.ones(members, bool)),
        "voters": reference(**given, voters=voters),
    }
    population = Population(architecture, Given(settings), (1 + members) * texts, seed, **parts)
    engine = jax.jit(native.NativeEngine(population).evaluate_tokens)
    with pytest.MonkeyPatch.context() as patch:
        for name in here():
            patch.setenv("INTLM_ISA", name)
            found = {"all": engine(**given), "voters": engine(**given, voters=voters)}
            for case in expected:
                compare(found[case], expected[case], f"{name} {case}")


def compare(found: token.Evaluation, expected: token.Evaluation, where: str) -> None:
    """Asserts that two evaluations are equal, sums of digits by their value."""
    np.testing.assert_array_equal(found.losses, expected.losses, where)
    np.testing.assert_array_equal(found.states, expected.states, where)
    np.testing.assert_array_equal(exact(found.sums.sizes.T), exact(expected.sums.sizes.T), where)
    for name in expected.sums.votes:
        np.testing.assert_array_equal(found.sums.votes[name], expected.sums.votes[name], f"{where} {name}")
        values = (exact(evaluation.sums.chance[name]) for evaluation in (found, expected))
        np.testing.assert_array_equal(*values, f"{where} chance of {name}")
