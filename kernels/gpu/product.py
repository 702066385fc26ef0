"""The perturbed integer matrix product with its whole epilogue, for all tokens of a pair at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic.fixed_point import Array, Rescale, saturate8
from intlm.population.kernels import (
    BLOCK,
    PairNoise,
    Ref,
    Setting,
    block,
    call,
    dot,
    inside,
    of_program,
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
    count, rows, _ = x.shape
    epoch, pairs, numbers = where
    added = [] if residual is None else [residual]
    arguments = [*tabled("quantile"), epoch, pairs, numbers, x, *added, matrices]
    specs = [whole(arguments[0]), whole(epoch), of_program(pairs, tile), whole(numbers), of_program(x, tile)]
    specs += [*(of_program(r, tile) for r in added), whole(matrices)]
    dtype = jnp.int16 if kind == "value" else jnp.int8
    shape = (matrices.shape[0], count, rows, matrices.shape[1])
    result = jax.ShapeDtypeStruct(shape, dtype)
    results = pl.BlockSpec((shape[0], tile, *shape[2:]), lambda i: (0, i, 0, 0))
    kernel = partial(_kernel, setting, kind, fan, rescale)
    return call(kernel, setting, (count // tile,), specs, result, results, 4 * tile)(*arguments)


def _kernel(setting: Setting, kind: str, fan: tuple[int, int], rescale: Rescale, *refs: Ref) -> None:
    quantile, epoch, pairs, numbers, x, *added, w, out = refs
    tile, rows, size = x.shape
    fan_out, fan_in = fan
    piece, width = block(size), min(BLOCK, w.shape[1])

    def operand(i: Array | int) -> Array:
        return x[:, :, pl.ds(i * piece, piece)].reshape(tile * rows, piece)

    for n in range(w.shape[0]):
        drawn = PairNoise(quantile, setting.perturbation, epoch[0], pairs[:], numbers[n], fan_in, fan_out)

        def over_inputs(function, start: Array) -> Array:  # type: ignore[no-untyped-def]
            if piece == size:
                return function(0)
            return jax.lax.fori_loop(0, size // piece, lambda i, total: total + function(i), start)

        columns = tile * drawn.rank
        along = over_inputs(
            lambda i: dot(operand(i), drawn.b(i * piece, piece)),  # noqa: B023 (called at once)
            jnp.zeros((tile * rows, columns), jnp.int32),
        )
        t = drawn.scaled(along)

        def outputs(o: Array, _: None, n: int = n, drawn: PairNoise = drawn, t: Array = t) -> None:
            start = o * width
            accumulator = over_inputs(
                lambda i: dot(operand(i), w[n, pl.ds(start, width), pl.ds(i * piece, piece)]),
                jnp.zeros((tile * rows, width), jnp.int32),
            )
            accumulator += drawn.change(t, start, width)
            if kind == "magnitude":
                value = jnp.abs(rescale_to_int8(rescale, accumulator))
            else:
                value = rescale(accumulator)
            if kind == "residual":
                before = added[0][:, :, pl.ds(start, width)].reshape(tile * rows, width)
                value = saturate8(before.astype(jnp.int32) + value)
            if fan_out < w.shape[1]:
                value = inside(value, start, fan_out)
            out[n, :, :, pl.ds(start, width)] = value.astype(out.dtype).reshape(tile, rows, width)

        jax.lax.fori_loop(0, w.shape[1] // width, outputs, None)
