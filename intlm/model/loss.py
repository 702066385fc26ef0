"""The integer loss: base-2 cross-entropy with 8 fraction bits (docs/numerics.md, section 6).

Exponentials are taken of the distances below the largest logit, and summed exactly in two limbs: the result does not
depend on the order of the terms.
"""

from intlm.arithmetic.fixed_point import rounding_shift
from intlm.arithmetic.tables import EXP2_ONE, LOG2_INDEX_BITS, LOGIT_FRACTION_BITS, tables
from intlm.lazy import Array, jax, jnp

_LIMB = 12


def exp2_terms(below: Array) -> Array:
    """2^24 * 2^(-below/256), rounded: below: int32 >= 0. Returns int32 in [0, 2^24]."""
    whole = jnp.minimum(below >> LOGIT_FRACTION_BITS, 26)  # from there on a term rounds to 0
    mantissa = jnp.asarray(tables().exp2)[below & (2**LOGIT_FRACTION_BITS - 1)]
    return (mantissa + ((1 << whole) >> 1)) >> whole


def log_sum_exp2(logits: Array) -> Array:
    """256 * log2(sum over the last axis of 2^(logits/256)).

    logits: int32 S + [vocabulary], vocabulary at most 65,536. Returns int32 S. Within 2/256 of the exact value.
    """
    largest = jnp.max(logits, axis=-1)
    terms = exp2_terms(largest[..., None] - logits)
    low = jnp.sum(terms & (2**_LIMB - 1), axis=-1)
    high = jnp.sum(terms >> _LIMB, axis=-1) + (low >> _LIMB)
    low = low & (2**_LIMB - 1)
    # high * 2^12 + low is in [2^24, 2^40], so high >= 2^12: its leading bit is the sum's.
    exponent = 31 - jax.lax.clz(high)  # in [12, 28]
    shift = exponent - LOG2_INDEX_BITS  # at least 2, so the index needs bits of high alone
    index = (high >> shift) & (2**LOG2_INDEX_BITS - 1)
    fraction = jnp.asarray(tables().log2)[index].astype(jnp.int32)
    return largest + ((exponent + _LIMB - EXP2_ONE) << LOGIT_FRACTION_BITS) + fraction


def loss(logits: Array, targets: Array) -> Array:
    """Base-2 cross-entropy, the mean over the targets, int32 S, one bit = 256, in [0, 36,865].

    logits: int32 S + [vocabulary]. targets: int32 S + [K], K a power of two: each has a share of 1/K.
    """
    chosen = jnp.sum(jnp.take_along_axis(logits, targets, axis=-1), axis=-1)
    return log_sum_exp2(logits) - rounding_shift(chosen, targets.shape[-1].bit_length() - 1)
