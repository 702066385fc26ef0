"""The integer primitives that everything else is made of (docs/numerics.md, section 2).

Values are int32 in the XLA engine even where the specification stores int8 or int16: the bits are the same.
Every function works on jax and numpy arrays alike and is exact; none wraps within the ranges it states.
"""

import math
from typing import NamedTuple

from intlm.lazy import Array, jnp

MAX8 = 127  # int8 values are in [-127, 127]: never -128
MAX16 = 32767  # int16 values are in [-32767, 32767]
ONE = 16  # weights and activations: 1.0 = 16
GATE_ONE = 127  # gates and recurrent state: 1.0 = 127
GATE_MULTIPLIER = 129  # 2^15 / 254, rounded: q15_multiply(254 * h, 129) == h for every int8 h
STATE_SHIFT = 3  # from the state's scale to the activations': 127/16 taken as 2^3


def saturate8(x: Array) -> Array:
    """Clip to [-127, 127] and store as int8."""
    return jnp.clip(x, -MAX8, MAX8).astype(jnp.int8)


def saturate16(x: Array) -> Array:
    """Clip to [-32767, 32767]; the dtype stays int32."""
    return jnp.clip(x, -MAX16, MAX16)


def rounding_shift(x: Array, shift: int) -> Array:
    """x / 2^shift rounded to nearest, ties up: (x + 2^(shift-1)) >> shift; shift 0 is the identity.

    x is int32 with x + 2^(shift-1) < 2^31; 0 <= shift <= 30.
    """
    return x if shift == 0 else (x + (1 << (shift - 1))) >> shift


def q15_multiply(a: Array, b: Array | int) -> Array:
    """a * b / 2^15 rounded to nearest, ties up: (a * b + 2^14) >> 15.

    a and b are int32 arrays that hold int16 values. This is one instruction on most vector units
    (pmulhrsw, sqrdmulh). For odd b a tie needs |a| = 2^14, so that the rounding is symmetric elsewhere.
    """
    return (a * b + (1 << 14)) >> 15


class Rescale(NamedTuple):
    """From an int32 accumulator to an int16 result: saturate16(rounding_shift(x, shift)) * multiplier / 2^15."""

    shift: int
    multiplier: int

    def __call__(self, accumulator: Array) -> Array:
        """accumulator: int32, |accumulator| + 2^(shift-1) < 2^31. Returns int32 holding an int16 value."""
        return q15_multiply(saturate16(rounding_shift(accumulator, self.shift)), self.multiplier)


def _odd_root(numerator: int, denominator: int) -> int:
    """The odd integer nearest to sqrt(numerator / denominator)."""
    return 2 * math.isqrt(numerator // (4 * denominator)) + 1


def activation_rescale(fan_in: int, extra_shift: int = 0) -> Rescale:
    """Accumulator (weights and inputs at 1.0 = 16) to activation scale: 1 / (16 * sqrt(fan_in) * 2^extra_shift).

    The shift is the smallest that lets every value below saturation pass: 4^shift >= fan_in / 256.
    """
    shift = 0
    while 256 * 4**shift < fan_in:
        shift += 1
    return Rescale(shift + extra_shift, _odd_root(4 ** (11 + shift), fan_in))


def logit_rescale(fan_in: int) -> Rescale:
    """Accumulator to logits: 1 / sqrt(fan_in), so that a logit of 2^8 is one bit (docs/numerics.md, section 6)."""
    shift = 0
    while 16 * 4**shift < fan_in:
        shift += 1
    return Rescale(shift, _odd_root(4 ** (15 + shift), fan_in))


class MeanScale(NamedTuple):
    """Sixteen times the mean of `count` magnitudes from their sum: (sum * multiplier + 2^19) >> 20."""

    multiplier: int

    def __call__(self, total: Array) -> Array:
        """total: int32 in [0, 127 * count]. Returns int32 in [0, 2047]."""
        return (total * self.multiplier + (1 << 19)) >> 20


def mean_scale(count: int) -> MeanScale:
    """count: 8 to 65,536. The multiplier is 2^24 / count, rounded to nearest."""
    return MeanScale(((1 << 25) // count + 1) >> 1)


def rank_multiplier(rank: int) -> int:
    """128 / sqrt(rank), rounded to nearest; rank: 1 to 256, so in [8, 128]."""
    return (math.isqrt((1 << 16) // rank) + 1) >> 1


def integer_sqrt(x: Array) -> Array:
    """floor(sqrt(x)) of an int32 scalar >= 0, bit by bit."""
    root = jnp.zeros_like(x)
    for bit in range(15, -1, -1):
        trial = root + (1 << bit)
        # trial * trial may pass int32 only at 46341 and above, where uint32 still holds it.
        fits = trial.astype(jnp.uint32) * trial.astype(jnp.uint32) <= x.astype(jnp.uint32)
        root = jnp.where(fits, trial, root)
    return root
