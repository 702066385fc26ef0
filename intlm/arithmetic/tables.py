"""Every nonlinearity as a lookup table (docs/numerics.md, section 3), under 10 KiB together.

The tables are computed with Python's integers and its decimal module, whose exp and ln are correctly rounded by
specification, never with the platform's libm; their bytes are pinned by a hash that is checked when they are made.
"""

from __future__ import annotations  # NumPy is imported when it is used

import hashlib
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

from intlm.lazy import np

LOGIT_FRACTION_BITS = 8  # logits and losses: 2^8 is one bit
EXP2_ONE = 24  # exp2's results: 1.0 = 2^24
LOG2_INDEX_BITS = 10
SHA256 = "9d9d4514015a9c0d57b9bbd46d6807c62841642340777f4e43fdbafb1c99ade7"


class Tables(NamedTuple):
    """All tables, as numpy arrays."""

    quantile: np.ndarray  # int8 [256]: a random byte to a Gaussian value, standard deviation 16, at most 46
    reciprocal: np.ndarray  # int16 [2048]: 16 times a mean magnitude to the norm's odd Q15 gain
    exp2: np.ndarray  # int32 [256]: 2^24 * 2^(-i/256)
    log2: np.ndarray  # int16 [1024]: 256 * log2(1 + (i + 0.5)/1024)
    sigmoid: np.ndarray  # int8 [256]: i - 128 at 1.0 = 16 to 254 * sigmoid - 127
    tanh: np.ndarray  # int8 [256]: i - 128 at 1.0 = 16 to 127 * tanh


def _round(x: Decimal) -> int:
    """Rounds to nearest; none of the tables holds a tie."""
    return int((x + Decimal("0.5")).__floor__())


def normal_quantile(numerator: int, denominator: int) -> Decimal:
    """z with P(Z <= z) = numerator / denominator for a standard normal Z, to 25 digits; 1/2 <= p < 1.

    Newton's method on the series of the distribution function about zero.
    """
    with localcontext() as context:
        context.prec = 60
        p = Decimal(numerator) / Decimal(denominator) - Decimal("0.5")
        root_two_pi = (2 * _pi()).sqrt()
        z = Decimal(0)
        for _ in range(60):
            term = total = z
            n = 1
            while abs(term) > Decimal("1e-50"):
                term = -term * z * z / (2 * n)
                total += term / (2 * n + 1)
                n += 1
            step = (p * root_two_pi - total) * (z * z / 2).exp()
            z += max(min(step, Decimal(1)), Decimal(-1))
            if abs(step) < Decimal("1e-25"):
                return z
    raise ArithmeticError(f"no quantile for {numerator}/{denominator}")


@cache
def _pi() -> Decimal:
    """Pi by Machin's formula, to the context's precision of 60 digits."""

    def arctan_inverse(n: int) -> Decimal:
        term = total = Decimal(1) / n
        k = 1
        while abs(term) > Decimal("1e-58"):
            term = -term / (n * n)
            total += term / (2 * k + 1)
            k += 1
        return total

    with localcontext() as context:
        context.prec = 60
        return 4 * (4 * arctan_inverse(5) - arctan_inverse(239))


def _reciprocal(index: int) -> int:
    """The odd integer nearest to 2^15 * 16 / index; index is held to at least 16 (a mean of 1), where it is 32767."""
    return min(32767, 2 * ((1 << 18) // max(index, 16)) + 1)


def _make() -> Tables:
    with localcontext() as context:
        context.prec = 40
        ln2 = Decimal(2).ln()
        half = [_round(16 * normal_quantile(257 + 2 * i, 512)) for i in range(128)]
        quantile = half + [-z for z in half]
        exp2 = [_round((-ln2 * i / 256).exp() * 2**EXP2_ONE) for i in range(256)]
        size = 2**LOG2_INDEX_BITS
        log2 = [_round(256 * (1 + (Decimal(2 * i + 1) / (2 * size))).ln() / ln2) for i in range(size)]
        inputs = [Decimal(max(i, 1) - 128) / 16 for i in range(256)]
        sigmoid = [_round(254 / (1 + (-x).exp())) - 127 for x in inputs]
        e2x = [(2 * x).exp() for x in inputs]
        tanh = [_round(127 * (e - 1) / (e + 1)) for e in e2x]
    return Tables(
        np.array(quantile, np.int8),
        np.array([_reciprocal(i) for i in range(2048)], np.int16),
        np.array(exp2, np.int32),
        np.array(log2, np.int16),
        np.array(sigmoid, np.int8),
        np.array(tanh, np.int8),
    )


def digest(tables: Tables) -> str:
    """SHA-256 of the tables' little-endian bytes, in the order of the fields."""
    return hashlib.sha256(b"".join(t.astype(t.dtype.newbyteorder("<")).tobytes() for t in tables)).hexdigest()


@cache
def tables() -> Tables:
    """The tables, made once a process. Raises ArithmeticError if their bytes are not the pinned ones."""
    made = _make()
    if (actual := digest(made)) != SHA256:
        raise ArithmeticError(f"the lookup tables have SHA-256 {actual}, expected {SHA256}")
    return made


def threshold_quantile(numerator: int, denominator: int) -> int:
    """256 * z, rounded, for the two-sided Z-test at level numerator / denominator in (0, 1]."""
    z = normal_quantile(2 * denominator - numerator, 2 * denominator)
    return _round(256 * z)
