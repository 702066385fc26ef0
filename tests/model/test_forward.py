"""The forward pass against the oracle: small odd shapes, extreme weights and states, every cell and nonlinearity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from intlm.cells import CELLS
from intlm.model import SEPARATOR
from intlm.model.forward import matrix_product, norm, zero_states
from intlm.model.parameters import Kind, initialise, specifications
from intlm.population import make_engine

SHAPES = [
    oracle.Shape(2, 8, 8, 1, "clip"),
    oracle.Shape(3, 24, 16, 3, "table"),
    oracle.Shape(257, 40, 104, 2, "clip"),
    oracle.Shape(5, 8, 40, 1, "table"),
    *(oracle.Shape(5, 16, 24, 2, kind, cell) for cell in CELLS.parts() if cell != "mgu" for kind in ("clip", "table")),
]
BATCH = 6
WEIGHTS = ["first", "random", "extreme", "high", "low"]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> oracle.Shape:
    """A model's shape; all tests of one shape share a compiled program."""
    return request.param


@pytest.fixture(scope="module")
def compiled(shape: oracle.Shape, bridge: Any) -> Any:
    """A few tokens through the shared weights, as inference reads them."""
    engine = make_engine("xla", bridge.population(shape, oracle.Noise(0, 1, 4), 1))
    return jax.jit(lambda parameters, tokens, states: engine.infer(engine.prepare(parameters), tokens, states))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_step(shape: oracle.Shape, compiled: Any, bridge: Any, kind: str) -> None:
    rng = np.random.default_rng(1)
    values = oracle.first_values(shape, 5) if kind == "first" else bridge.random_parameters(shape, rng, kind)
    tokens = rng.integers(1, shape.vocabulary, (BATCH, 3))
    tokens[0] = SEPARATOR
    tokens[1, 1] = SEPARATOR
    states = rng.integers(-127, 127, (BATCH, shape.layers, shape.hidden), endpoint=True)
    states[2:4] = np.array([127, -127])[:, None, None]
    logits, after = compiled(
        bridge.parameters(shape, values), jnp.asarray(tokens, jnp.uint16), jnp.asarray(states, jnp.int8)
    )
    assert logits.dtype == jnp.int16 and after.dtype == jnp.int8
    read = oracle.Plain(values)
    for b in range(BATCH):
        state = states[b]
        for t in range(tokens.shape[1]):
            expected, state = oracle.step(read, shape, state, int(tokens[b, t]))
            np.testing.assert_array_equal(logits[b, t], expected)
        np.testing.assert_array_equal(after[b], state)


def test_a_separator_forgets(shape: oracle.Shape, compiled: Any, bridge: Any) -> None:
    rng = np.random.default_rng(2)
    parameters = bridge.parameters(shape, bridge.random_parameters(shape, rng))
    states = jnp.asarray(rng.integers(-127, 127, (BATCH, shape.layers, shape.hidden), endpoint=True), jnp.int8)
    zero = zero_states((BATCH,), bridge.architecture(shape))
    assert zero.shape == states.shape and not zero.any()
    tokens = np.ones((BATCH, 3), np.uint16)
    tokens[0, 0] = SEPARATOR
    logits, after = map(np.asarray, compiled(parameters, tokens, states))
    fresh_logits, fresh = map(np.asarray, compiled(parameters, tokens, zero))
    assert (logits[0] == fresh_logits[0]).all() and (after[0] == fresh[0]).all()
    assert (logits[1] != fresh_logits[1]).any()  # any other token keeps the state


@pytest.mark.parametrize("size", [8, 24, 1000, 65536])
def test_norm(size: int) -> None:
    """Norm equals the oracle's for inputs of every magnitude, up to the sum that is nearest to overflow."""
    rng = np.random.default_rng(3)
    rows = [np.zeros(size), np.full(size, 127), np.full(size, -127), np.eye(1, size)[0], np.full(size, 1)]
    rows += [rng.integers(-m, m, size, endpoint=True) for m in (1, 2, 16, 127)]
    result = jax.jit(norm)(jnp.asarray(np.stack(rows), jnp.int8))
    assert result.dtype == jnp.int8
    np.testing.assert_array_equal(result, np.stack([oracle.norm(row.astype(np.int64)) for row in rows]))


def test_matrix_product_at_the_largest_fan_in() -> None:
    full = jnp.full((2, 65536), 127, jnp.int8)
    signs = jnp.array([[127], [-127]], jnp.int8) * jnp.ones(65536, jnp.int8)
    assert matrix_product(full.at[1].set(-127), signs).tolist() == [
        [65536 * 127**2, -65536 * 127**2],
        [-65536 * 127**2, 65536 * 127**2],
    ]


def test_parameters_are_the_published_ones(shape: oracle.Shape, bridge: Any) -> None:
    described = specifications(bridge.architecture(shape))
    names = [s.name.removeprefix("layers.") for s in described]
    assert names == [".".join(reversed(name.split("."))) for name in oracle.parameter_names(shape)]
    assert [s.shape for s in described] == oracle.parameter_shapes(shape)
    kinds = {s.name: s.kind for s in described}
    assert kinds.pop("embedding") is Kind.EMBEDDING
    for name, kind in kinds.items():
        assert kind is (Kind.BIAS if name.endswith("bias") else Kind.MATRIX)


def test_first_values(bridge: Any) -> None:
    shape, seed = oracle.Shape(3, 8, 24, 1, "clip"), 2**64 - 5
    result = jax.jit(lambda: initialise(bridge.architecture(shape), seed))()
    bridge.assert_equal(shape, result, oracle.first_values(shape, seed))
