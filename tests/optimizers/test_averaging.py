"""Momentum and Adam against the oracle, and the promised properties of their averages, decay and schedule."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.estimators.member import Member
from intlm.model.parameters import Kind, specifications
from intlm.optimizers import OPTIMIZERS, adam

SHAPE = oracle.Shape(3, 8, 16, 1, "clip")
LIMIT = 127 << 16  # of a master weight


def both(settings: oracle.Averaging) -> Any:
    """The package's optimizer of these settings; momentum over one update is `sgd`."""
    keys = {name: value for name, value in vars(settings).items() if name not in ("kind", "k")}
    if settings.kind == "momentum" and not settings.k:
        return OPTIMIZERS["sgd"](**keys)
    return OPTIMIZERS[settings.kind](momentum=settings.k, **keys)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize(("k", "weight_decay", "rank"), [(0, 255, 4), (3, 0, 1), (10, 20, 4)])
def test_update(kind: str, k: int, weight_decay: int, rank: int, bridge: Any) -> None:
    """Several updates of every parameter, through warm-up and decay: votes of every size, weights at their bounds,
    fitness of nothing."""
    settings = oracle.Averaging(kind, k, 512, 6, 2, weight_decay)
    optimizer, described = both(settings), specifications(bridge.architecture(SHAPE))
    kinds = {s.name: s.kind for s in described}

    def once(parameters: Any, votes: Any, state: Any, energy: Any, setting: Any) -> Any:
        deviations = Member(rank=rank).deviations(None, described, energy)  # type: ignore[arg-type]
        return optimizer.update(kinds, parameters, votes, state, deviations, setting)

    run = jax.jit(once)
    rng = np.random.default_rng(rank)
    values = bridge.random_parameters(SHAPE, rng)
    for w in values:
        w.ravel()[:4] = [127, -127, 127, -127]
    parameters = bridge.parameters(SHAPE, values)
    state = optimizer.init(parameters)
    expected = [[oracle.Averages(w << 16) for w in v.ravel().tolist()] for v in values]
    scores = ([1, -1, 1, 1, 0, 1], [3, -127, 5, 0, 0, 90], [0] * 6, [127] * 6, [1] * 6, [-1] * 6, [1, -1, 0, 0, 0, 0])
    for update, fitness in enumerate(scores):
        s = oracle.scheduled_step(settings, update)
        assert optimizer.setting(update) == s
        votes = []
        for v in values:
            sigma = oracle.deviation(fitness, rank, v.ndim)
            size = rng.choice([0, 1, sigma, 300 * sigma + 7, 2**14 * sigma, 2**31 - 1], v.shape)
            votes.append(size * rng.choice([-1, 1], v.shape))
        energy = jnp.int32(sum(f * f for f in fitness))
        parameters, state = run(parameters, bridge.named(SHAPE, votes), state, energy, jnp.int32(s))
        for n, vote in enumerate(votes):
            sigma, vector = oracle.deviation(fitness, rank, vote.ndim), vote.ndim == 1
            weights = zip(vote.ravel().tolist(), expected[n], strict=True)
            expected[n] = [oracle.average(settings, s, vector, v, sigma, weight) for v, weight in weights]

        def column(field: str, expected: list[list[oracle.Averages]] = expected) -> list[oracle.Array]:
            """Every parameter's master weights, or another part of a weight's state."""
            columns = ([getattr(weight, field) for weight in weights] for weights in expected)
            return [np.reshape(found, v.shape) for found, v in zip(columns, values, strict=True)]

        fields = state._asdict()
        assert tuple(fields) == (oracle.Averages._fields if kind == "adam" else ("master", "mean")[: 1 + (k > 0)])
        for field, value in fields.items():
            bridge.assert_equal(SHAPE, value, column(field))
        bridge.assert_equal(SHAPE, parameters, [oracle.rshift(master, 16) for master in column("master")])
        assert all(weight.dtype == jnp.int8 for weight in parameters.values())


def repeated(optimizer: Any, kind: Kind, state: Any, votes: list[int], step: int, updates: int) -> Any:
    """The state after many updates with the same votes, in units of a 256th of a standard deviation."""

    @jax.jit
    def run(state: Any) -> Any:
        def once(_: int, state: Any) -> Any:
            drawn = {"w": jnp.array(votes, jnp.int32)}
            return optimizer.update({"w": kind}, {}, drawn, state, {"w": jnp.int32(1)}, jnp.int32(step))[1]

        return jax.lax.fori_loop(0, updates, once, state)

    return run(state)


