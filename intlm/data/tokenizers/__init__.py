"""Tokenizers: bytes of text to token ids and back, without loss, NUL and invalid UTF-8 included.

The facts that make them different:

- Token 0 (`SEPARATOR`) divides documents in every tokenizer. `encode` never produces it.
- Text may be cut every `PART` bytes: the encodings of the parts, one after the other, are its encoding.
- `bytes` and `alphabet` are tables of 256 codes: a byte becomes either one token, or the escape token followed by a
  fixed number of further tokens, none of them 0. So text may be cut anywhere. Encoding and decoding are written
  once, for any table.
- `unigram` and `bpe` (`intlm.data.tokenizers.pieces`) are vocabularies of pieces, each some bytes.
- Decoding accepts any sequence of token ids, as a model may sample any: a separator gives nothing and ends
  an escape left unfinished; an escape that is the code of no byte gives nothing, nor do its tokens.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intlm.data import files
from intlm.errors import DataError
from intlm.model import SEPARATOR
from intlm.schema import parse_json

PIECES = ("unigram", "bpe")
"""The tokenizers whose tokens stand for several bytes."""

PART = 1 << 20
"""Bytes of a document after which it may be cut, and after each further so many."""


class Decoder(Protocol):
    """Decodes tokens as they come."""

    def feed(self, tokens: Iterable[int] | np.ndarray) -> bytes:
        """What `tokens` (0..vocab_size-1, else DataError) add to the text decoded so far."""


class Tokenizer(ABC):
    """What all tokenizers share."""

    name: str

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of token ids, the separator and any escape included (3 to 65,536)."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `tokenizer_from_json` makes this tokenizer from again."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of encoded text: uint8 while every id fits, else little-endian uint16."""
        return np.dtype("u1") if self.vocab_size <= 256 else np.dtype("<u2")

    @abstractmethod
    def encode(self, data: bytes) -> np.ndarray:
        """The tokens of `data`: [tokens] of `dtype`, values 1..vocab_size-1."""

    @abstractmethod
    def stream_decoder(self) -> Decoder:
        """A decoder for tokens that arrive bit by bit."""

    def decode(self, tokens: Iterable[int] | np.ndarray) -> bytes:
        """What `tokens` (0..vocab_size-1, else DataError) stand for. An escape cut off gives nothing."""
        return self.stream_decoder().feed(tokens)


