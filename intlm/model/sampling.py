"""Drawing a token from logits, in integers (docs/numerics.md, section 10)."""

from intlm.arithmetic.random_bits import threefry4x32
from intlm.lazy import Array, jax, jit, jnp
from intlm.model.loss import exp2_terms


@jit(static_argnames="top_k")
def sample(logits: Array, seed_words: Array, position: Array, inverse: Array, top_k: int) -> Array:
    """Draw one token, int32 scalar.

    logits: int16 [vocabulary]. seed_words: uint32 [4], the key. position: uint32, the counter. inverse: int32,
    256 / temperature. top_k: 1 to the vocabulary, only the k largest logits (of equal ones the first) can be drawn.
    """
    logits = logits.astype(jnp.int32)
    vocabulary = logits.shape[0]
    _, kept = jax.lax.top_k(logits, top_k)
    below = jnp.max(logits) - logits  # at most 2^15, so that its product with inverse fits
    terms = exp2_terms((below * inverse + 128) >> 8)
    # Cut so that their sum stays below 2^31 at any vocabulary.
    terms >>= max(0, (vocabulary - 1).bit_length() - 6)
    allowed = jnp.zeros(vocabulary, bool).at[kept].set(True)
    ends = jnp.cumsum(jnp.where(allowed, terms, 0))
    word = threefry4x32(seed_words, (position, 0, 0, 0))[0]
    return jnp.sum(ends <= _scaled(word, ends[-1])).astype(jnp.int32)


def _scaled(word: Array, total: Array) -> Array:
    """floor(word * total / 2^32) in 32-bit words: uniform in [0, total). word: uint32; total: int32 > 0."""
    total = total.astype(jnp.uint32)
    high, low = total >> 16, total & 0xFFFF
    middle = (word >> 16) * low + ((word & 0xFFFF) * low >> 16)
    other = (word & 0xFFFF) * high + (middle & 0xFFFF)
    return ((word >> 16) * high + (middle >> 16) + (other >> 16)).astype(jnp.int32)
