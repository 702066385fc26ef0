"""The integer Adam against Python's own integers, and what its averages promise."""

from fractions import Fraction
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

from intlm.eggroll import adam
from intlm.model.parameters import specifications

SHAPE = oracle.Shape(3, 8, 16, 1, "clip")


def shifted(x: int, shift: int) -> int:
    """x / 2^shift to nearest, ties up."""
    return x if shift == 0 else (x + (1 << (shift - 1))) >> shift


def one(vote: int, deviation: int, step: int, weight: tuple[int, int, int]) -> tuple[int, int, int]:
    """docs/numerics.md, section 9, for one weight: master, mean and square after an update."""
    master, mean, square = weight
    d = max(1, deviation)
    z = min((abs(vote) + d // 2) // d, 1 << 14) * (1 if vote > 0 else -1)
    mean += z - shifted(mean, 3)
    square += shifted(z * z, 8) - shifted(square, 6)
    v = max(square, 1 << 12)
    e = (v.bit_length() - 1) // 2 * 2
    root = (isqrt((1 << 40) // (v >> (e - 8))) + 1) >> 1
    ratio = max(-2047, min(2047, shifted(shifted(mean, 3) * root, 8 + e // 2)))
    master = max(-127 << 16, min(127 << 16, master + shifted(ratio * step, 8)))
    return master, mean, square


@cache
def compiled(rank: int, bridge: Any) -> Any:
    """The optimizer's update."""
    described = specifications(bridge.architecture(SHAPE))

    def run(parameters: Any, votes: Any, state: Any, fitness: Any, step: Any) -> Any:
        return adam.update(described, parameters, votes, state, fitness, rank, step)

    return jax.jit(run)


@pytest.mark.parametrize("rank", [1, 4])
def test_update(rank: int, bridge: Any) -> None:
    """Several updates of every parameter: votes of every size, weights at their bounds, fitness of nothing."""
    rng = np.random.default_rng(rank)
    run, described = compiled(rank, bridge), specifications(bridge.architecture(SHAPE))
    values = bridge.random_parameters(SHAPE, rng)
    for w in values:
        w.ravel()[:4] = [127, -127, 127, -127]
    parameters = bridge.parameters(SHAPE, values)
    state = adam.init(parameters)
    expected = {s.name: [(int(w) << 16, 0, 1 << 14) for w in v.ravel()] for s, v in zip(described, values, strict=True)}
    updates = [([1, -1, 1, 1, 0, 1], 1 << 17), ([3, -127, 5, 0, 0, 90], 5000), ([0] * 6, 1 << 16), ([1] * 6, 1)]
    for scores, step in updates:
        deviation = {s.name: isqrt(sum(f * f for f in scores) * (rank if len(s.shape) == 2 else 1)) for s in described}
        votes = {}
        for s in described:
            size = rng.choice([0, 1, deviation[s.name], 300 * deviation[s.name] + 7, 2**31 - 1], s.shape)
            votes[s.name] = (size * rng.choice([-1, 1], s.shape)).astype(np.int32)
        parameters, state = run(
            parameters, {name: jnp.asarray(v) for name, v in votes.items()}, state, jnp.asarray(scores, jnp.int8),
            jnp.int32(step),
        )  # fmt: skip
        for s in described:
            pairs = zip(votes[s.name].ravel().tolist(), expected[s.name], strict=True)
            after = expected[s.name] = [one(vote, deviation[s.name], step, weight) for vote, weight in pairs]
            found = [np.asarray(leaf[s.name]).ravel().tolist() for leaf in state]
            assert [list(column) for column in zip(*after, strict=True)] == found, s.name
            assert np.asarray(parameters[s.name]).ravel().tolist() == [shifted(m, 16) for m, _, _ in after]


@given(st.integers(2**9, 2**31 - 1))
def test_reciprocal_root(x: int) -> None:
    """Within 0.2 % of 1 / sqrt(x)."""
    root, shift = adam.reciprocal_root(jnp.int32(x))
    assert 2**14 < root <= 2**15
    found = Fraction(int(root), 2 ** int(shift)) ** 2 * x  # 1 if exact
    assert abs(found - 1) < Fraction(1, 250)


@pytest.mark.parametrize("vote", [-3000, -1, 0, 1, 2, 700])
@pytest.mark.parametrize("start", [-(2**15), 0, 2**15])
def test_averages_come_to_rest_at_what_they_average(vote: int, start: int) -> None:
    """Exactly, from either side: no difference is too small to move them."""
    mean, square = start, 2**24
    for _ in range(2000):
        _, mean, square = one(vote, 1, 0, (0, mean, square))
    assert shifted(mean, adam.MEAN_SHIFT) == vote
    assert shifted(square, adam.SQUARE_SHIFT) == shifted(vote * vote, adam.FRACTION)


def test_the_step_falls_on_a_straight_line() -> None:
    found = [adam.scheduled_step(update, 64, 1000) for update in (0, 250, 500, 999, 1000, 5000)]
    assert found == [2**14, 2**14 * 3 // 4, 2**13, 2**14 // 1000, 0, 0]
    assert adam.scheduled_step(0, 512, 2**31 - 1) == 2**17  # the most that `update` takes