@pytest.mark.parametrize(("kind", "k"), [("momentum", 3), ("momentum", 10), ("adam", 0), ("adam", 3), ("adam", 10)])
def test_averages_come_to_rest_at_what_they_average(kind: str, k: int) -> None:
    """Averages reach the averaged value exactly, from either side: no difference is too small to move them."""
    votes = [-(2**14), -3000, -1, 0, 1, 2, 700, 2**14]
    starts = [-(2 ** (14 + k)), 0, 2 ** (14 + k)]
    optimizer = both(oracle.Averaging(kind, k, 256, 1000))
    every = votes * len(starts)
    state = optimizer.init({"w": jnp.zeros(len(every), jnp.int8)})._replace(
        mean={"w": jnp.repeat(jnp.array(starts, jnp.int32), len(votes))}
    )
    if kind == "adam":
        state = state._replace(square={"w": jnp.repeat(jnp.array([0, 2**14, 2**26], jnp.int32), len(votes))})
    rest = repeated(optimizer, Kind.BIAS, state, every, 0, 20 << max(k, 6))
    assert oracle.rshift(np.asarray(rest.mean["w"], np.int64), k).tolist() == every
    if kind == "adam":
        squares = oracle.rshift(np.asarray(rest.square["w"], np.int64), adam.SQUARE_SHIFT)
        assert squares.tolist() == [oracle.rshift(vote * vote, 8) for vote in every]
    assert not any(rest.master["w"])


@pytest.mark.parametrize("kind", ["momentum", "adam"])
@pytest.mark.parametrize(("weight_decay", "step"), [(255, 2**17), (16, 2**16), (2, 2**16)])
def test_weight_decay(kind: str, weight_decay: int, step: int) -> None:
    """Without votes a matrix comes within half a unit of 0 from both sides; a vector stays."""
    weights = jnp.array([-127, -60, -3, -1, 0, 1, 3, 60, 127], jnp.int8)
    optimizer = both(oracle.Averaging(kind, 3, 256, 1000, weight_decay=weight_decay))
    state, updates = optimizer.init({"w": weights}), 7 * 2**32 // (step * weight_decay)
    master = repeated(optimizer, Kind.MATRIX, state, [0] * len(weights), step, updates).master["w"]
    assert int(jnp.abs(master).max()) < 2**15 and bool((master * weights >= 0).all())
    stays = repeated(optimizer, Kind.BIAS, state, [0] * len(weights), step, updates)
    assert stays.master["w"].tolist() == [w << 16 for w in weights.tolist()]


def test_one_update_by_hand() -> None:
    """Of step 256 and a vote of one standard deviation: a matrix moves by a unit, a vector by half of one; and of the
    matrix 255 of 65,536 parts are lost before."""
    optimizer = both(oracle.Averaging("momentum", 0, 256, 1000, weight_decay=255))
    state = optimizer.init({"w": jnp.array([0, 100, -100, 127], jnp.int8)})
    votes, s = [256, 256, -256, 256], optimizer.setting(0)
    matrix, vector = (
        repeated(optimizer, kind, state, votes, s, 1).master["w"].tolist() for kind in (Kind.MATRIX, Kind.BIAS)
    )
    assert matrix == [1 << 16, (101 << 16) - 25500, (-101 << 16) + 25500, LIMIT]
    assert vector == [1 << 15, (100 << 16) + (1 << 15), (-100 << 16) - (1 << 15), LIMIT]


@given(st.integers(2**9, 2**31 - 1))
def test_reciprocal_root(x: int) -> None:
    """The reciprocal root is within 0.2 % of 1 / sqrt(x)."""
    root, shift = adam.reciprocal_root(jnp.int32(x))
    assert 2**14 < root <= 2**15
    ratio = Fraction(int(root), 2 ** int(shift)) ** 2 * x  # 1 if exact
    assert abs(ratio - 1) < Fraction(1, 250)


@pytest.mark.parametrize(
    ("step", "warmup", "decay", "expected"),
    [
        (64, 0, 1000, {0: 2**14, 250: 2**14 * 3 // 4, 500: 2**13, 999: 2**14 // 1000, 1000: 0, 5000: 0}),
        (64, 3, 11, {0: 2**12, 1: 2**13, 2: 3 * 2**12, 3: 2**14, 4: 7 * 2**11, 10: 2**11, 11: 0}),
        (1, 2, 1, {0: 85, 1: 170, 2: 0, 2**31 - 1: 0}),  # the decay ends before the warm-up does
        (1, 5, 5, {4: 213, 5: 0}),
        (512, 2**31 - 1, 1, {0: 0, 2**31 - 2: 2**17 - 1, 2**31 - 1: 0}),
        (512, 0, 2**31 - 1, {0: 2**17, 2**31 - 2: 0}),  # the most that `update` takes
    ],
)
def test_the_step_rises_and_falls_on_straight_lines(
    step: int, warmup: int, decay: int, expected: dict[int, int]
) -> None:
    settings = oracle.Averaging("adam", 3, step, decay, warmup)
    optimizer = both(settings)
    assert {update: optimizer.setting(update) for update in expected} == expected
    assert {update: oracle.scheduled_step(settings, update) for update in expected} == expected
