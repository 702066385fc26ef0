"""The tokenizer of all 256 bytes, for any text."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from intlm.data.tokenizers import TOKENIZERS, Texts, TokenizerTrainer
from intlm.data.tokenizers.coded import CodedTokenizer


@dataclass(frozen=True)
class ByteTokenizer(CodedTokenizer):
    """256 tokens: every byte is its own, but for 0x00, whose id is the separator's, and 0xFF, the escape.

    0xFF never occurs in UTF-8. Byte 0x00 is the tokens 255, 1 and byte 0xFF the tokens 255, 255.
    """

    name = "bytes"
    vocab_size = 256
    escape = 255

    @cached_property
    def codes(self) -> tuple[tuple[int, ...], ...]:
        return ((255, 1), *((byte,) for byte in range(1, 255)), (255, 255))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


@TOKENIZERS.register("bytes")
@dataclass(frozen=True, kw_only=True)
class Bytes(TokenizerTrainer):
    """All 256 bytes."""

    needs_text: ClassVar[bool] = False

    def train(self, texts: Texts) -> ByteTokenizer:
        """See `TokenizerTrainer.train`."""
        return ByteTokenizer()

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> ByteTokenizer:
        """See `TokenizerTrainer.read`: {"name": "bytes"}."""
        return ByteTokenizer()
