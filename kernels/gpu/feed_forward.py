"""The residual of a cell, a norm, both products of a feed-forward, its residual and the next norm, in one kernel.

What is between the products stays on the chip: it is made and used a block of channels at a time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic.fixed_point import STATE_SHIFT, Array, activation_rescale, rounding_shift, saturate8
from intlm.model.parameters import Architecture
from intlm.population.kernels import (
    PairNoise,
    Ref,
    Setting,
    call,
    dot,
    inside,
    norm_rows,
    of_program,
    rescale_to_int8,
    tabled,
    whole,
)

LARGEST = 256  # the hidden size up to which a tile's sums stay in registers
_WIDTH = 64  # channels inside that are made at once


def feed_forward(
    setting: Setting,
    architecture: Architecture,
    x: Array,
    outputs: Array,
    up: Array,
    down: Array,
    where: tuple[Array, Array, Array],
    tile: int = 1,
) -> tuple[Array, Array]:
    """The residual stream after a layer, and its norm.

    x, outputs: int8 [pairs, rows, H], the stream before and the cell's new states, rows = 2 members * tokens. up: int8
    [F, H], down: int8 [H, F], padded. where: see `product`; numbers are those of up and down. Returns int8 [pairs, rows, H]
    twice.
    """
    epoch, pairs, numbers = where
    arguments = [*tabled("quantile", "reciprocal"), epoch, pairs, numbers, x, outputs, up, down]
    specs = [*map(whole, arguments[:3]), of_program(pairs, tile), whole(numbers), of_program(x, tile)]
    specs += [of_program(outputs, tile), whole(up), whole(down)]
    results = [jax.ShapeDtypeStruct(x.shape, jnp.int8)] * 2
    kernel = partial(_kernel, setting, architecture)
    call_it = call(kernel, setting, (x.shape[0] // tile,), specs, results, [of_program(x, tile)] * 2, 4 * tile)
    after, normed = call_it(*arguments)
    return after, normed


def _kernel(setting: Setting, architecture: Architecture, *refs: Ref) -> None:
    quantile, reciprocal, epoch, pairs, numbers, x, states, up, down, after, normed = refs
    tile, rows, hidden = x.shape
    true_hidden, inner = architecture.hidden_size, architecture.feed_forward_size
    width = min(_WIDTH, up.shape[0])
    rescale_up, rescale_down = activation_rescale(true_hidden), activation_rescale(inner)

    def noise(number: Array, fan_in: int, fan_out: int) -> PairNoise:
        return PairNoise(quantile, setting.perturbation, epoch[0], pairs[:], number, fan_in, fan_out)

    noise_up, noise_down = noise(numbers[0], true_hidden, inner), noise(numbers[1], inner, true_hidden)
    added = states[...].reshape(tile * rows, hidden).astype(jnp.int32)
    if architecture.nonlinearity == "table":
        added = rounding_shift(added, STATE_SHIFT)
    x = saturate8(x[...].reshape(tile * rows, hidden).astype(jnp.int32) + added)
    n = norm_rows(x.astype(jnp.int32), reciprocal, true_hidden)
    t = noise_up.scaled(dot(n, noise_up.b(0, hidden)))

    def channels(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, along = carry
        start = i * width
        accumulator = dot(n, up[pl.ds(start, width), :]) + noise_up.change(t, start, width)
        wide = jnp.abs(rescale_to_int8(rescale_up, accumulator)).astype(jnp.int8)
        # Beyond the true size the matrix is 0; the noise is not.
        drawn = inside(noise_down.b(start, width), start, inner) if inner < up.shape[0] else noise_down.b(start, width)
        return total + dot(wide, down[:, pl.ds(start, width)]), along + dot(wide, drawn)

    begin = (
        jnp.zeros((tile * rows, hidden), jnp.int32),
        jnp.zeros((tile * rows, tile * noise_down.rank), jnp.int32),
    )
    total, along = jax.lax.fori_loop(0, up.shape[0] // width, channels, begin)
    total += noise_down.change(noise_down.scaled(along), 0, hidden)
    y = saturate8(x.astype(jnp.int32) + rescale_down(total)).astype(jnp.int32)
    if true_hidden < hidden:
        y = inside(y, 0, true_hidden)
    after[...] = y.astype(jnp.int8).reshape(tile, rows, hidden)
    normed[...] = norm_rows(y, reciprocal, true_hidden).reshape(tile, rows, hidden)
