"""Exact sums of more than 32 bits: up to 2^24 values below 2^28, added up digit by digit in any order."""

from intlm.arithmetic.fixed_point import integer_sqrt
from intlm.lazy import Array, jax, jnp

MOST_TERMS = 1 << 24
DIGITS, DIGIT = 4, 7  # a sum is kept as 4 sums, one for each digit of 7 bits


def digits_of(values: Array) -> Array:
    """The digits of values, least first: int32 [4] + S. values: int32 S, 0 to 2^28 - 1."""
    return jnp.stack([(values >> (DIGIT * k)) & ((1 << DIGIT) - 1) for k in range(DIGITS)])


def sum_digits(values: Array, axes: tuple[int, ...]) -> Array:
    """The sum of values over some axes, as one sum for each digit: int32, a first axis [4]. values: see `digits_of`.

    Its value is the sum over k of 2^(7k) times digit k; what is added up of several such sums is the sum of all. Only
    the value matters: digits may be carried.
    """
    return jnp.sum(digits_of(values), axis=tuple(1 + axis for axis in axes), dtype=jnp.int32)


def _carried(sums: Array) -> tuple[Array, Array]:
    """The value of a sum of digits, as high * 2^21 + low. sums: int32 [4] + S. Returns int32 S, below 2^31 and 2^21."""
    low = jnp.zeros_like(sums[0])
    carry = jnp.zeros_like(sums[0])
    for k in range(DIGITS - 1):
        held = sums[k] + carry
        low |= (held & ((1 << DIGIT) - 1)) << (DIGIT * k)
        carry = held >> DIGIT
    return sums[-1] + carry, low


def quotient(sums: Array, divisor: int) -> Array:
    """The value of a sum of digits divided by divisor, rounded down: int32 S, where it is below 2^31.

    sums: int32 [4] + S. divisor: 1 to 2^31 - 1.
    """
    high, low = (part.astype(jnp.uint32) for part in _carried(sums))
    result, rest = high // divisor, high % divisor
    for bit in reversed(range(DIGIT * (DIGITS - 1))):
        rest = 2 * rest + ((low >> bit) & 1)
        over = (rest >= divisor).astype(jnp.uint32)
        result, rest = 2 * result + over, rest - over * divisor
    return result.astype(jnp.int32)


def square_root(sums: Array) -> Array:
    """The square root of the value of a sum of digits, its highest 15 bits exact, rounded down: int32 S, below 2^26.

    sums: int32 [4] + S, of a value below 2^52.
    """
    high, low = _carried(sums)
    # An even number of bits is dropped, such that 30 stay.
    dropped = jnp.maximum(0, 32 - jax.lax.clz(high) - 9 + 1) & ~1
    wide = jnp.left_shift(high, jnp.maximum(0, 21 - dropped)) + jnp.right_shift(low, jnp.minimum(21, dropped))
    kept = jnp.where(dropped <= 21, wide, jnp.right_shift(high, jnp.maximum(0, dropped - 21)))
    return jnp.left_shift(integer_sqrt(kept), dropped // 2)
