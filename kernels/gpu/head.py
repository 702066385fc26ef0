"""The head and the loss in one kernel: logits are made a block of the vocabulary at a time and never written.

The exponentials are taken below the largest logit of all, so a vocabulary of several blocks is read twice: once for
the largest logit, once for the sum. The result is the same for any blocks.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic.fixed_point import Array, logit_rescale, rounding_shift
from intlm.arithmetic.tables import EXP2_ONE, LOG2_INDEX_BITS, LOGIT_FRACTION_BITS
from intlm.model.parameters import Architecture
from intlm.population.kernels import (
    PairNoise,
    Ref,
    Setting,
    call,
    dot,
    of_program,
    over,
    product_over,
    tabled,
    whole,
)

_LIMB = 12
_WIDTH = 64  # logits of a row held at once: more would not fit on the chip
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

    x: int8 [pairs, rows, H], normed, rows = 2 members * tokens. targets: int32 [pairs, K, tokens]. head: int8 [V, H].
    x and head are padded. where: see `product`.
    """
    epoch, pairs, numbers = where
    count, rows, hidden = x.shape
    arguments = [*tabled("quantile", "exp2", "log2"), epoch, pairs, numbers, x.reshape(-1, hidden), targets, head]
    specs = [*map(whole, arguments[:4]), of_program(pairs, tile), whole(numbers)]
    specs += [of_program(arguments[6], tile * rows), of_program(targets, tile), whole(head)]
    result = jax.ShapeDtypeStruct((count * rows,), jnp.int32)
    kernel = partial(_losses, setting, architecture)
    results = of_program(result, tile * rows)
    return call(kernel, setting, (count // tile,), specs, result, results, 4 * tile)(*arguments).reshape(count, rows)


def exp2_terms(below: Array, exp2: Ref) -> Array:
    """As in intlm.model.loss, by a table that is a kernel's argument."""
    q = jnp.minimum(below >> LOGIT_FRACTION_BITS, 26)
    mantissa = exp2[below & (2**LOGIT_FRACTION_BITS - 1)]
    return (mantissa + ((1 << q) >> 1)) >> q


def _losses(setting: Setting, architecture: Architecture, *refs: Ref) -> None:
    quantile, exp2, log2, epoch, pairs, numbers, x, targets, head, out = refs
    rows, hidden = x.shape
    tile, count, length = targets.shape
    vocabulary, size = architecture.vocab_size, architecture.hidden_size
    rescale = logit_rescale(size)
    width = min(_WIDTH, head.shape[0])
    blocks = head.shape[0] // width
    own = [pairs[q] for q in range(tile)]
    drawn = PairNoise(setting, quantile, (epoch[0], own, numbers[0]), (vocabulary, size), rows)
    along = product_over(hidden, lambda i, part: dot(x[:, pl.ds(i, part)], drawn.b(i, part)), (rows, drawn.columns))

    def logits(v: Array | int) -> Array:
        """A block of logits, those past the vocabulary far below all."""
        first = v * width

        def multiply(start: Any, part: int) -> Array:
            return dot(x[:, pl.ds(start, part)], head[pl.ds(first, width), pl.ds(start, part)])

        accumulator = product_over(hidden, multiply, (rows, width))
        value = rescale(accumulator + drawn.change(along, first, width))
        return value if vocabulary == head.shape[0] else jnp.where(_column(value) + first < vocabulary, value, _LOWEST)

    row = jax.lax.broadcasted_iota(jnp.int32, (rows,), 0)
    pair, place = jax.lax.div(row, 2 * length), jax.lax.rem(row, length)

    def terms(v: Array | int, largest: Array, logits: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, chosen = carry
        e = exp2_terms(largest[:, None] - logits, exp2)
        column = _column(logits) + v * width

        def add(k: Array | int, total: Array) -> Array:
            return total + jnp.sum(jnp.where(column == targets[pair, k, place][:, None], logits, 0), axis=1)

        chosen = over(count, add, chosen)
        return low + jnp.sum(e & (2**_LIMB - 1), axis=1), high + jnp.sum(e >> _LIMB, axis=1), chosen

    zero = jnp.zeros(rows, jnp.int32)
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
    out[...] = sum_of_all - rounding_shift(chosen, count.bit_length() - 1)


def _column(values: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
