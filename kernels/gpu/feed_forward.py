"""The residual of a cell, a norm, both products of a feed-forward, its residual and the next norm, in one kernel.

The values between the products stay on the chip: they are computed and used one block of channels at a time.
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
_WIDTH = 64  # inner channels computed at a time


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
    [F, H], down: int8 [H, F], padded. where: see `product`; numbers are those of up and down. Returns int8
    [pairs, rows, H] twice.
    """
    epoch, pairs, numbers = where
    count, rows, hidden = x.shape
    arguments = [*tabled("quantile", "reciprocal"), epoch, pairs, numbers]
    arguments += [x.reshape(-1, hidden), outputs.reshape(-1, hidden), up, down]
    streams = of_program(arguments[5], tile * rows)
    specs = [
        *map(whole, arguments[:3]),
        of_program(pairs, tile),
        whole(numbers),
        streams,
        streams,
        whole(up),
        whole(down),
    ]
    result = jax.ShapeDtypeStruct((count * rows, hidden), jnp.int8)
    kernel = partial(_feed_forward, setting, architecture)
    results = call(kernel, setting, (count // tile,), specs, [result] * 2, [streams] * 2, 4 * tile)(*arguments)
    after, normed = (array.reshape(x.shape) for array in results)
    return after, normed


def _feed_forward(setting: Setting, architecture: Architecture, *refs: Ref) -> None:
    quantile, reciprocal, epoch, pairs, numbers, before, states, up, down, after, normed = refs
    rows, hidden = before.shape
    size, inner = architecture.hidden_size, architecture.feed_forward_size
    width = min(_WIDTH, up.shape[0])
    rescale_up, rescale_down = activation_rescale(size), activation_rescale(inner)
    own = [pairs[q] for q in range(pairs.shape[0])]
    noise_up = PairNoise(setting, quantile, (epoch[0], own, numbers[0]), (inner, size), rows)
    noise_down = PairNoise(setting, quantile, (epoch[0], own, numbers[1]), (size, inner), rows)

    added = states[...].astype(jnp.int32)
    if architecture.nonlinearity == "table":
        added = rounding_shift(added, STATE_SHIFT)
    x = saturate8(before[...].astype(jnp.int32) + added)
    n = norm_rows(x.astype(jnp.int32), reciprocal, size)
    along_up = dot(n, noise_up.b(0, hidden))

    def channels(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, along = carry
        start = i * width
        accumulator = dot(n, up[pl.ds(start, width), :]) + noise_up.change(along_up, start, width)
        wide = jnp.abs(rescale_to_int8(rescale_up, accumulator))
        if inner < up.shape[0]:  # there the matrices are 0, but the noise is not
            wide = inside(wide, start, inner)
        wide = wide.astype(jnp.int8)
        return total + dot(wide, down[:, pl.ds(start, width)]), along + dot(wide, noise_down.b(start, width))

    begin = (jnp.zeros((rows, hidden), jnp.int32), jnp.zeros((rows, noise_down.columns), jnp.int32))
    total, along = jax.lax.fori_loop(0, up.shape[0] // width, channels, begin)
    total += noise_down.change(along, 0, hidden)
    y = saturate8(x.astype(jnp.int32) + rescale_down(total)).astype(jnp.int32)
    if size < hidden:
        y = inside(y, 0, size)
    after[...] = y.astype(jnp.int8)
    normed[...] = norm_rows(y, reciprocal, size)
