"""Text from a model, drawn in integers (docs/numerics.md, section 10): the same characters for a seed everywhere."""

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.random_bits import Domain, seed_key
from intlm.errors import ConfigError
from intlm.language_model import BLOCK, WRITTEN, LanguageModel
from intlm.model import SEPARATOR

MAX_INVERSE_TEMPERATURE = 1 << 15


def inverse_temperature(temperature: str | float) -> int:
    """Returns 256 / temperature, rounded; temperature: 1/128 to 256, or 0 (greedy), for which it returns 0."""
    text = str(temperature)
    refusal = ConfigError(f"--temperature = {text[:60]}: expected a number from 1/128 to 256, or 0")
    try:
        value: Fraction | Decimal = Fraction(text) if "/" in text else Decimal(text)
        if not value:
            return 0
        # As a fraction, a number with a large exponent would take for ever: it is compared as a decimal first.
        if not Decimal("0.001") < value < 1000:
            raise refusal
        inverse = round(256 / Fraction(value))
    except (ValueError, ArithmeticError):
        raise refusal from None
    if not 1 <= inverse <= MAX_INVERSE_TEMPERATURE:
        raise refusal
    return inverse


def generate(
    model: LanguageModel,
    prompt: bytes,
    tokens: int,
    temperature: str | float = "1",
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[bytes]:
    """Yields the bytes after a prompt, a block of tokens at a time, until `tokens` are drawn or the document ends.

    temperature: 0 takes the most likely token. top_k: 0 for all.
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
    reading, states = np.concatenate([[SEPARATOR], model.tokens(prompt)])[None], model.start(1)
    for first in range(0, reading.shape[1], BLOCK):  # only the last logits are wanted
        read, states = model.read(reading[:, first : first + BLOCK], states)
    logits, states = jnp.asarray(read[0, -1]), states[0]
    for position in range(0, tokens, WRITTEN):
        drawn, logits, states = model.write(logits, states, key, position, inverse, top_k)
        drawn = drawn[: tokens - position]
        ends = np.flatnonzero(drawn == SEPARATOR)
        yield decoder.feed(drawn[: ends[0]] if len(ends) else drawn)
        if len(ends):
            return
