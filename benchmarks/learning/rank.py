"""How far the expected low-rank update is from the full-rank one, against rank and dimension (arXiv 2511.16652).

    python benchmarks/learning/rank.py --out docs/pictures/rank.png

A population of pairs perturbs one n x n matrix, and an update is the mean of fitness times perturbation: a low-rank
one as in docs/numerics.md, section 7, or a full-rank one, a Gaussian byte for each element. All of it is integers, as
in training; only the comparison of the sums is in floating point. The sums are the same on every machine.

The fitness is not linear: the matrix maps some fixed inputs through a product, its rescaling, saturation and the tanh
table; the loss is the outputs' absolute difference from those of another matrix, and a pair's fitness the difference
of its losses. A dimension has several such problems, 32 outputs in all, whose updates are compared as one vector.

Every update is estimated twice, from as many pairs that share no noise. The noise floor is the difference between two
full-rank estimates; products of the two estimates give distance, length and cosine without it, on average.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8, Array, activation_rescale, rank_multiplier, rounding_shift, saturate8
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key
from intlm.arithmetic.tables import tables
from intlm.estimators.member import Factors, Noise, Perturbation, PerturbedWeights, parameter_noise, votes
from intlm.model.forward import matrix_product
from intlm.model.parameters import Kind, Layered, Specification
from intlm.tracking.table import format_table

SEED = 0
INPUTS = 4
OUTPUTS = 32  # of a dimension's problems together
HALVES = 2
COLOURS = ("#c1440e", "#2f6ea5", "#3f8f5b", "#8a5ba6")
MARKERS = ("o", "s", "D", "^")
GREY = "#5b6470"


class Setting(NamedTuple):
    """The setting of an estimate; hashable, so that it can be static under jit."""

    dimension: int
    rank: int  # 0 for full rank
    sigma_shift: int = 0

    @property
    def problems(self) -> int:
        """The number of problems, such that every dimension has equally many outputs to average over."""
        return max(1, OUTPUTS // self.dimension)

    @property
    def specification(self) -> Specification:
        """The specification of the matrix."""
        return Specification("w", (self.dimension, self.dimension), Kind.MATRIX)

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation settings as in training, with new noise in each epoch."""
        return Perturbation(SEED, self.rank, self.sigma_shift, noise_reuse=1)


class Problem(NamedTuple):
    """A matrix, its inputs, and the target outputs."""

    w: Array  # int8 [n, n]
    x: Array  # int8 [inputs, n]
    target: Array  # int32 [inputs, n]


def problem(dimension: int, number: Array) -> Problem:
    """The problem with this number, uint32: standard deviations of 16, the targets those of another matrix."""

    def draw(which: int, rows: int) -> Array:
        octets = random_bytes(seed_key(SEED, Domain.INITIALISATION), (which, 0, number, 0), rows * dimension)
        return jnp.asarray(tables().quantile)[octets].reshape(rows, dimension)

    x = draw(2, INPUTS)
    return Problem(draw(0, dimension), x, output(matrix_product(x, draw(1, dimension))))


def output(accumulator: Array) -> Array:
    """int32 S + [n] to int32 in [-127, 127]: rescaled, saturated, and through the tanh table."""
    x = saturate8(activation_rescale(accumulator.shape[-1])(accumulator))
    return jnp.asarray(tables().tanh)[x.astype(jnp.int32) + 128].astype(jnp.int32)


def noise(setting: Setting, half: Array, pairs: Array) -> Noise:
    """Factors, or int8 [pairs, n, n] for full rank. Every rank and half has a stream of its own.

    half: uint32 scalar. pairs: uint32 [pairs].
    """
    epoch = HALVES * jnp.uint32(setting.rank) + half
    if setting.rank:
        return parameter_noise(setting.specification, jnp.uint32(0), setting.perturbation, epoch, pairs)
    octets = random_bytes(seed_key(SEED, Domain.NOISE), (epoch, pairs, 0, 0), setting.dimension**2)
    return jnp.asarray(tables().quantile)[octets].reshape(-1, setting.dimension, setting.dimension)


