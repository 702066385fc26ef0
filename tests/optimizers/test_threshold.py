"""The threshold optimizer against the oracle, and at the edges of its test."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from intlm.estimators.member import Member
from intlm.model.parameters import specifications
from intlm.optimizers.threshold import Threshold

SHAPE = oracle.Shape(3, 8, 16, 1, "clip")
PAIRS = 6


@pytest.mark.parametrize("alpha", [0, 1, 4, 16])
@pytest.mark.parametrize("decay", [1, 1000, 2**31 - 1])
def test_quantile(alpha: int, decay: int) -> None:
    optimizer = oracle.Threshold(alpha, decay)
    updates = [0, 1, 2, 99, 1000, 123_457, 2**31 - 1]
    quantiles = [Threshold(alpha=alpha, decay_updates=decay).setting(update) for update in updates]
    assert quantiles == [oracle.threshold_quantile(optimizer, update) for update in updates]
    assert quantiles[0] == 0 and quantiles == sorted(quantiles) and quantiles[-1] < 2100


@cache
def compiled(rank: int, bridge: Any) -> Any:
    """The optimizer's compiled update."""
    described = specifications(bridge.architecture(SHAPE))

    def run(parameters: Any, votes: Any, fitness: Any, quantile: Any) -> Any:
        energy = jnp.sum(jnp.square(fitness.astype(jnp.int32)))
        deviations = Member(rank=rank).deviations(None, described, energy)  # type: ignore[arg-type]
        kinds = {s.name: s.kind for s in described}
        return Threshold().update(kinds, parameters, votes, (), deviations, quantile)[0]

    return jax.jit(run)


@pytest.mark.parametrize("rank", [1, 4])
def test_update(rank: int, bridge: Any) -> None:
    """The update equals the oracle's for votes at, just below, just above and far from the threshold."""
    rng = np.random.default_rng(rank)
    run = compiled(rank, bridge)
    optimizer = oracle.Threshold(4, 10)
    for update, scores in [(0, [1, -1, 1, 1, 0, 1]), (7, [3, -127, 5, 0, 0, 90]), (500, [0] * 6), (500, [1] * 6)]:
        q = oracle.threshold_quantile(optimizer, update)
        values = bridge.random_parameters(SHAPE, rng)
        z = []
        for w in values:
            w.ravel()[:4] = [127, -127, 127, -127]
            edge = q * oracle.deviation(scores, rank, w.ndim)
            vote = rng.choice([edge, edge - 1, edge + 1, edge // 2, 0, 2**31 - 1, edge * 3 // 2], w.shape)
            vote = vote * rng.choice([-1, 1], w.shape)
            vote.ravel()[:4] = [2**31 - 1, -(2**31) + 1, -edge - 1, edge + 1]
            z.append(vote.astype(np.int64))
        expected = oracle.threshold(optimizer, update, scores, rank, values, z)
        result = run(
            bridge.parameters(SHAPE, values), bridge.named(SHAPE, z), jnp.array(scores, jnp.int8), jnp.int32(q)
        )
        bridge.assert_equal(SHAPE, result, expected)
        assert all(v.dtype == jnp.int8 and int(jnp.abs(v).max()) <= 127 for v in result.values())


def test_which_weights_move(bridge: Any) -> None:
    """By hand: six scores whose squares sum to 400 deviate by 40 for a matrix of rank 4 and by 20 for a vector."""
    scores = jnp.array([10, -10, 10, 6, 8, 0], jnp.int8)
    run = compiled(4, bridge)
    values = [np.zeros(size, np.int64) for size in oracle.parameter_shapes(SHAPE)]
    z = [np.zeros(size, np.int64) for size in oracle.parameter_shapes(SHAPE)]
    for vote, edge in [(z[0].ravel(), 40), (z[1 + oracle.GATE_BIAS], 20)]:
        vote[:5] = [100 * edge, 100 * edge - 1, -100 * edge, -100 * edge + 1, 0]
    result = run(bridge.parameters(SHAPE, values), bridge.named(SHAPE, z), scores, jnp.int32(100))
    assert result["embedding"].ravel()[:5].tolist() == [1, 0, -1, 0, 0]
    assert result["layers.0.gate_bias"][:5].tolist() == [1, 0, -1, 0, 0]
    # A quantile of 0, that of the first update, moves whatever has any vote.
    result = run(bridge.parameters(SHAPE, values), bridge.named(SHAPE, z), scores, jnp.int32(0))
    assert result["layers.0.gate_bias"].tolist() == [1, 1, -1, -1, 0, 0, 0, 0]


def test_no_fitness_no_move(bridge: Any) -> None:
    values = bridge.random_parameters(SHAPE, np.random.default_rng(0))
    z = [np.zeros(v.shape, np.int64) for v in values]
    result = compiled(1, bridge)(
        bridge.parameters(SHAPE, values), bridge.named(SHAPE, z), jnp.zeros(PAIRS, jnp.int8), jnp.int32(300)
    )
    bridge.assert_equal(SHAPE, result, values)
