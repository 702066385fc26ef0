"""Every engine, against the oracle and hence against every other, bit for bit, on populations small enough for it."""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_token
import pytest

from intlm.cells import CELLS
from intlm.estimators.token import Token
from intlm.model.forward import zero_states
from intlm.model.parameters import Architecture, specifications
from intlm.objectives.next_token import NextToken
from intlm.population import Population, gpu, make_engine, native
from intlm.population.xla import XlaEngine
from intlm.update import TrainState

ENGINES = ["xla"]
AS_A_RUN = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # XLA's own defaults
ENGINES += ["native"] if native.available() else []
ENGINES += ["gpu"] if gpu.interpreted() or not gpu.missing() else []


def serving(population: Population) -> list[str]:
    """The engines here that serve a population."""
    classes = {"xla": XlaEngine, "native": native.NativeEngine, "gpu": gpu.GpuEngine}
    return [engine for engine in ENGINES if not classes[engine].serves(population)]


class Case(NamedTuple):
    """A small run, of which two updates are tested."""

    shape: oracle.Shape
    noise: oracle.Noise
    pairs: int
    group_size: int
    fitness: str
    optimizer: oracle.Threshold
    first_update: int
    kind: str  # of the weights: "first" values, or those of `Bridge.random_parameters`
    chunk_size: int = 0
    tokens: int = 5
    targets: int = 1


CASES = {  # the first two are the problems of golden/v3/update.json: they share its compiled programs
    # A remainder after the chunks, a separator in the text, noise that is the same for the whole run.
    "remainder": Case(
        oracle.Shape(5, 8, 24, 2, "clip"),
        oracle.Noise(2**40 + 9, 1, 4, 0),
        3,
        1,
        "sign",
        oracle.Threshold(4, 10),
        7,
        "first",
        chunk_size=4,
    ),
    # Groups that share a text, a feed-forward smaller than the hidden size, four targets, and three updates that share
    # noise: the second here begins the next three.
    "groups": Case(
        oracle.Shape(3, 16, 8, 3, "table"),
        oracle.Noise(7, 3, 2, 3),
        4,
        2,
        "normalised",
        oracle.Threshold(4, 5),
        2,
        "first",
        chunk_size=4,
        targets=4,
    ),
    # Weights at ±127, the strongest noise, pairs one by one, all on one text, new noise at each update, the last
    # updates that there can be.
    "extreme": Case(
        oracle.Shape(257, 40, 56, 1, "clip"),
        oracle.Noise(2**64 - 1, 5, 0, 1),
        3,
        3,
        "normalised",
        oracle.Threshold(1, 2**31 - 1),
        2**31 - 3,
        "extreme",
        chunk_size=2,
        targets=2,
    ),
    # The largest vocabulary: the loss is a sum over all of it.
    "vocabulary": Case(
        oracle.Shape(65536, 8, 8, 1, "clip"),
        oracle.Noise(3, 1, 2, 1),
        2,
        1,
        "sign",
        oracle.Threshold(4, 10),
        1,
        "random",
        tokens=2,
        targets=2,
    ),
}
OF_CELLS = {  # the cells that XLA alone serves
    f"{cell} {kind}": Case(
        oracle.Shape(5, 16, 24, 2, kind, cell),
        oracle.Noise(11, 2, 3, 1),
        4,
        2,
        "normalised",
        oracle.Threshold(4, 10),
        3,
        "first",
        chunk_size=4,
    )
    for cell in CELLS.parts()
    if cell != "mgu"
    for kind in ("clip", "table")
}


