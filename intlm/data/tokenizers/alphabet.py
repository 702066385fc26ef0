"""The tokenizer whose tokens are the bytes of the training text; other bytes follow an escape token."""

from __future__ import annotations  # NumPy is imported when it is used

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from intlm.data.tokenizers import TOKENIZERS, Texts, TokenizerTrainer
from intlm.data.tokenizers.coded import CodedTokenizer
from intlm.errors import DataError
from intlm.lazy import np


@dataclass(frozen=True)
class AlphabetTokenizer(CodedTokenizer):
    """The bytes of an alphabet as the tokens 2, 3, ... in increasing order; 1 is the escape for all others.

    Any other byte is the escape and then its value in base V - 1, where V = len(alphabet) + 2 is the
    vocabulary: d digits, the most significant first, each the token 1 + digit, d the smallest number with
    (V - 1)**d >= 256. A digit is known by its place, so any token but the separator may be one.

    Args:
        alphabet: distinct bytes in increasing order, 1 to 256 of them; DataError otherwise.
    """

    alphabet: bytes
    name = "alphabet"
    escape = 1

    def __post_init__(self) -> None:
        if not self.alphabet:
            raise DataError("the alphabet is empty: expected training text of at least one byte")
        if list(self.alphabet) != sorted(set(self.alphabet)):
            raise DataError(f"alphabet {self.alphabet!r}: expected distinct bytes in increasing order")

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> AlphabetTokenizer:
        """The alphabet of the bytes that occur: `counts` is [256], how often each does."""
        return cls(bytes(np.flatnonzero(counts).tolist()))

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet) + 2

    @cached_property
    def codes(self) -> tuple[tuple[int, ...], ...]:
        base, digits = self.vocab_size - 1, 1
        while base**digits < 256:
            digits += 1
        places = [base**place for place in reversed(range(digits))]
        codes = [(self.escape, *(1 + byte // place % base for place in places)) for byte in range(256)]
        for token, byte in enumerate(self.alphabet, start=2):
            codes[byte] = (token,)
        return tuple(codes)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "alphabet": self.alphabet.hex()}


@TOKENIZERS.register("alphabet")
@dataclass(frozen=True, kw_only=True)
class Alphabet(TokenizerTrainer):
    """The bytes that occur in the training text, and an escape token for the others."""

    def train(self, texts: Texts) -> AlphabetTokenizer:
        """See `TokenizerTrainer.train`."""
        counts = np.zeros(256, np.int64)
        for text in texts("counting bytes"):
            counts += np.bincount(np.frombuffer(text, np.uint8), minlength=256)
        return AlphabetTokenizer.from_counts(counts)

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> AlphabetTokenizer:
        """See `TokenizerTrainer.read`: {"name": "alphabet", "alphabet": the bytes in hex}."""
        return AlphabetTokenizer(bytes.fromhex(description["alphabet"]))