def accumulators(setting: Setting, drawn: Noise, w: Array, x: Array) -> Array:
    """The product with both members' matrices: int32 [inputs, pairs, 2, n]."""
    if isinstance(drawn, Factors):
        weights = PerturbedWeights(Layered({"w": w}, {}), Layered({"w": drawn}, {}), setting.perturbation)
        shape = (drawn.a.shape[0], 1, setting.dimension)  # one input for both members
        return jax.vmap(lambda row: weights.multiply("w", jnp.broadcast_to(row, shape)))(x)
    change = matrix_product(drawn, x)  # [pairs, n, inputs]
    change = rounding_shift(jnp.moveaxis(change, -1, 0), setting.sigma_shift)[:, :, None]
    return matrix_product(x, w)[:, None, None] + change * jnp.array([1, -1], jnp.int32)[:, None]


def fitness(setting: Setting, drawn: Noise, given: Problem) -> Array:
    """The pairs' loss differences, shifted to what an int8 surely holds: int8 [pairs]."""
    error = jnp.abs(output(accumulators(setting, drawn, given.w, given.x)) - given.target[:, None, None])
    losses = jnp.sum(error, axis=(0, 3))  # at most 254 * inputs * n
    shift = (2 * INPUTS * setting.dimension - 1).bit_length()
    return rounding_shift(losses[:, 1] - losses[:, 0], shift).astype(jnp.int8)


@partial(jax.jit, static_argnums=(0, 1))
def chunk_votes(setting: Setting, size: int, half: Array, first: Array) -> Array:
    """The sum over `size` pairs of fitness times perturbation: int32 [problems, n, n].

    A sum is at most 127 * 46^2 * size * rank < 2^31.
    """
    drawn = noise(setting, half, first + jnp.arange(size, dtype=jnp.uint32))

    def of_problem(number: Array) -> Array:
        scores = fitness(setting, drawn, problem(setting.dimension, number))
        if isinstance(drawn, Factors):
            return votes(setting.specification, drawn, scores, MAX8)
        return jnp.einsum("p,poi->oi", scores, drawn, preferred_element_type=jnp.int32)

    return jax.vmap(of_problem)(jnp.arange(setting.problems, dtype=jnp.uint32))


def scale(setting: Setting) -> float:
    """The factor that brings A B^T to the scale of full-rank noise: about 1 / (16 sqrt(rank))."""
    return rank_multiplier(setting.rank) / 2**11 if setting.rank else 1.0


def variance(setting: Setting) -> float:
    """The variance of an element of the perturbation at that scale: 254.4, and within 1.8 % of it for a low rank."""
    of_noise = float(np.mean(tables().quantile.astype(np.int64) ** 2))
    return of_noise**2 * setting.rank * scale(setting) ** 2 if setting.rank else of_noise


def estimate(setting: Setting, pairs: int) -> np.ndarray:
    """Two independent estimates of the mean update, from `pairs` pairs each, a power of two and at least 2^13.

    float64 [halves, problems, n, n]: the mean of fitness times perturbation, over the perturbation's variance.
    """
    size = 2**12 // setting.rank if setting.rank else min(2**13, 2**19 // setting.dimension**2)
    sums = np.zeros((HALVES, setting.problems, setting.dimension, setting.dimension), np.int64)
    for half in range(HALVES):
        for first in range(0, pairs, size):
            sums[half] += np.asarray(chunk_votes(setting, size, jnp.uint32(half), jnp.uint32(first)))
    return sums / pairs * (scale(setting) / variance(setting))


class Comparison(NamedTuple):
    """A low-rank update beside the full-rank one, whose length is 1."""

    distance: float  # as estimated, noise and all
    corrected: float  # without the noise
    floor: float  # between two full-rank estimates, each from both halves' pairs
    length: float
    cosine: float
    direction: float  # the distance that is left once both have the same length


