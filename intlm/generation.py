"""Text from a model, drawn in integers (docs/numerics.md, section 10): the same characters for a seed everywhere."""

from collections.abc import Iterator
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.random_bits import Domain, seed_key
from intlm.errors import ConfigError
from intlm.model import SEPARATOR
from intlm.run import WRITTEN, LanguageModel

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


def generate(
    model: LanguageModel,
    prompt: bytes,
    tokens: int,
    temperature: str | float = "1",
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[bytes]:
    """The bytes that follow a prompt, a block of tokens at a time, until `tokens` are drawn or the document ends.

    temperature: 0 takes the likeliest token. top_k: 0 for all.
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
    read, states = model.read(np.concatenate([[SEPARATOR], model.tokens(prompt)])[None], model.start(1))
    logits, states = jnp.asarray(read[0, -1]), states[0]
    for position in range(0, tokens, WRITTEN):
        drawn, logits, states = model.write(logits, states, key, position, inverse, top_k)
        drawn = drawn[: tokens - position]
        ends = np.flatnonzero(drawn == SEPARATOR)
        yield decoder.feed(drawn[: ends[0]] if len(ends) else drawn)
        if len(ends):
            return