def checked(tokens: Iterable[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """`tokens` as an array. DataError where one is not in 0..vocab_size-1."""
    array = tokens if isinstance(tokens, np.ndarray) else np.fromiter(tokens, np.int64)
    low, high = (array.min(), array.max()) if len(array) else (0, 0)
    if low < 0 or high >= vocab_size:
        raise DataError(f"tokens from {low} to {high}: expected 0 to {vocab_size - 1}")
    return array


class CodedTokenizer(Tokenizer):
    """A code for each byte. A subclass says which tokens stand for which byte."""

    @property
    @abstractmethod
    def escape(self) -> int:
        """The token id that opens a code of several tokens."""

    @cached_property
    @abstractmethod
    def codes(self) -> tuple[tuple[int, ...], ...]:
        """For each of the 256 bytes its tokens: (token,), or (escape, ...) always of the same length."""

    def encode(self, data: bytes) -> np.ndarray:
        """The tokens of `data`: [tokens] of `dtype`, values 1..vocab_size-1, at least one for each byte."""
        first, rest = self._encoding
        if self.dtype.itemsize == 1:  # bytes.translate is several times faster than indexing by an array
            tokens = np.frombuffer(data.translate(first.tobytes()), np.uint8)
        else:
            tokens = first[np.frombuffer(data, np.uint8)]
        escaped = np.flatnonzero(tokens == self.escape)
        if not len(escaped):
            return tokens
        digits = rest.shape[1]
        at = escaped + digits * np.arange(len(escaped))  # where the escapes are in the result
        result = np.empty(len(tokens) + digits * len(escaped), self.dtype)
        is_first = np.ones(len(result), bool)
        for digit in range(digits):
            is_first[at + digit + 1] = False
            result[at + digit + 1] = rest[np.frombuffer(data, np.uint8)[escaped], digit]
        result[is_first] = tokens
        return result

    def stream_decoder(self) -> "CodeDecoder":
        """A decoder for tokens that arrive bit by bit."""
        return CodeDecoder(self)

    @cached_property
    def _encoding(self) -> tuple[np.ndarray, np.ndarray]:
        """Each byte's first token, [256] of dtype, and the tokens after an escape, [256, digits] of dtype."""
        first = np.array([code[0] for code in self.codes], self.dtype)
        digits = max(len(code) for code in self.codes) - 1
        rest = np.array([code[1:] or (0,) * digits for code in self.codes], self.dtype)
        return first, rest.reshape(256, digits)

    @cached_property
    def _decoding(self) -> tuple[np.ndarray, dict[tuple[int, ...], bytes]]:
        """Each plain token's byte, [vocab_size] uint8, and the byte of each sequence after an escape."""
        plain = np.zeros(self.vocab_size, np.uint8)
        escaped = {}
        for byte, code in enumerate(self.codes):
            if len(code) == 1:
                plain[code[0]] = byte
            else:
                escaped[code[1:]] = bytes([byte])
        return plain, escaped


class CodeDecoder:
    """Decodes tokens as they come, remembering an escape that is not finished yet."""

    def __init__(self, tokenizer: CodedTokenizer) -> None:
        self._escape = tokenizer.escape
        self._digits = tokenizer._encoding[1].shape[1]
        self._plain, self._escaped = tokenizer._decoding
        self._pending: tuple[int, ...] | None = None  # the tokens since an escape that is still open

    def feed(self, tokens: Iterable[int] | np.ndarray) -> bytes:
        """What `tokens` (0..vocab_size-1, else DataError) add to the text decoded so far."""
        array = checked(tokens, len(self._plain))
        result = bytearray()
        position = 0
        escapes = iter([*np.flatnonzero(array == self._escape).tolist(), len(array)])
        if self._pending is not None:
            position = self._finish(array, 0, result)
        for at in escapes:
            if at < position:  # a digit of the escape before it
                continue
            run = array[position:at]
            result += self._plain[run[run != SEPARATOR]].tobytes()
            if at < len(array):
                self._pending = ()
                position = self._finish(array, at + 1, result)
        return bytes(result)

    def _finish(self, array: np.ndarray, position: int, result: bytearray) -> int:
        """Go on with the open escape at `position`; returns the position after what belongs to it."""
        assert self._pending is not None
        while len(self._pending) < self._digits:
            if position == len(array):
                return position
            token = int(array[position])
            position += 1
            if token == SEPARATOR:
                self._pending = None
                return position
            self._pending += (token,)
        result += self._escaped.get(self._pending, b"")
        self._pending = None
        return position


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
    def from_counts(cls, counts: np.ndarray) -> "AlphabetTokenizer":
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


def tokenizer_from_json(description: Any) -> Tokenizer:
    """The tokenizer that `to_json` described. DataError where it describes none."""
    match description:
        case {"name": "bytes", **rest} if not rest:
            return ByteTokenizer()
        case {"name": "alphabet", "alphabet": str(alphabet), **rest} if not rest:
            try:
                return AlphabetTokenizer(bytes.fromhex(alphabet))
            except ValueError:
                pass
        case {"name": str(name), "model": str(model), **rest} if name in PIECES and not rest:
            from intlm.data.tokenizers.pieces import PieceTokenizer  # imports sentencepiece

            return PieceTokenizer.from_base64(name, model)
    shown = repr(description)
    raise DataError(
        f"tokenizer {shown if len(shown) <= 60 else shown[:57] + '...'}: expected {{'name': 'bytes'}}, "
        "{'name': 'alphabet', 'alphabet': hex} or {'name': 'unigram' or 'bpe', 'model': base64}"
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. DataError where it is none."""
    text = files.read(path)
    try:
        return tokenizer_from_json(parse_json(text, dict[str, Any], path))
    except DataError as error:
        raise DataError(f"{path}: not a tokenizer: {error}") from None


def identity(tokenizer: Tokenizer) -> str:
    """What tells tokenizers apart: the sha256, in hex, of the canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(tokenizer.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