def compare(low: np.ndarray, full: np.ndarray) -> Comparison:
    """Compare estimates [halves, ...]: a product of different halves has no bias, since their noise is independent."""
    size = np.sqrt(np.sum(full[0] * full[1]))
    low, full = low / size, full / size
    gap = low - full
    length = np.sqrt(max(0.0, np.sum(low[0] * low[1])))
    cosine = np.sum(low.mean(0) * full.mean(0)) / length
    return Comparison(
        float(np.linalg.norm(gap.mean(0))),
        float(np.sqrt(max(0.0, np.sum(gap[0] * gap[1])))),
        float(np.linalg.norm(full[0] - full[1]) / np.sqrt(2)),
        float(length),
        float(cosine),
        float(np.sqrt(max(0.0, 2 - 2 * cosine))),
    )


Results = dict[int, dict[int, Comparison]]  # by dimension, then rank


def picture(results: Results, path: Path, title: str) -> None:
    """Draw distance against rank to the PNG `path`, 1200 x 750 pixels: one line per dimension."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.08, 0.09, 0.78, 0.81))
    ranks = sorted({rank for of_dimension in results.values() for rank in of_dimension})
    first = max(of_dimension[ranks[0]].corrected for of_dimension in results.values())
    guide = [1.25 * first * ranks[0] / rank for rank in ranks]
    axes.plot(ranks, guide, color=GREY, linewidth=1.0, linestyle=":", label="slope of 1 / rank")
    for colour, marker, (dimension, of_dimension) in zip(COLOURS, MARKERS, results.items(), strict=False):
        distances = {rank: c.corrected for rank, c in of_dimension.items() if c.corrected}
        floor = of_dimension[ranks[0]].floor
        axes.plot(
            list(distances), list(distances.values()), color=colour, linewidth=1.5, label=f"{dimension} x {dimension}"
        )
        for rank, distance in distances.items():
            face = colour if distance > floor else "white"
            axes.plot([rank], [distance], marker=marker, markersize=8, color=colour, markerfacecolor=face)
        axes.axhline(floor, color=colour, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
        axes.text(
            1.01, floor, f"noise, {dimension} x {dimension}", transform=axes.get_yaxis_transform(), va="center",
            fontsize=11, color=colour,
        )  # fmt: skip
    axes.plot(
        [], [], color=GREY, marker="o", markersize=8, markerfacecolor="white", linestyle="", label="below the noise"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_title(title, fontsize=14, loc="left", pad=34)
    axes.set_xlabel("rank", fontsize=12)
    axes.set_ylabel("distance / length of the full-rank update, noise subtracted", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=6, fontsize=11, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def table(results: Results) -> str:
    """A table with one line per dimension and rank."""
    header = ["n", "rank", "distance", "corrected", "noise floor", "length", "cosine", "direction only"]
    rows = [
        [str(dimension), str(rank), *(f"{value:.4f}" for value in comparison)]
        for dimension, of_dimension in results.items()
        for rank, comparison in of_dimension.items()
    ]
    return format_table(header, rows)


def measure(dimensions: Sequence[int], ranks: Sequence[int], pairs: int, sigma_shift: int = 0) -> Results:
    """Compare every rank with full rank, for every dimension; says how long each estimate took."""
    results: Results = {}
    for dimension in dimensions:
        estimates: dict[int, np.ndarray] = {}
        for rank in (0, *ranks):
            start = time.perf_counter()
            estimates[rank] = estimate(Setting(dimension, rank, sigma_shift), pairs)
            print(f"n {dimension}, rank {rank or 'full'}: {time.perf_counter() - start:.1f} s", flush=True)
        results[dimension] = {rank: compare(estimates[rank], estimates[0]) for rank in ranks}
    return results


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the picture")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[8, 16, 32], help="multiples of 8")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="powers of two, at most 256")
    parser.add_argument("--log2-pairs", type=int, default=19, help="of each of two estimates; at least 13")
    parser.add_argument("--sigma-shift", type=int, default=0)
    args = parser.parse_args()
    results = measure(args.dimensions, args.ranks, 2**args.log2_pairs, args.sigma_shift)
    print(table(results))
    if args.out:
        pairs = f"2 x {2**args.log2_pairs:,} pairs, sigma shift {args.sigma_shift}"
        picture(results, args.out, f"How far the low-rank update is from the full-rank one ({pairs})")


if __name__ == "__main__":
    main()