def texts(case: Case, seed: int) -> tuple[oracle.Array, oracle.Array]:
    """Tokens [texts, T], a separator inside each text but the first, which begins with one; targets [texts, T, K]."""
    rng = np.random.default_rng(seed)
    found = rng.integers(1, case.shape.vocabulary, (case.pairs // case.group_size, case.tokens + 1))
    found[0, 0] = 0
    for row in found[1:]:
        row[rng.integers(1, case.tokens)] = 0
    others = rng.integers(0, case.shape.vocabulary, (len(found), case.tokens, case.targets - 1))
    return found[:, :-1], np.concatenate([found[:, 1:, None], others], axis=2)


def uint16(*arrays: oracle.Array) -> tuple[jax.Array, ...]:
    """Tokens or targets as engines take them, in uint16."""
    return tuple(jnp.asarray(array, jnp.uint16) for array in arrays)


@pytest.mark.parametrize(("name", "engine"), [*product(CASES, ENGINES), *((name, "xla") for name in OF_CELLS)])
def test_two_updates(engine: str, name: str, bridge: Any) -> None:
    """Losses, fitness, votes, weights and states equal the oracle's, for an update and the one that follows it."""
    case = {**CASES, **OF_CELLS}[name]
    population = bridge.population(case.shape, case.noise, case.pairs, case.group_size, case.fitness, case.chunk_size)
    run = bridge.update(engine, population, AS_A_RUN if name == "extreme" and engine != "gpu" else {})
    values = oracle.first_values(case.shape, case.noise.seed)
    if case.kind != "first":
        values = bridge.random_parameters(case.shape, np.random.default_rng(4), case.kind)
    states = np.zeros((2 * case.pairs, case.shape.layers, case.shape.hidden), np.int64)
    parameters = bridge.parameters(case.shape, values)
    members = zero_states((case.pairs, 2), population.architecture)
    state = TrainState(parameters, (), members)
    losses: set[int] = set()
    moved = 0

    for update in (case.first_update, case.first_update + 1):
        batch = texts(case, update)
        expected = oracle.whole_update(
            case.shape,
            case.noise,
            case.fitness,
            case.optimizer,
            update,
            values,
            *(np.repeat(some, case.group_size, axis=0) for some in batch),
            states,
        )
        quantile = jnp.int32(oracle.threshold_quantile(case.optimizer, update))
        state, report, fitness, votes = run(state, uint16(*batch), jnp.uint32(update), quantile)
        assert report.seen.dtype == jnp.int32 and report.seen.shape == (case.pairs, 2)
        np.testing.assert_array_equal(np.asarray(report.seen).ravel(), expected.losses)
        np.testing.assert_array_equal(np.asarray(state.members).reshape(states.shape), expected.states)
        assert fitness.dtype == jnp.int8 and fitness.tolist() == expected.fitness
        assert all(v.dtype == jnp.int32 for v in votes.values())
        bridge.assert_equal(case.shape, votes, expected.votes)
        bridge.assert_equal(case.shape, state.parameters, expected.parameters)
        changed = sum(int((a != b).sum()) for a, b in zip(values, expected.parameters, strict=True))
        assert int(report.changed) == changed
        values, states = expected.parameters, expected.states
        losses |= set(expected.losses)
        moved += changed
    assert moved > 0 and len(losses) > 2, "the case shows nothing"


@pytest.mark.parametrize("engine", ENGINES)
def test_chunks_change_nothing(engine: str, bridge: Any) -> None:
    """Chunks of one pair, of two with a remainder, and of all pairs give the same losses, states, votes and weights."""
    case = CASES["remainder"]
    rng = np.random.default_rng(8)
    parameters = bridge.parameters(case.shape, bridge.random_parameters(case.shape, rng))
    states = rng.integers(-127, 127, (case.pairs, 2, case.shape.layers, case.shape.hidden), endpoint=True)
    state = TrainState(parameters, (), jnp.asarray(states, jnp.int8))
    arguments = (state, uint16(*texts(case, 1)), jnp.uint32(9), jnp.int32(200))
    found = []
    for chunk_size in (4, 64) if engine == "gpu" else (2, 4, 64):  # of its one pair: "extreme" above
        population = bridge.population(case.shape, case.noise, case.pairs, 1, case.fitness, chunk_size)
        found.append(jax.tree.leaves(bridge.update(engine, population)(*arguments)))
    for other in found[1:]:
        for leaf, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 8, 1024])
