"""The gpu engine's kernels, in Pallas (its Triton compiler): reached as intlm.population.kernels. See docs/gpu.md.

- Rows of a tile are the tokens of one pair of members: its noise is then one vector a matrix, made by the kernel that
  uses it, and its projection x B is 16 more columns of the byte product.
- Sizes are padded with zeros to whole tiles; kernels write zeros beyond the true size.
- Everything is int32 in registers and int8 (pre-activations int16) in memory. Bits are those of docs/numerics.md.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from intlm.arithmetic.fixed_point import (
    MAX8,
    ONE,
    Array,
    Rescale,
    mean_scale,
    q15_multiply,
    rank_multiplier,
    rounding_shift,
    saturate8,
    saturate16,
)
from intlm.arithmetic.random_bits import Domain, seed_key, threefry4x32
from intlm.arithmetic.tables import Tables, tables
from intlm.estimators.member import INPUT_PRODUCT_LIMIT, Perturbation

WHOLE = 256  # a row of up to this many values is one operand; a longer one is read in blocks of BLOCK
BLOCK = 128
_COLUMNS = 16  # the smallest width of a matrix unit's operand

Ref = Any  # a Pallas reference


class Setting(NamedTuple):
    """The settings of all kernels; hashable."""

    perturbation: Perturbation
    interpret: bool  # in Pallas's interpreter, on any processor


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def padded(size: int) -> int:
    """A size filled up to whole tiles."""
    return max(32, power_of_two(size)) if size <= WHOLE else -(-size // BLOCK) * BLOCK


def tabled(*names: str) -> list[Array]:
    """Tables as arguments of a kernel."""
    made: Tables = tables()
    return [jnp.asarray(getattr(made, name)) for name in names]


def call(
    kernel: Any, setting: Setting, grid: tuple[int, ...], specs: list[Any], results: Any, result_specs: Any, warps: int,
    stages: int = 2,
) -> Any:  # fmt: skip
    """`pl.pallas_call` with the options that all kernels share."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=specs,
        out_shape=results,
        out_specs=result_specs,
        interpret=setting.interpret,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
    )


def whole(array: Any) -> Any:
    """The block specification that gives every program the whole array."""
    return pl.BlockSpec(array.shape, lambda *_: (0,) * len(array.shape))


def of_program(array: Any, count: int = 1) -> Any:
    """`count` entries of an array's first axis for each program, all of the others."""
    shape = (count, *array.shape[1:])
    return pl.BlockSpec(shape, lambda i, *_: (i, *(0,) * (len(shape) - 1)))


def dot(x: Array, w: Array) -> Array:
    """x: int8 [rows, n]; w: int8 [columns, n]. Returns int32 [rows, columns]."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def draw(quantile: Ref, perturbation: Perturbation, counter: tuple[Any, Any, Any], blocks: Array, axis: int) -> Array:
    """Noise of the stream `counter`, from these blocks of 16 values (docs/numerics.md, sections 4 and 7).

    counter: uint32, broadcastable to blocks. Returns int8 of the shape of `blocks` with `axis` 16 times as long.
    """
    key = seed_key(perturbation.seed, Domain.NOISE)
    words = [jnp.expand_dims(w, axis + 1) for w in threefry4x32(key, (*counter, blocks))]
    shape = [*blocks.shape]
    shape.insert(axis + 1, 16)
    j = jax.lax.broadcasted_iota(jnp.uint32, shape, axis + 1)
    word = jnp.where(j < 8, jnp.where(j < 4, words[0], words[1]), jnp.where(j < 12, words[2], words[3]))
    octets = (word >> ((j & 3) * 8)) & 255
    shape[axis : axis + 2] = [16 * blocks.shape[axis]]
    return quantile[octets.astype(jnp.int32)].reshape(shape)


def block_numbers(shape: tuple[int, ...], axis: int, first: Any) -> Array:
    """uint32 of a shape: first, first + 1, … along an axis."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.uint32) + first


def over(count: int, component: Any, start: Any) -> Any:
    """The fold of `component` over 0 .. count - 1, without a loop if count is 1."""
    return component(0, start) if count == 1 else jax.lax.fori_loop(0, count, component, start)


