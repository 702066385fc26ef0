"""No floating point anywhere: every value in the programs of an update, of inference and of sampling is an integer."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from test_engines import ENGINES

from intlm.arithmetic.random_bits import Domain, seed_key
from intlm.estimators.token import Token
from intlm.model.parameters import initialise
from intlm.model.sampling import sample
from intlm.objectives.next_token import NextToken
from intlm.optimizers import Optimizer
from intlm.optimizers.adam import Adam
from intlm.optimizers.momentum import Momentum
from intlm.optimizers.sgd import Sgd
from intlm.optimizers.threshold import Threshold
from intlm.population import Population, make_engine
from intlm.population.xla import XlaEngine
from intlm.update import initial_state, make_update_step

INTEGERS = {np.dtype(name) for name in ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32")}


def values(program: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a program and of its inner programs: the operation that produced it, and its dtype."""
    if isinstance(program, ClosedJaxpr):
        yield from (("constant", jnp.result_type(constant)) for constant in program.consts)
        program = program.jaxpr
    if isinstance(program, Jaxpr):
        for variable in (*program.invars, *program.constvars, *program.outvars):
            yield "argument, constant or result", variable.aval.dtype
        for equation in program.eqns:
            name = equation.primitive.name
            for variable in (*equation.invars, *equation.outvars):
                if hasattr(variable.aval, "dtype"):  # a token of an effect has none
                    yield name, variable.aval.dtype
                if isinstance(variable, Literal):
                    yield f"{name}'s literal", jnp.result_type(variable.val)
            for parameter in equation.params.values():
                yield from ((f"{name}: {inner}", dtype) for inner, dtype in values(parameter))
    elif isinstance(program, list | tuple):
        for part in program:
            yield from values(part)
    elif isinstance(program, dict):
        yield from values(tuple(program.values()))
    elif isinstance(program, np.ndarray | jax.Array | np.generic):
        if not np.issubdtype(program.dtype, np.integer):  # sizes and such, which no machine computes, may be wide
            yield "parameter", program.dtype
    elif isinstance(program, float | complex):
        yield "parameter", np.dtype(type(program))


def not_integers(function: Callable[..., Any], *arguments: Any) -> set[tuple[str, Any]]:
    """The values of a function's program that are not integers of at most 32 bits."""
    program = jax.make_jaxpr(function)(*arguments)
    every = list(values(program))
    assert len(every) > 1
    return {(name, dtype) for name, dtype in every if dtype not in INTEGERS}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("nonlinearity", "fitness", "rank", "optimizer", "targets"),
    [
        ("clip", "sign", 1, Threshold(), 1),
        ("table", "normalised", 3, Adam(momentum=3, weight_decay=7), 4),
        ("clip", "normalised", 1, Momentum(weight_decay=7), 2),
        ("clip", "normalised", 1, Sgd(weight_decay=7), 2),
    ],
)
def test_update(
    engine: str, nonlinearity: str, fitness: str, rank: int, optimizer: Optimizer, targets: int, bridge: Any
) -> None:
    shape = oracle.Shape(300, 8, 24, 2, nonlinearity)
    population = bridge.population(shape, oracle.Noise(1, rank, 4, 3), 5, 1, fitness, chunk_size=4)
    step = make_update_step(population, make_engine(engine, population), optimizer)
    state = jax.eval_shape(lambda: initial_state(population, optimizer))
    batch = (jnp.zeros((5, 4), jnp.uint16), jnp.zeros((5, 4, targets), jnp.uint16))
    assert not_integers(step, state, batch, jnp.uint32(0), jnp.int32(0)) == set()
    assert not_integers(lambda: initial_state(population, optimizer)) == set()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("nonlinearity", ["clip", "table"])
def test_infer(engine: str, nonlinearity: str, bridge: Any) -> None:
    population = bridge.population(oracle.Shape(300, 8, 24, 2, nonlinearity), oracle.Noise(1, 1, 4), 1)
    parameters = jax.eval_shape(lambda: initialise(population.architecture, 1))
    made = make_engine(engine, population)

    def infer(parameters: Any, tokens: jax.Array, states: jax.Array) -> Any:
        return made.infer(made.prepare(parameters), tokens, states)

    assert not_integers(infer, parameters, jnp.zeros((2, 3), jnp.uint16), jnp.zeros((2, 2, 8), jnp.int8)) == set()


@pytest.mark.parametrize(("nonlinearity", "cell"), [("clip", "mgu"), ("table", "rnn")])
def test_update_by_token(nonlinearity: str, cell: str, bridge: Any) -> None:
    architecture = bridge.architecture(oracle.Shape(5, 8, 16, 2, nonlinearity, cell))
    population = Population(architecture, Token(members=2), 9, 1, NextToken(targets=2), chunk_size=6, tokens=4)
    step = make_update_step(population, XlaEngine(population), Adam())
    state = jax.eval_shape(lambda: initial_state(population, Adam()))
    batch = (jnp.zeros((3, 4), jnp.uint16), jnp.zeros((3, 4, 2), jnp.uint16))
    assert not_integers(partial(step, health=True), state, batch, jnp.uint32(0), jnp.int32(0)) == set()


@pytest.mark.parametrize("top_k", [1, 5, 300])
def test_sample(top_k: int) -> None:
    key = jnp.array(seed_key(1, Domain.SAMPLING), jnp.uint32)

    def draw(logits: jax.Array, position: jax.Array, inverse: jax.Array) -> jax.Array:
        return sample(logits, key, position, inverse, top_k)

    assert not_integers(draw, jnp.zeros(300, jnp.int16), jnp.uint32(0), jnp.int32(256)) == set()


def in_scan(x: jax.Array) -> jax.Array:
    """A float between integers, two loops deep."""
    half = lambda x: jax.jit(lambda x: (x * 0.5).astype(jnp.int32))(x)  # noqa: E731
    return jax.lax.scan(lambda x, _: (jax.lax.fori_loop(0, 3, lambda _, x: half(x), x), None), x, None, 2)[0]


def in_branch(x: jax.Array) -> jax.Array:
    """A float in one branch of a condition."""
    return jax.lax.cond(x > 3, lambda x: x, lambda x: jnp.sqrt(x).astype(jnp.int32), x)


def in_while(x: jax.Array) -> jax.Array:
    """A float in a loop's condition."""
    return jax.lax.while_loop(lambda x: x.astype(jnp.float16) < 9, lambda x: x + 1, x)


def in_constant(x: jax.Array) -> jax.Array:
    """A table of floats that is compared and gone."""
    return x + (jnp.asarray(np.array([0.25, 7.0], np.float32))[x] > 1)


def in_custom_rule(x: jax.Array) -> jax.Array:
    """A float inside a function with its own derivative."""
    return jax.nn.relu(x.astype(jnp.bfloat16)).astype(jnp.int32)


@pytest.mark.parametrize("function", [in_scan, in_branch, in_while, in_constant, in_custom_rule])
def test_a_float_is_found(function: Callable[[jax.Array], jax.Array]) -> None:
    assert not_integers(function, jnp.int32(1))
    assert not_integers(lambda x: x + 1, jnp.int32(1)) == set()
