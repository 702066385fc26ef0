"""Text from a model, drawn in integers (docs/numerics.md, section 10): the same characters for a seed everywhere."""

from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import Array
from intlm.arithmetic.random_bits import Domain, seed_key, threefry4x32
from intlm.errors import ConfigError
from intlm.model import SEPARATOR
from intlm.model.loss import exp2_terms
from intlm.run import LanguageModel

MAX_INVERSE_TEMPERATURE = 1 << 15


def inverse_temperature(temperature: str | float) -> int:
    """256 / temperature, rounded; temperature: 1/128 to 256, or 0 (greedy), whose inverse is given as 0."""
    try:
        value = Fraction(str(temperature))
        if not value:
            return 0
        inverse = round(256 / value)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--temperature = {temperature}: expected a number from 1/128 to 256, or 0") from None
    if not 1 <= inverse <= MAX_INVERSE_TEMPERATURE:
        raise ConfigError(f"--temperature = {temperature}: expected a number from 1/128 to 256, or 0")
    return inverse


@partial(jax.jit, static_argnames="top_k")
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


def generate(
    model: LanguageModel,
    prompt: bytes,
    tokens: int,
    temperature: str | float = "1",
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[bytes]:
    """The bytes that follow a prompt, token by token, until `tokens` are drawn or the document ends.

    temperature: 0 takes the likeliest token. top_k: 0 for all. A token may stand for no byte of its own.
    """
    inverse = inverse_temperature(temperature)
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"--seed = {seed}: must be from 0 to {(1 << 64) - 1}")
    vocabulary = model.architecture.vocab_size
    kept = min(top_k or vocabulary, vocabulary) if inverse else 1
    return _draw(model, prompt, tokens, inverse or 256, kept, seed)


def _draw(model: LanguageModel, prompt: bytes, tokens: int, inverse: int, top_k: int, seed: int) -> Iterator[bytes]:
    key = jnp.array(seed_key(seed, Domain.SAMPLING), jnp.uint32)
    decoder = model.tokenizer.stream_decoder()
    reading = np.concatenate([[SEPARATOR], model.tokens(prompt)])
    logits, states = model.read(reading[None], model.start(1))
    for position in range(tokens):
        last = jnp.asarray(logits[0, -1])
        token = int(sample(last, key, jnp.uint32(position), jnp.int32(inverse), top_k))
        if token == SEPARATOR:
            return
        yield decoder.push(token)
        logits, states = model.read(np.array([[token]]), states)
