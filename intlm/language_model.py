"""A trained model for use: logits, losses and text from bytes."""

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8
from intlm.data.tokenizers import Tokenizer
from intlm.errors import DataError
from intlm.lazy import Array
from intlm.model import SEPARATOR
from intlm.model.forward import zero_states
from intlm.model.loss import loss
from intlm.model.parameters import Architecture, Parameters
from intlm.population import Engine
from intlm.population.engine import Prepared
from intlm.schema import check_range

BLOCK = 64  # tokens that one compiled call of inference reads
WRITTEN = 256  # tokens that one compiled call of generation writes: enough to make the overhead of a call small


class LanguageModel:
    """Shared weights with their tokenizer: logits, losses and text (`intlm.generation`) from bytes."""

    def __init__(self, architecture: Architecture, parameters: Parameters, tokenizer: Tokenizer, engine: Engine):
        self.architecture = architecture
        self.tokenizer = tokenizer
        self._prepare = jax.jit(engine.prepare)
        self._infer = jax.jit(engine.infer)
        self._generate = jax.jit(engine.generate, static_argnames=("top_k", "count"))
        self.parameters = parameters
        self._losses = jax.jit(lambda logits, targets: loss(logits.astype(jnp.int32), targets[..., None]))

    @property
    def parameters(self) -> Parameters:
        """The shared weights."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._prepared = None

    def prepared(self) -> Prepared:
        """The shared weights as the engine wants them for inference."""
        if self._prepared is None:
            self._prepared = self._prepare(self._parameters)
        return self._prepared

    def start(self, batch: int) -> Array:
        """States before any token: int8 [batch, layers, state size]."""
        return zero_states((batch,), self.architecture)

    def read(self, tokens: np.ndarray, states: Array) -> tuple[np.ndarray, Array]:
        """Read T tokens with each of some streams.

        tokens: integers [batch, T]. Returns logits, int16 [batch, T, vocabulary] (256 = one bit; entry t
        predicts token t + 1), and the states after the last token. Raises DataError where a token is not below the
        vocabulary, or a state is -128.
        """
        check_range(tokens, 0, self.architecture.vocab_size - 1, "tokens", DataError)
        check_range(np.asarray(states), -MAX8, MAX8, "states", DataError)
        parts = []
        whole = tokens.shape[1] // BLOCK * BLOCK
        for first in (*range(0, whole, BLOCK), *range(whole, tokens.shape[1])):
            block = tokens[:, first : first + (BLOCK if first < whole else 1)]
            logits, states = self._infer(self.prepared(), jnp.asarray(block, jnp.uint16), states)
            parts.append(np.asarray(logits))
        empty = np.empty((tokens.shape[0], 0, self.architecture.vocab_size), np.int16)
        return np.concatenate([empty, *parts], axis=1), states

    def write(
        self, logits: Array, states: Array, key: Array, position: int, inverse: int, top_k: int
    ) -> tuple[np.ndarray, Array, Array]:
        """Draw WRITTEN tokens of one stream, reading each: see `Engine.generate`."""
        drawn, logits, states = self._generate(
            self.prepared(), logits, states, key, np.uint32(position), np.int32(inverse), top_k=top_k, count=WRITTEN
        )
        return np.asarray(drawn), logits, states

    def integer_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The integer cross-entropy, int32, 256 = one bit. logits: int16 S + [vocabulary]; targets: S."""
        return np.asarray(self._losses(logits, np.asarray(targets, np.int32)))

    def tokens(self, text: bytes | str) -> np.ndarray:
        """A text's tokens, int32 [tokens], with no separator."""
        return self.tokenizer.encode(text.encode() if isinstance(text, str) else text).astype(np.int32)

    def logits(self, text: bytes | str) -> np.ndarray:
        """The logits that predict each token of a document: int16 [tokens, vocabulary], 256 = one bit."""
        tokens = self.tokens(text)
        return self.read(np.concatenate([[SEPARATOR], tokens[:-1]])[None, : len(tokens)], self.start(1))[0][0]

    def losses(self, text: bytes | str) -> np.ndarray:
        """The integer cross-entropy of each token of a document: int32 [tokens], 256 = one bit."""
        return self.integer_losses(self.logits(text), self.tokens(text))
