"""The primitives against exact rational arithmetic, at their edges, and against the oracle's constants."""

from fractions import Fraction
from math import floor, isqrt

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.arithmetic.fixed_point import (
    GATE_MULTIPLIER,
    activation_rescale,
    integer_sqrt,
    logit_rescale,
    mean_scale,
    q15_multiply,
    rank_multiplier,
    rounding_shift,
    saturate8,
    saturate16,
)
from intlm.arithmetic.tables import tables

INT32 = st.integers(-(2**31), 2**31 - 1)
INT16 = st.integers(-32767, 32767)
SIZES = range(8, 65537, 8)  # hidden and feed-forward sizes that validate
FAR = np.array([-(2**31), -(2**31) + 1, -32768, -32767, -128, -127, -1, 0, 1, 127, 128, 32767, 32768, 2**31 - 1])


def nearest(x: Fraction) -> int:
    """Rounds to nearest, ties toward +∞."""
    return floor(x + Fraction(1, 2))


@given(INT32, st.integers(0, 30))
def test_rounding_shift_rounds_to_nearest(x: int, shift: int) -> None:
    x = min(x, 2**31 - 1 - (1 << shift >> 1))  # its stated range
    assert int(rounding_shift(jnp.int32(x), shift)) == nearest(Fraction(x, 2**shift)) == oracle.rshift(x, shift)


@pytest.mark.parametrize("shift", [1, 7, 11, 30])
def test_rounding_shift_takes_ties_up(shift: int) -> None:
    half = 1 << (shift - 1)
    ties = [-3 * half, -half, half] if shift < 30 else [-half, half]
    result = rounding_shift(jnp.array([*ties, -half - 1, -half + 1, half - 1], jnp.int32), shift)
    assert result.tolist() == ([-1, 0, 1] if shift < 30 else [0, 1]) + [-1, 0, 0]


def test_rounding_shift_by_nothing_is_the_identity() -> None:
    np.testing.assert_array_equal(rounding_shift(jnp.array(FAR, jnp.int32), 0), FAR)


@given(INT16, INT16)
def test_q15_rounds_to_nearest(a: int, b: int) -> None:
    expected = nearest(Fraction(a * b, 2**15))
    assert int(q15_multiply(jnp.int32(a), jnp.int32(b))) == int(q15_multiply(jnp.int32(a), b)) == expected
    assert oracle.q15(a, b) == expected


def test_q15_is_symmetric_for_every_multiplier_in_use() -> None:
    sizes = [rescale(n).multiplier for n in SIZES for rescale in (activation_rescale, logit_rescale)]
    multipliers = {GATE_MULTIPLIER, *sizes, *tables().reciprocal.tolist()}
    assert all(m % 2 for m in multipliers)
    a = np.arange(1, 32768)
    a = a[a != 2**14]
    for m in sorted(multipliers):
        assert np.array_equal(q15_multiply(a, m), -q15_multiply(-a, m)), m
    assert q15_multiply(2**14, 129) == 65 and q15_multiply(-(2**14), 129) == -64  # the one tie, up


def test_saturation() -> None:
    x = jnp.array(FAR, jnp.int32)
    assert saturate8(x).tolist() == [-127] * 6 + [-1, 0, 1] + [127] * 5
    assert saturate8(x).dtype == jnp.int8
    assert saturate16(x).tolist() == [-32767] * 4 + [-128, -127, -1, 0, 1, 127, 128] + [32767] * 3


@given(INT32, st.sampled_from([8, 24, 40, 256, 264, 1024, 65536]))
def test_rescale(x: int, size: int) -> None:
    x = min(x, 2**31 - 1 - 64)
    for ours, theirs in (
        (activation_rescale(size), oracle.act(size)),
        (activation_rescale(size, 3), oracle.act3(size)),
        (logit_rescale(size), oracle.logit(size)),
    ):
        assert int(ours(jnp.int32(x))) == oracle.rescale(x, theirs)


def test_rescale_constants_for_every_size() -> None:
    for n in SIZES:
        act, act3, logit = activation_rescale(n), activation_rescale(n, 3), logit_rescale(n)
        assert act == (oracle.act(n).s, oracle.act(n).m)
        assert act3 == (oracle.act3(n).s, oracle.act3(n).m)
        assert logit == (oracle.logit(n).s, oracle.logit(n).m)
        # act multiplies by 1/(16 sqrt(n)) to 0.8 %, logit by 1/sqrt(n) to 0.02 %: compared as squares, exactly.
        ratio = Fraction(act.multiplier**2 * 256 * n, 4 ** (15 + act.shift))
        assert Fraction(992, 1000) ** 2 < ratio < Fraction(1008, 1000) ** 2
        ratio = Fraction(logit.multiplier**2 * n, 4 ** (15 + logit.shift))
        assert Fraction(9998, 10000) ** 2 < ratio < Fraction(10002, 10000) ** 2
        # The claims of docs/numerics.md in sections 2 and 11.
        assert 129 <= act.multiplier < 2**10 and logit.multiplier < 2**14
        assert q15_multiply(32767, act.multiplier) >= 128 and q15_multiply(-32767, act.multiplier) <= -128
        assert n * 127**2 + 256 * 32767 * 46 + (1 << max(act3.shift, logit.shift) >> 1) < 2**31


@pytest.mark.parametrize(
    ("size", "act", "logit"),
    [(8, (0, 725), (0, 11585)), (64, (0, 257), (1, 8193)), (256, (0, 129), (2, 8193)), (1024, (1, 129), (3, 8193))],
)
def test_rescale_constants_that_are_published(size: int, act: tuple[int, int], logit: tuple[int, int]) -> None:
    assert activation_rescale(size) == act and logit_rescale(size) == logit


def test_an_open_gate_loses_nothing() -> None:
    h = np.arange(-127, 128)
    np.testing.assert_array_equal(q15_multiply(254 * h, GATE_MULTIPLIER), h)


def test_mean_scale_is_nearest_and_stays_in_the_table() -> None:
    entries = len(tables().reciprocal)
    for n in SIZES:
        scale = mean_scale(n)
        assert scale.multiplier == nearest(Fraction(2**24, n))
        assert 127 * n * scale.multiplier + 2**19 < 2**31
        assert scale(127 * n) <= 2036 < entries and scale(0) == 0
        for total in (n // 2, n, 12 * n + 1, 127 * n):  # 16 times the mean, to within the multiplier's own rounding
            assert abs(scale(total) - Fraction(16 * total, n)) <= Fraction(1, 2) + Fraction(127 * n, 2**21)


def test_rank_multiplier() -> None:
    for rank in range(1, 257):
        c = rank_multiplier(rank)
        assert c == oracle.rank_scale(rank)
        assert 8 <= c <= 128 and abs(c - 128 / rank**0.5) <= 0.5
        assert 2**23 * c // 2**11 >= 32767  # so that the clamp of x B is never seen
        assert 46 * 46 * rank * c + 2**22 < 2**31  # an embedding's perturbation


def test_integer_sqrt_around_every_square() -> None:
    roots = np.arange(46341, dtype=np.int64)
    squares = np.concatenate([roots**2, roots[1:] ** 2 - 1, [2**31 - 1]])
    result = integer_sqrt(jnp.asarray(squares, jnp.int32))
    np.testing.assert_array_equal(result, np.concatenate([roots, roots[1:] - 1, [46340]]))


@given(st.integers(0, 2**31 - 1))
def test_integer_sqrt(x: int) -> None:
    assert int(integer_sqrt(jnp.int32(x))) == isqrt(x)
