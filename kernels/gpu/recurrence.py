"""The recurrent half of a cell over many tokens: the states of a tile of members stay on the chip from token to token.

Rows of a tile are members here, since a state depends on the one before. Each pair has its own noise, which is read
from memory: that of one layer's two matrices is small, and it is drawn once per text.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic.fixed_point import (
    GATE_MULTIPLIER,
    GATE_ONE,
    STATE_SHIFT,
    Array,
    activation_rescale,
    q15_multiply,
    rounding_shift,
    saturate8,
)
from intlm.estimators.member import Factors
from intlm.model import SEPARATOR
from intlm.model.parameters import Architecture
from intlm.population.kernels import (
    BLOCK,
    Ref,
    Setting,
    call,
    dot,
    inside,
    of_program,
    over,
    power_of_two,
    scale_projection,
    tabled,
    whole,
)

LARGEST = 512  # the hidden size up to which the states of a tile stay in registers
PAIRS = 16  # per tile: twice as many would spill registers (docs/gpu.md)
PADDING = -1  # not a real token: it leaves the states as they are


Parts = tuple[Array, ...]


class Cells(NamedTuple):
    """The inputs of one layer's recurrence. The first axis of 2 is that of gate and candidate."""

    matrices: Array  # int8 [2, H, H], padded
    noise: Factors  # int8 [2, pairs, rank, H]
    biases: Array  # int8 [2, pairs, 2, H], perturbed
    from_input: Array  # int16 [2, pairs, 2 * tokens, H]: the products with the input, rescaled


def recurrence(
    setting: Setting, architecture: Architecture, cells: Cells, tokens: Array, states: Array, steps: int, tile: int
) -> Array:
    """States after each token: int8 [pairs, 2 * tokens, H]; those after `steps` are not defined.

    tokens: int32 [pairs, tokens], the same for both members. states: int8 [pairs, 2, H]. tile: pairs a program.
    """
    matrices, (a, b), biases, from_input = cells
    count, _, hidden = states.shape
    arguments = [*tabled("sigmoid", "tanh"), tokens, states, matrices, a, b, biases, from_input]

    def second(array: Array) -> pl.BlockSpec:
        return pl.BlockSpec((2, tile, *array.shape[2:]), lambda i: (0, i, 0, 0))

    specs = [*map(whole, arguments[:2]), of_program(tokens, tile), of_program(states, tile), whole(matrices)]
    specs += [second(array) for array in (a, b, biases, from_input)]
    result = jax.ShapeDtypeStruct((count, 2 * tokens.shape[1], hidden), jnp.int8)
    kernel = partial(_recurrence, setting, architecture, steps)
    return call(kernel, setting, (count // tile,), specs, result, of_program(result, tile), 8, stages=1)(*arguments)


def gate(x: Array, sigmoid: Ref | None) -> Array:
    """As in intlm.model.forward, by a table that is a kernel's argument."""
    x = saturate8(x).astype(jnp.int32)
    return (x if sigmoid is None else sigmoid[x + 128].astype(jnp.int32)) + GATE_ONE


def candidate(x: Array, tanh: Ref | None) -> Array:
    """As in intlm.model.forward, by a table that is a kernel's argument."""
    x = saturate8(x).astype(jnp.int32)
    return x if tanh is None else tanh[x + 128].astype(jnp.int32)


def _recurrence(setting: Setting, architecture: Architecture, steps: int, *refs: Ref) -> None:
    sigmoid, tanh, tokens, states, matrices, a, b, biases, from_input, out = refs
    rank, sigma_shift = setting.perturbation.rank, setting.perturbation.sigma_shift
    tile, _, hidden = states.shape
    length, rows = tokens.shape[1], 2 * tile
    table = architecture.nonlinearity == "table"
    rescale = activation_rescale(architecture.hidden_size, STATE_SHIFT if table else 0)
    row = jax.lax.broadcasted_iota(jnp.int32, (rows,), 0)
    pair, member = row >> 1, row & 1
    sign = (1 - 2 * member)[:, None]
    component_number = jax.lax.broadcasted_iota(jnp.int32, (rows, power_of_two(rank)), 1)
    # A state is held in parts, so that only one part's sums are held at a time.
    width = min(BLOCK, hidden)
    parts = [slice(start, start + width) for start in range(0, hidden, width)]

    def project(n: int, x: Parts) -> Array:
        """X_c of docs/numerics.md: int32 [rows, rank]."""

        def component(k: Array | int, t: Array) -> Array:
            each = [
                jnp.sum(x_i.astype(jnp.int32) * b[n, pair, k, part].astype(jnp.int32), axis=1)
                for x_i, part in zip(x, parts, strict=True)
            ]
            return jnp.where(component_number == k, scale_projection(sum(each[1:], each[0]), rank)[:, None], t)

        return over(rank, component, jnp.zeros(component_number.shape, jnp.int32))

    def preactivation(n: int, x: Parts, t: Array, part: slice, place: Array) -> Array:
        """The pre-activation of the gate (0) or the candidate (1), from a state: int32 [rows, width]."""

        def component(k: Array | int, total: Array) -> Array:
            chosen = jnp.sum(jnp.where(component_number == k, t, 0), axis=1)
            return total + chosen[:, None] * a[n, pair, k, part].astype(jnp.int32)

        change = rounding_shift(over(rank, component, jnp.zeros((rows, width), jnp.int32)), sigma_shift) * sign
        products = [dot(x_i, matrices[n, part, inner]) for x_i, inner in zip(x, parts, strict=True)]
        others = from_input[n, pair, place, part].astype(jnp.int32) + biases[n, pair, member, part].astype(jnp.int32)
        return rescale(sum(products, change)) + others

    def read(step: Array, state: Parts) -> Parts:
        token = tokens[pair, step][:, None]
        place = member * length + step
        state = tuple(jnp.where(token == SEPARATOR, jnp.int8(0), part) for part in state)
        t = project(0, state)
        gates = [gate(preactivation(0, state, t, part, place), sigmoid if table else None) for part in parts]
        reset = tuple(
            q15_multiply(f * old.astype(jnp.int32), GATE_MULTIPLIER).astype(jnp.int8)
            for f, old in zip(gates, state, strict=True)
        )
        gates = [f.astype(jnp.int16) for f in gates]  # int16 takes fewer registers until the second product
        t = project(1, reset)
        after = []
        for part, f, old in zip(parts, gates, state, strict=True):
            c = candidate(preactivation(1, reset, t, part, place), tanh if table else None)
            f, before = f.astype(jnp.int32), old.astype(jnp.int32)
            new = q15_multiply((2 * GATE_ONE - f) * before + f * c, GATE_MULTIPLIER)
            if architecture.hidden_size < hidden:
                new = inside(new, part.start, architecture.hidden_size)
            new = jnp.where(token == PADDING, old, new.astype(jnp.int8))
            out[pair, place, part] = new
            after.append(new)
        return tuple(after)

    jax.lax.fori_loop(0, steps, read, tuple(states[pair, member, part] for part in parts))
