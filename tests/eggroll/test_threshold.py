"""The threshold optimizer against the oracle, and at the edges of its test."""

from functools import cache
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.eggroll import threshold
from intlm.model.parameters import specifications

SHAPE = oracle.Shape(3, 8, 16, 1, "clip")
PAIRS = 6


@pytest.mark.parametrize("alpha", [0, 1, 4, 16])
@pytest.mark.parametrize("decay", [1, 1000, 2**31 - 1])
def test_quantile(alpha: int, decay: int) -> None:
    optimizer = oracle.Threshold(alpha, decay)
    updates = [0, 1, 2, 99, 1000, 123_457, 2**31 - 1]
    found = [threshold.quantile(update, alpha, decay) for update in updates]
    assert found == [oracle.threshold_quantile(optimizer, update) for update in updates]
    assert found[0] == 0 and found == sorted(found) and found[-1] < 2100


def test_integer_sqrt_around_every_square() -> None:
    roots = np.arange(46341, dtype=np.int64)
    squares = np.concatenate([roots**2, roots[1:] ** 2 - 1, [2**31 - 1]])
    found = threshold.integer_sqrt(jnp.asarray(squares, jnp.int32))
    np.testing.assert_array_equal(found, np.concatenate([roots, roots[1:] - 1, [46340]]))


@given(st.integers(0, 2**31 - 1))
def test_integer_sqrt(x: int) -> None:
    assert int(threshold.integer_sqrt(jnp.int32(x))) == isqrt(x)


@cache
def compiled(rank: int, bridge: Any) -> Any:
    """The optimizer's update."""
    described = specifications(bridge.architecture(SHAPE))

    def run(parameters: Any, votes: Any, fitness: Any, quantile: Any) -> Any:
        state = threshold.init(parameters)
        return threshold.update(described, parameters, votes, state, fitness, rank, quantile)[0]

    return jax.jit(run)


def as_votes(z: list[oracle.Array], bridge: Any) -> Any:
    """Votes by name, int32."""
    return {
        s.name: jnp.asarray(v, jnp.int32) for s, v in zip(specifications(bridge.architecture(SHAPE)), z, strict=True)
    }


@pytest.mark.parametrize("rank", [1, 4])
def test_update(rank: int, bridge: Any) -> None:
    """Votes on, just below and just beyond the threshold, and far from it; weights at their bounds."""
    rng = np.random.default_rng(rank)
    run = compiled(rank, bridge)
    optimizer = oracle.Threshold(4, 10)
    for update, scores in [(0, [1, -1, 1, 1, 0, 1]), (7, [3, -127, 5, 0, 0, 90]), (500, [0] * 6), (500, [1] * 6)]:
        q = oracle.threshold_quantile(optimizer, update)
        values = bridge.random_parameters(SHAPE, rng)
        z = []
        for w in values:
            w.ravel()[:4] = [127, -127, 127, -127]
            edge = q * isqrt((rank if w.ndim == 2 else 1) * sum(f * f for f in scores))
            vote = rng.choice([edge, edge - 1, edge + 1, edge // 2, 0, 2**31 - 1, edge * 3 // 2], w.shape)
            vote = vote * rng.choice([-1, 1], w.shape)
            vote.ravel()[:4] = [2**31 - 1, -(2**31) + 1, -edge - 1, edge + 1]
            z.append(vote.astype(np.int64))
        expected = oracle.threshold(optimizer, update, scores, rank, values, z)
        found = run(bridge.parameters(SHAPE, values), as_votes(z, bridge), jnp.array(scores, jnp.int8), jnp.int32(q))
        bridge.assert_equal(SHAPE, found, expected)
        assert all(v.dtype == jnp.int8 and int(jnp.abs(v).max()) <= 127 for v in found.values())


def test_which_weights_move(bridge: Any) -> None:
    """By hand: six scores whose squares sum to 400 deviate by 40 for a matrix of rank 4 and by 20 for a vector."""
    scores = jnp.array([10, -10, 10, 6, 8, 0], jnp.int8)
    run = compiled(4, bridge)
    values = [np.zeros(size, np.int64) for size in oracle.parameter_shapes(SHAPE)]
    z = [np.zeros(size, np.int64) for size in oracle.parameter_shapes(SHAPE)]
    for vote, edge in [(z[0].ravel(), 40), (z[1], 20)]:
        vote[:5] = [100 * edge, 100 * edge - 1, -100 * edge, -100 * edge + 1, 0]
    found = run(bridge.parameters(SHAPE, values), as_votes(z, bridge), scores, jnp.int32(100))
    assert found["embedding"].ravel()[:5].tolist() == [1, 0, -1, 0, 0]
    assert found["layers.0.cell_norm"][:5].tolist() == [1, 0, -1, 0, 0]
    # A quantile of 0, that of the first update, moves whatever has any vote.
    found = run(bridge.parameters(SHAPE, values), as_votes(z, bridge), scores, jnp.int32(0))
    assert found["layers.0.cell_norm"].tolist() == [1, 1, -1, -1, 0, 0, 0, 0]


def test_no_fitness_no_move(bridge: Any) -> None:
    values = bridge.random_parameters(SHAPE, np.random.default_rng(0))
    z = [np.zeros(v.shape, np.int64) for v in values]
    found = compiled(1, bridge)(
        bridge.parameters(SHAPE, values), as_votes(z, bridge), jnp.zeros(PAIRS, jnp.int8), jnp.int32(300)
    )
    bridge.assert_equal(SHAPE, found, values)
