"""The recurrent half of a cell over many tokens: the states of a tile of members stay on the chip from token to token.

Rows of a tile are members here, for a state depends on the one before. Each pair has its own noise, which is read from
memory: of one layer's two matrices it is small, and it is made once a text.
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
from intlm.eggroll.perturbation import Factors
from intlm.model import SEPARATOR
from intlm.model.parameters import Architecture
from intlm.population.kernels import Ref, Setting, call, dot, inside, of_program, over, scale_projection, tabled, whole

LARGEST = 256  # the hidden size up to which a tile's sums stay in registers
PAIRS = 32  # of a tile
PADDING = -1  # a token that is none: it leaves the states as they are


class Cells(NamedTuple):
    """What the recurrence of one layer reads. The first axis of 2 is that of gate and candidate."""

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
    length = tokens.shape[1]
    table = architecture.nonlinearity == "table"
    rescale = activation_rescale(architecture.hidden_size, STATE_SHIFT if table else 0)
    row = jax.lax.broadcasted_iota(jnp.int32, (2 * tile,), 0)
    pair, member = row >> 1, row & 1
    sign = (1 - 2 * member)[:, None]

    def preactivation(n: int, x: Array, place: Array) -> Array:
        """Of the gate (0) or the candidate (1), from a state: int32 [rows, H]."""
        wide = x.astype(jnp.int32)

        def component(k: Array | int, total: Array) -> Array:
            along = jnp.sum(wide * b[n, pair, k, :].astype(jnp.int32), axis=1)
            return total + scale_projection(along, rank)[:, None] * a[n, pair, k, :].astype(jnp.int32)

        change = over(rank, component, jnp.zeros(x.shape, jnp.int32))
        accumulator = dot(x, matrices[n]) + rounding_shift(change, sigma_shift) * sign
        others = from_input[n, pair, place, :].astype(jnp.int32) + biases[n, pair, member, :].astype(jnp.int32)
        return rescale(accumulator) + others

    def read(t: Array, state: Array) -> Array:
        token = tokens[pair, t][:, None]
        place = member * length + t
        old = jnp.where(token == SEPARATOR, 0, state.astype(jnp.int32))
        f = gate(preactivation(0, old.astype(jnp.int8), place), sigmoid if table else None)
        reset = q15_multiply(f * old, GATE_MULTIPLIER).astype(jnp.int8)
        c = candidate(preactivation(1, reset, place), tanh if table else None)
        new = q15_multiply((2 * GATE_ONE - f) * old + f * c, GATE_MULTIPLIER)
        if architecture.hidden_size < hidden:
            new = inside(new, 0, architecture.hidden_size)
        new = jnp.where(token == PADDING, old, new).astype(jnp.int8)
        out[pair, place, :] = new
        return new

    jax.lax.fori_loop(0, steps, read, states[pair, member, :])
