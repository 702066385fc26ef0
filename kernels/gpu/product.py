"""The perturbed integer matrix product with its whole epilogue, for all tokens of a pair at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic.fixed_point import Array, Rescale, saturate8
from intlm.population.kernels import (
    BLOCK,
    PairNoise,
    Ref,
    Setting,
    call,
    dot,
    inside,
    of_program,
    over,
    product_over,
    rescale_to_int8,
    tabled,
    whole,
)

KINDS = ("value", "magnitude", "residual")


def product(
    setting: Setting,
    kind: str,
    x: Array,
    matrices: Array,
    fan: tuple[int, int],
    rescale: Rescale,
    where: tuple[Array, Array, Array],
    residual: Array | None = None,
    tile: int = 1,
) -> Array:
    """Rescaled x (W ± A B^T)^T of several matrices of one shape.

    x: int8 [pairs, rows, I], rows = 2 members * tokens. matrices: int8 [N, O, I]; both padded. fan: the true (O, I).
    where: the noise's counter: epoch uint32 [1], pairs uint32 [pairs], numbers uint32 [N].
    kind: "value": int16, as it is; "magnitude": int8, saturated; "residual": int8, added to `residual` [pairs, rows, O]
    and saturated. tile: pairs a program. Returns [N, pairs, rows, O].
    """
    count, rows, fan_in = x.shape
    n, fan_out, _ = matrices.shape
    epoch, pairs, numbers = where
    flat = [x.reshape(-1, fan_in), *([] if residual is None else [residual.reshape(-1, fan_out)])]
    arguments = [*tabled("quantile"), epoch, pairs, numbers, *flat, matrices]
    specs = [whole(arguments[0]), whole(epoch), of_program(pairs, tile), whole(numbers)]
    specs += [*(of_program(array, tile * rows) for array in flat), whole(matrices)]
    dtype = jnp.int16 if kind == "value" else jnp.int8
    result = jax.ShapeDtypeStruct((n, count * rows, fan_out), dtype)
    results = pl.BlockSpec((n, tile * rows, fan_out), lambda i: (0, i, 0))
    kernel = partial(_product, setting, kind, fan, rescale)
    product_rows = call(kernel, setting, (count // tile,), specs, result, results, 4 * tile)(*arguments)
    return product_rows.reshape(n, count, rows, fan_out)


def _product(setting: Setting, kind: str, fan: tuple[int, int], rescale: Rescale, *refs: Ref) -> None:
    quantile, epoch, pairs, numbers, x, *residual, matrices, out = refs
    rows, size = x.shape
    count, filled, _ = matrices.shape
    width = min(BLOCK, filled)
    own = [pairs[q] for q in range(pairs.shape[0])]

    def read(n: Array | int, _: None) -> None:
        drawn = PairNoise(setting, quantile, (epoch[0], own, numbers[n]), fan, rows)

        def project(start: Any, length: int) -> Array:
            return dot(x[:, pl.ds(start, length)], drawn.b(start, length))

        along = product_over(size, project, (rows, drawn.columns))

        def outputs(o: Array, _: None) -> None:
            first = o * width

            def multiply(start: Any, length: int) -> Array:
                return dot(x[:, pl.ds(start, length)], matrices[n, pl.ds(first, width), pl.ds(start, length)])

            accumulator = product_over(size, multiply, (rows, width)) + drawn.change(along, first, width)
            if kind == "magnitude":
                value = jnp.abs(rescale_to_int8(rescale, accumulator))
            else:
                value = rescale(accumulator)
            if kind == "residual":
                value = saturate8(residual[0][:, pl.ds(first, width)].astype(jnp.int32) + value)
            if fan[0] < filled:
                value = inside(value, first, fan[0])
            out[n, :, pl.ds(first, width)] = value.astype(out.dtype)

        jax.lax.fori_loop(0, filled // width, outputs, None)

    over(count, read, None)
