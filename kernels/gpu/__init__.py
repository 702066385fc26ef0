"""The gpu engine's kernels, in Pallas (its Triton compiler): reached as intlm.population.kernels. See docs/gpu.md.

- Rows of a tile are the tokens of one pair of members: its noise is then one vector a matrix, made by the kernel that
  uses it, and its projection x B is 16 more columns of the byte product.
- Sizes are padded with zeros to whole tiles; whatever a kernel writes beyond the true size is zero too.
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
from intlm.eggroll.perturbation import INPUT_PRODUCT_LIMIT, Perturbation

WHOLE = 512  # a row of up to so many values is one operand; a longer one is taken BLOCK by BLOCK
BLOCK = 128
_COLUMNS = 16  # the least that a matrix unit's operand has

Ref = Any  # a Pallas reference


class Setting(NamedTuple):
    """How all kernels run; hashable."""

    perturbation: Perturbation
    interpret: bool  # in Pallas's interpreter, on any processor


def power_of_two(number: int) -> int:
    """The smallest that is not less."""
    return 1 << (number - 1).bit_length()


def padded(size: int) -> int:
    """A size filled up to whole tiles."""
    return max(32, power_of_two(size)) if size <= WHOLE else -(-size // BLOCK) * BLOCK


def block(size: int) -> int:
    """How much of a padded size is one operand of a product over it."""
    return size if size <= WHOLE else BLOCK


def tabled(*names: str) -> list[Array]:
    """Tables as arguments of a kernel."""
    found: Tables = tables()
    return [jnp.asarray(getattr(found, name)) for name in names]


def call(
    kernel: Any, setting: Setting, grid: tuple[int, ...], specs: list[Any], results: Any, result_specs: Any, warps: int
) -> Any:
    """`pl.pallas_call` as all kernels make it."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=specs,
        out_shape=results,
        out_specs=result_specs,
        interpret=setting.interpret,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
    )


def whole(array: Any) -> Any:
    """All of an array for every program."""
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
    words = [jnp.expand_dims(w, axis + 1) for w in threefry4x32(seed_key(perturbation.seed, Domain.NOISE), (*counter, blocks))]
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


class PairNoise(NamedTuple):
    """One matrix's noise for a program's few pairs, made when it is asked for."""

    quantile: Ref
    perturbation: Perturbation
    epoch: Array  # uint32 scalar
    pairs: Array  # uint32 [pairs], a power of two of them
    number: Array  # uint32 scalar, the parameter's
    fan_in: int
    fan_out: int

    @property
    def rank(self) -> int:
        """Padded, so that all pairs' components are the columns of one product."""
        return max(power_of_two(self.perturbation.rank), _COLUMNS // self.pairs.shape[0])

    def _stride(self) -> tuple[int, int]:
        blocks_in = -(-self.fan_in // 16)
        return blocks_in, blocks_in + -(-self.fan_out // 16)

    def b(self, start: Any, size: int) -> Array:
        """B's values start to start + size, both multiples of 16: int8 [pairs * rank, size], 0 beyond the rank."""
        _, stride = self._stride()
        count, rank = self.pairs.shape[0], self.rank
        shape = (count, rank, size // 16)
        k = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        blocks = block_numbers(shape, 2, jnp.uint32(start) // 16) + k.astype(jnp.uint32) * jnp.uint32(stride)
        drawn = draw(self.quantile, self.perturbation, (self.epoch, self.pairs[:, None, None], self.number), blocks, 2)
        k = jax.lax.broadcasted_iota(jnp.int32, (count, rank, size), 1)
        return jnp.where(k < self.perturbation.rank, drawn, jnp.int8(0)).reshape(count * rank, size)

    def a(self, k: Any, start: Any, size: int) -> Array:
        """A_k's values start to start + size, both multiples of 16: int8 [pairs, size]."""
        blocks_in, stride = self._stride()
        first = jnp.uint32(k) * jnp.uint32(stride) + jnp.uint32(blocks_in) + jnp.uint32(start) // 16
        blocks = block_numbers((self.pairs.shape[0], size // 16), 1, first)
        return draw(self.quantile, self.perturbation, (self.epoch, self.pairs[:, None], self.number), blocks, 1)

    def scaled(self, along: Array) -> Array:
        """x B of all pairs' components, int32 [rows, pairs * rank], to t."""
        return scale_projection(along, self.perturbation.rank)

    def change(self, t: Array, start: Any, size: int) -> Array:
        """What is added to outputs start to start + size: int32 [rows, size], of the member that subtracts negated.

        t: int32 [rows, pairs * rank]. Rows are [pairs, 2, tokens].
        """
        rows, count, rank = t.shape[0], self.pairs.shape[0], self.rank
        own = jax.lax.broadcasted_iota(jnp.int32, t.shape, 0) // (rows // count) * rank
        column = jax.lax.broadcasted_iota(jnp.int32, t.shape, 1)

        def component(k: Any, total: Array) -> Array:
            chosen = jnp.sum(jnp.where(column == own + k, t, 0), axis=1)
            a = self.a(k, start, size).astype(jnp.int32)
            return total + (chosen.reshape(count, rows // count, 1) * a[:, None, :]).reshape(rows, size)

        zero = jnp.zeros((rows, size), jnp.int32)
        real = self.perturbation.rank
        total = component(0, zero) if real == 1 else jax.lax.fori_loop(0, real, component, zero)
        total = rounding_shift(total, self.perturbation.sigma_shift)
        second = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) // (rows // count // 2) % 2
        return total * (1 - 2 * second)


def scale_projection(along: Array, rank: int) -> Array:
    """t of docs/numerics.md, section 7: int32."""
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
    """Values [rows, columns] whose columns start at `start`, those from `count` on set to 0."""
    column = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1) + start
    return jnp.where(column < count, values, 0)