class PairNoise:
    """One matrix's noise for the few pairs of a program, drawn when it is needed. Rows are [pairs, 2, tokens]."""

    def __init__(
        self,
        setting: Setting,
        quantile: Ref,
        counter: tuple[Array, list[Array], Array],
        fan: tuple[int, int],
        rows: int,
    ) -> None:
        """counter: epoch, pairs, parameter, uint32 scalars. fan: the true (fan-out, fan-in). rows: of all pairs."""
        self.quantile, self.perturbation = quantile, setting.perturbation
        self.epoch, self.pairs, self.number = counter
        self.blocks_in, blocks_out = (-(-size // 16) for size in reversed(fan))
        self.stride = self.blocks_in + blocks_out
        self.rows = rows
        # Padded, so that all pairs' components are the columns of one product.
        self.rank = max(power_of_two(self.perturbation.rank), _COLUMNS // len(self.pairs))
        self.columns = self.rank * len(self.pairs)
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        half = rows // len(self.pairs) // 2
        self.pair = jax.lax.div(row, 2 * half)
        self.sign = 1 - 2 * jax.lax.rem(jax.lax.div(row, half), 2)

    def _draw(self, pair: Array, blocks: Array, axis: int) -> Array:
        return draw(self.quantile, self.perturbation, (self.epoch, pair, self.number), blocks, axis)

    def b(self, start: Any, size: int) -> Array:
        """B's values start to start + size, both multiples of 16: int8 [columns, size], 0 beyond the rank."""

        def place(shape: tuple[int, ...]) -> tuple[Array, Array]:
            column = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            return jax.lax.div(column, self.rank), jax.lax.rem(column, self.rank)

        own, k = place((self.columns, size // 16))
        pair = self._of(own, self.pairs)
        first = unsigned(start) // 16 + k.astype(jnp.uint32) * jnp.uint32(self.stride)
        drawn = self._draw(pair, block_numbers(k.shape, 1, first), 1)
        return jnp.where(place(drawn.shape)[1] < self.perturbation.rank, drawn, jnp.int8(0))

    @staticmethod
    def _of(own: Array, values: list[Array]) -> Array:
        """For each pair, the value that belongs to it."""
        chosen = values[0]
        for q, value in enumerate(values[1:], 1):
            chosen = jnp.where(own == q, value, chosen)
        return chosen

    def change(self, along: Array, start: Any, size: int) -> Array:
        """The perturbation of outputs start to start + size, with its sign: int32 [rows, size].

        along: int32 [rows, columns], x B of all pairs' components.
        """
        t = scale_projection(along, self.perturbation.rank)
        mine = jax.lax.broadcasted_iota(jnp.int32, t.shape, 1) - self.pair * self.rank

        def component(k: Array | int, total: Array) -> Array:
            first = unsigned(k) * jnp.uint32(self.stride) + jnp.uint32(self.blocks_in) + unsigned(start) // 16
            blocks = block_numbers((len(self.pairs), size // 16), 1, first)
            q = jax.lax.broadcasted_iota(jnp.int32, blocks.shape, 0)
            drawn = self._draw(self._of(q, self.pairs), blocks, 1).astype(jnp.int32)
            q = jax.lax.broadcasted_iota(jnp.int32, drawn.shape, 0)
            rows = [jnp.sum(jnp.where(q == i, drawn, 0), axis=0) for i in range(len(self.pairs))]
            a = self._of(self.pair, [row[None, :] for row in rows])
            chosen = jnp.sum(jnp.where(mine == k, t, 0), axis=1)
            return total + chosen[:, None] * a

        total = over(self.perturbation.rank, component, jnp.zeros((self.rows, size), jnp.int32))
        return rounding_shift(total, self.perturbation.sigma_shift) * self.sign


def unsigned(number: Any) -> Any:
    """A number >= 0, static or traced, as uint32."""
    return jnp.uint32(number) if isinstance(number, int) else number.astype(jnp.uint32)


def product_over(size: int, part: Any, shape: tuple[int, int]) -> Array:
    """The sum of part(start, length) over a padded fan-in, operand by operand: int32 of a shape."""
    length = size if size <= WHOLE else BLOCK
    if length == size:
        return part(0, size)
    zero = jnp.zeros(shape, jnp.int32)
    return jax.lax.fori_loop(0, size // length, lambda i, total: total + part(i * length, length), zero)


def scale_projection(along: Array, rank: int) -> Array:
    """X_c of docs/numerics.md, section 7: int32."""
    held = jnp.clip(along, -INPUT_PRODUCT_LIMIT, INPUT_PRODUCT_LIMIT) * rank_multiplier(rank)
    return saturate16(rounding_shift(held, 11))


def rescale_to_int8(rescale: Rescale, accumulator: Array) -> Array:
    """saturate8(rescale(accumulator)) by one clamp in place of two; int32."""
    m = rescale.multiplier
    high = ((MAX8 << 15) + (1 << 14) - 1) // m
    low = -(((MAX8 << 15) + (1 << 14)) // m)
    return q15_multiply(jnp.clip(rounding_shift(accumulator, rescale.shift), low, high), m)


def norm_rows(x: Array, reciprocal: Ref, count: int) -> Array:
    """`intlm.model.forward.norm` of int32 [rows, padded] rows of `count` values: int8."""
    index = mean_scale(count)(jnp.sum(jnp.abs(x), axis=1))
    return saturate8(q15_multiply(x * ONE, reciprocal[index].astype(jnp.int32)[:, None]))


def inside(values: Array, start: Any, count: int) -> Array:
    """Values [rows, columns], whose first column is number `start`, with columns from number `count` on set to 0."""
    column = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1) + start
    return jnp.where(column < count, values, 0)
