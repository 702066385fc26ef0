"""The head and the loss in one kernel: logits are made a block of the vocabulary at a time and never written.

The exponentials are taken below the largest logit of all, so a vocabulary of several blocks is read twice: once for
that, once for the sum. The result is the same for any blocks.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic.fixed_point import Array, logit_rescale, rounding_shift
from intlm.arithmetic.tables import EXP2_ONE, LOG2_INDEX_BITS, LOGIT_FRACTION_BITS
from intlm.model.parameters import Architecture
from intlm.population.kernels import (
    BLOCK,
    PairNoise,
    Ref,
    Setting,
    block,
    call,
    dot,
    of_program,
    tabled,
    whole,
)

_LIMB = 12
_ONE_PASS = 256  # the padded vocabulary up to which all logits of a tile are there at once
_LOWEST = -(1 << 20)  # below any logit, and any sum of one and a term's smallest


def losses(
    setting: Setting,
    architecture: Architecture,
    x: Array,
    targets: Array,
    head: Array,
    where: tuple[Array, Array, Array],
    tile: int = 1,
) -> Array:
    """The loss of each row's prediction: int32 [pairs, rows], 256 = one bit (docs/numerics.md, section 6).

    x: int8 [pairs, rows, H], normed, rows = 2 members * tokens. targets: int32 [pairs, K, tokens]. head: int8 [V, H], both
    padded. where: see `product`.
    """
    epoch, pairs, numbers = where
    arguments = [*tabled("quantile", "exp2", "log2"), epoch, pairs, numbers, x, targets, head]
    specs = [*map(whole, arguments[:4]), of_program(pairs, tile), whole(numbers)]
    specs += [of_program(x, tile), of_program(targets, tile), whole(head)]
    result = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
    kernel = partial(_kernel, setting, architecture)
    return call(kernel, setting, (x.shape[0] // tile,), specs, result, of_program(result, tile), 4 * tile)(*arguments)


def exp2_terms(below: Array, exp2: Ref) -> Array:
    """As in intlm.model.loss, by a table that is a kernel's argument."""
    q = jnp.minimum(below >> LOGIT_FRACTION_BITS, 26)
    mantissa = exp2[below & (2**LOGIT_FRACTION_BITS - 1)]
    return (mantissa + ((1 << q) >> 1)) >> q


def _kernel(setting: Setting, architecture: Architecture, *refs: Ref) -> None:
    quantile, exp2, log2, epoch, pairs, numbers, x, targets, head, out = refs
    tile, rows, hidden = x.shape
    vocabulary, true_hidden = architecture.vocab_size, architecture.hidden_size
    rescale = logit_rescale(true_hidden)
    piece = block(hidden)
    width = head.shape[0] if head.shape[0] <= _ONE_PASS else BLOCK
    blocks, total_rows = head.shape[0] // width, tile * rows
    drawn = PairNoise(quantile, setting.perturbation, epoch[0], pairs[:], numbers[0], true_hidden, vocabulary)

    def operand(i: Array | int) -> Array:
        return x[:, :, pl.ds(i * piece, piece)].reshape(total_rows, piece)

    def over_inputs(function, start: Array) -> Array:  # type: ignore[no-untyped-def]
        if piece == hidden:
            return function(0)
        return jax.lax.fori_loop(0, hidden // piece, lambda i, total: total + function(i), start)

    t = drawn.scaled(
        over_inputs(
            lambda i: dot(operand(i), drawn.b(i * piece, piece)),
            jnp.zeros((total_rows, tile * drawn.rank), jnp.int32),
        )
    )

    def logits(v: Array | int) -> Array:
        """A block of them, those past the vocabulary far below all."""
        start = v * width
        accumulator = over_inputs(
            lambda i: dot(operand(i), head[pl.ds(start, width), pl.ds(i * piece, piece)]),
            jnp.zeros((total_rows, width), jnp.int32),
        )
        value = rescale(accumulator + drawn.change(t, start, width))
        return jnp.where(_column(value) + start < vocabulary, value, _LOWEST)

    row = jax.lax.broadcasted_iota(jnp.int32, (total_rows,), 0)
    pair, place = row // rows, row % (rows // 2)

    def terms(v: Array | int, largest: Array, logits: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, chosen = carry
        e = exp2_terms(largest[:, None] - logits, exp2)
        column = _column(logits) + v * width

        def add(k: Array | int, total: Array) -> Array:
            return total + jnp.sum(jnp.where(column == targets[pair, k, place][:, None], logits, 0), axis=1)

        count = targets.shape[1]
        chosen = add(0, chosen) if count == 1 else jax.lax.fori_loop(0, count, add, chosen)
        return low + jnp.sum(e & (2**_LIMB - 1), axis=1), high + jnp.sum(e >> _LIMB, axis=1), chosen

    zero = jnp.zeros(total_rows, jnp.int32)
    if blocks == 1:
        only = logits(0)
        largest = jnp.max(only, axis=1)
        low, high, chosen = terms(0, largest, only, (zero, zero, zero))
    else:
        largest = jax.lax.fori_loop(
            0, blocks, lambda v, most: jnp.maximum(most, jnp.max(logits(v), axis=1)), zero + _LOWEST
        )
        low, high, chosen = jax.lax.fori_loop(
            0, blocks, lambda v, carry: terms(v, largest, logits(v), carry), (zero, zero, zero)
        )
    high += low >> _LIMB
    exponent = 31 - jax.lax.clz(high)
    index = (high >> (exponent - LOG2_INDEX_BITS)) & (2**LOG2_INDEX_BITS - 1)
    whole_bits = (exponent + _LIMB - EXP2_ONE) << LOGIT_FRACTION_BITS
    sum_of_all = largest + whole_bits + log2[index].astype(jnp.int32)
    mean = rounding_shift(chosen, targets.shape[1].bit_length() - 1)
    out[...] = (sum_of_all - mean).reshape(tile, rows)


def _column(values: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