def test_targets(engine: str, count: int, bridge: Any) -> None:
    """Losses and states of two pairs equal the oracle's for one target, several, and the largest number."""
    shape, noise, update = oracle.Shape(11, 8, 16, 1, "clip"), oracle.Noise(5, 1, 2, 1), 3
    rng = np.random.default_rng(count)
    values = bridge.random_parameters(shape, rng)
    tokens, targets = (rng.integers(0, shape.vocabulary, size) for size in ((2, 3), (2, 3, count)))
    states = rng.integers(-127, 127, (4, shape.layers, shape.hidden), endpoint=True)
    expected, after = oracle.evaluate(shape, noise, update, values, tokens, targets, states)
    made = make_engine(engine, bridge.population(shape, noise, 2))
    evaluate = jax.jit(made.evaluate)
    members = jnp.asarray(states.reshape(2, 2, *states.shape[1:]), jnp.int8)
    arguments = (*uint16(tokens, targets), members, jnp.uint32(update))
    losses, found = evaluate(bridge.parameters(shape, values), *arguments)
    assert losses.ravel().tolist() == expected and len(set(expected)) == 4
    np.testing.assert_array_equal(np.asarray(found).reshape(after.shape), after)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_product_with_the_noise_that_saturates(engine: str, bridge: Any) -> None:
    """The product x·B saturates for an input that follows the noise; only a wide matrix can exceed int16."""
    shape, noise, update = oracle.Shape(3, 8, 1024, 1, "clip"), oracle.Noise(5, 1, 4, 1), 3
    rng = np.random.default_rng(1)
    values = [np.zeros(size, np.int64) for size in oracle.parameter_shapes(shape)]
    _, b = oracle.noise_factors(noise, (update, 0, 1 + oracle.DOWN), (8, 1024))
    assert 127 * int(b.clip(0).sum()) * oracle.rank_scale(1) >> 11 > 40_000
    values[0] += 60
    values[1 + oracle.UP][b[0] > 0] = 127
    values[-1] = rng.integers(-127, 127, values[-1].shape, endpoint=True)
    tokens, targets = np.array([[1, 2]]), np.array([[[2], [0]]])
    states = np.zeros((2, 1, 8), np.int64)
    expected, after = oracle.evaluate(shape, noise, update, values, tokens, targets, states)
    evaluate = jax.jit(make_engine(engine, bridge.population(shape, noise, 1)).evaluate)
    members = jnp.zeros((1, 2, 1, 8), jnp.int8)
    losses, found = evaluate(bridge.parameters(shape, values), *uint16(tokens, targets), members, jnp.uint32(update))
    assert losses.ravel().tolist() == expected and len(set(expected)) == 2
    np.testing.assert_array_equal(np.asarray(found).reshape(after.shape), after)


@pytest.mark.parametrize("engine", ENGINES)
def test_some_of_the_pairs(engine: str, bridge: Any) -> None:
    """Losses, states and votes of the last two of six pairs alone, as one of several devices computes them."""
    shape, noise, update, first = oracle.Shape(11, 8, 16, 1, "clip"), oracle.Noise(5, 1, 2, 1), 3, 4
    rng = np.random.default_rng(6)
    values = bridge.random_parameters(shape, rng)
    tokens, targets = (rng.integers(0, shape.vocabulary, size) for size in ((6, 3), (6, 3, 2)))
    states = rng.integers(-127, 127, (12, shape.layers, shape.hidden), endpoint=True)
    losses, after = oracle.evaluate(shape, noise, update, values, tokens, targets, states)
    votes = oracle.votes(noise, update, [0, 0, 0, 0, 3, -2], values)
    made = make_engine(engine, bridge.population(shape, noise, 6))

    def run(parameters: Any, tokens: Any, targets: Any, members: Any, update: Any, first: Any) -> Any:
        evaluated = made.evaluate(parameters, tokens, targets, members, update, first)
        return evaluated, made.accumulate(jnp.array([3, -2], jnp.int8), update, first)

    members = jnp.asarray(states.reshape(6, 2, *states.shape[1:])[first:], jnp.int8)
    arguments = (*uint16(tokens[first:], targets[first:]), members, jnp.uint32(update), jnp.uint32(first))
    compiled = jax.jit(run)
    (found, states_after), counted = compiled(bridge.parameters(shape, values), *arguments)
    assert found.ravel().tolist() == losses[2 * first :] and len(set(losses)) > 6
    np.testing.assert_array_equal(np.asarray(states_after).reshape(-1, *after.shape[1:]), after[2 * first :])
    bridge.assert_equal(shape, counted, votes)


