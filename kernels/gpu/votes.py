"""The votes of a matrix, sum over pairs and components of f A B^T, by byte products of noise that is never stored."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from intlm.arithmetic import LARGEST_NOISE
from intlm.arithmetic.fixed_point import MAX8, Array
from intlm.population.kernels import Ref, Setting, block_numbers, call, dot, draw, power_of_two, tabled, unsigned, whole

PAIRS = 64  # per product: the length of its sums
TILE = 128
_PROGRAMS = 512  # enough to keep a GPU busy; where there are few tiles, the pairs are divided among programs
_LIMB = 6


def votes(
    setting: Setting,
    shape: tuple[int, int],
    fitness_maximum: int,
    where: tuple[Array, Array, Array],
    fitness: Array,
) -> Array:
    """int32 [N, O, I], the votes of N matrices of one shape [O, I].

    where: epoch uint32 [1], pairs uint32 [pairs], numbers uint32 [N]. fitness: int8 [pairs], at most fitness_maximum.
    """
    epoch, pairs, numbers = where
    tiles = [(min(TILE, max(32, power_of_two(size)))) for size in shape]
    grid = [-(-size // tile) for size, tile in zip(shape, tiles, strict=True)]
    steps = -(-pairs.shape[0] // PAIRS)
    shares = max(1, min(steps, _PROGRAMS // (numbers.shape[0] * grid[0] * grid[1])))
    steps = -(-steps // shares)
    missing = shares * steps * PAIRS - pairs.shape[0]  # padding pairs of fitness 0, which add nothing
    pairs, fitness = jnp.pad(pairs, (0, missing)), jnp.pad(fitness, (0, missing))
    filled = [count * tile for count, tile in zip(grid, tiles, strict=True)]
    result = jax.ShapeDtypeStruct((shares, numbers.shape[0], *filled), jnp.int32)
    arguments = [*tabled("quantile"), epoch, numbers, pairs, fitness]
    specs = [*map(whole, arguments[:2]), pl.BlockSpec((1,), lambda n, i, s: (n,))]
    specs += [pl.BlockSpec((steps * PAIRS,), lambda n, i, s: (s,))] * 2
    of_result = pl.BlockSpec((1, 1, *tiles), lambda n, i, s: (s, n, i // grid[1], i % grid[1]))
    kernel = partial(_votes, setting, shape, grid[1], fitness_maximum * LARGEST_NOISE <= MAX8)
    programs = (numbers.shape[0], grid[0] * grid[1], shares)
    partial_sums = call(kernel, setting, programs, specs, result, of_result, 8)(*arguments)
    return jnp.sum(partial_sums, axis=0)[:, : shape[0], : shape[1]]


def _votes(setting: Setting, shape: tuple[int, int], across: int, small: bool, *refs: Ref) -> None:
    quantile, epoch, numbers, pairs, fitness, out = refs
    perturbation = setting.perturbation
    fan_out, fan_in = shape
    blocks_in, blocks_out = -(-fan_in // 16), -(-fan_out // 16)
    height, width = out.shape[2:]
    place = pl.program_id(1)
    down = jax.lax.div(place, across)
    starts = (down * height, (place - down * across) * width)

    def noise(start: Array, size: int, own: Array, k: Array | int) -> Array:
        """Noise of a factor, int8 [size, PAIRS]."""
        first = unsigned(start) + unsigned(k) * jnp.uint32(blocks_in + blocks_out)
        blocks = block_numbers((size // 16, PAIRS), 0, first)
        return draw(quantile, perturbation, (epoch[0], own[None, :], numbers[0]), blocks, 0)

    def add(step: Array, total: Array) -> Array:
        group = jax.lax.div(step, perturbation.rank)
        k, here = step - group * perturbation.rank, pl.ds(group * PAIRS, PAIRS)
        own = pairs[here]
        a = noise((starts[0] >> 4) + blocks_in, height, own, k).astype(jnp.int32)
        a *= fitness[here].astype(jnp.int32)[None, :]
        b = noise(starts[1] >> 4, width, own, k)
        if small:
            return total + dot(a.astype(jnp.int8), b)
        # The product exceeds int8, so it is split into two limbs; the lower is not negative.
        high, low = a >> _LIMB, a & ((1 << _LIMB) - 1)
        return total + (dot(high.astype(jnp.int8), b) << _LIMB) + dot(low.astype(jnp.int8), b)

    steps = pairs.shape[0] // PAIRS * perturbation.rank
    zero = jnp.zeros((height, width), jnp.int32)
    out[0, 0] = jax.lax.fori_loop(0, steps, add, zero)