@pytest.fixture(scope="module", params=ENGINES)
def infer(request: pytest.FixtureRequest, bridge: Any) -> Callable[..., Any]:
    """Compiled inference of a small model."""
    engine = make_engine(request.param, bridge.population(INFERRED, oracle.Noise(0, 1, 4), 1))
    return jax.jit(lambda parameters, tokens, states: engine.infer(engine.prepare(parameters), tokens, states))


INFERRED = oracle.Shape(7, 24, 40, 2, "table")


def test_infer(infer: Any, bridge: Any) -> None:
    """Inference equals the oracle's; a text read in two pieces, with the states passed on, equals the text read at
    once."""
    rng = np.random.default_rng(2)
    values = bridge.random_parameters(INFERRED, rng)
    parameters = bridge.parameters(INFERRED, values)
    tokens = rng.integers(1, INFERRED.vocabulary, (3, 6))
    tokens[1, 3] = 0
    states = rng.integers(-127, 127, (3, INFERRED.layers, INFERRED.hidden), endpoint=True)

    def read(tokens: np.ndarray, states: Any) -> tuple[Any, Any]:
        return infer(parameters, jnp.asarray(tokens, jnp.uint16), jnp.asarray(states, jnp.int8))

    logits, after = read(tokens, states)
    assert logits.shape == (3, 6, INFERRED.vocabulary) and logits.dtype == jnp.int16 and after.dtype == jnp.int8
    plain = oracle.Plain(values)
    for b in range(3):
        state = states[b]
        for t in range(6):
            expected, state = oracle.step(plain, INFERRED, state, int(tokens[b, t]))
            np.testing.assert_array_equal(logits[b, t], expected)
        np.testing.assert_array_equal(after[b], state)

    first, between = read(tokens[:, :3], states)
    second, last = read(tokens[:, 3:], between)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), logits)
    np.testing.assert_array_equal(last, after)


# More units than a block has bits, more logits than one has bytes; three texts, two in a chunk.
TOKEN_SHAPE, TOKEN_SETTINGS = oracle.Shape(131, 16, 24, 2, "clip"), oracle_token.Settings(2**63 + 5, 3, 2, 5, 1)
TOKEN_POPULATION = Population(
    Architecture(131, 16, 2, 24, "clip"), Token(members=2, credit=5, sigma_shift=1), 3 * 3, TOKEN_SETTINGS.seed,
    NextToken(targets=2), chunk_size=2 * 3, tokens=5,
)  # fmt: skip


@pytest.mark.parametrize("engine", serving(TOKEN_POPULATION))
def test_votes_of_token(engine: str, bridge: Any) -> None:
    """Losses, states, votes, their deviations by chance and the next means; a separator first, inside and last."""
    shape, settings, population = TOKEN_SHAPE, TOKEN_SETTINGS, TOKEN_POPULATION
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, shape.vocabulary, (settings.texts, population.tokens))
    tokens[0, 2] = tokens[1, 0] = tokens[2, 4] = 0
    targets = rng.integers(0, shape.vocabulary, (*tokens.shape, 2))
    states = rng.integers(-127, 127, (settings.texts, shape.layers, shape.hidden), endpoint=True)
    values, means = oracle.first_values(shape, 3), (40, 90)
    expected = oracle_token.evaluate(shape, settings, 2**32 - 1, values, states, means, tokens, targets)
    assert all(np.any(vote) for vote in expected.votes)
    read = jax.jit(make_engine(engine, population).evaluate_tokens)
    found = read(
        bridge.parameters(shape, values), *uint16(tokens, targets), jnp.asarray(states, jnp.int8),
        jnp.asarray(means, jnp.int32), jnp.uint32(2**32 - 1), jnp.uint32(0),
    )  # fmt: skip
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(found.states, expected.states)
    bridge.assert_equal(shape, found.sums.votes, expected.votes)
    assert population.estimator.learn(population, means, found.sums.sizes).tolist() == list(expected.means)
    described = specifications(population.architecture)
    deviations = population.estimator.deviations(population, described, found.sums.chance)
    along = [
        oracle_token.over(c, w.shape, n == 0) for n, (c, w) in enumerate(zip(expected.deviations, values, strict=True))
    ]
    bridge.assert_equal(shape, deviations, along)
