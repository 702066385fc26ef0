"""Tokenizers: bytes of text to token ids and back, without loss, NUL and invalid UTF-8 included. One file each.

`coded` and `pieces` hold what several of them share. All have this in common:

- Token 0 (`SEPARATOR`) divides documents in every tokenizer. `encode` never produces it.
- Text may be cut every `PART` bytes: the encodings of the parts, one after the other, are its encoding.
- Decoding accepts any sequence of token ids, as a model may sample any: a separator gives nothing.
"""

from __future__ import annotations  # NumPy is imported when it is used

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from intlm.data import files
from intlm.errors import DataError
from intlm.lazy import np
from intlm.schema import parse_json
from intlm.settings import Family, Part

MIN_VOCAB, MAX_VOCAB = 2, 65536  # tokens are stored in 16 bits; the loss is proved for that range

PART = 1 << 20
"""A document may be cut after every PART bytes."""


class Decoder(Protocol):
    """Decodes tokens as they come."""

    def feed(self, tokens: Iterable[int] | np.ndarray) -> bytes:
        """Returns the bytes that `tokens` (0..vocab_size-1, else DataError) add to the text decoded so far."""


class Tokenizer(ABC):
    """The base class of all tokenizers."""

    name: str  # under which its `TokenizerTrainer` is registered
    is_quick: ClassVar[bool] = False  # whether several processes would make the tokens no faster

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of token ids, the separator and any escape included (3 to 65,536)."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns "name", and all that `TokenizerTrainer.read` needs to make this tokenizer again."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of encoded text: uint8 while every id fits, else little-endian uint16."""
        return np.dtype("u1") if self.vocab_size <= 256 else np.dtype("<u2")

    @abstractmethod
    def encode(self, data: bytes) -> np.ndarray:
        """Returns the tokens of `data`: [tokens] of `dtype`, values 1..vocab_size-1."""

    @abstractmethod
    def stream_decoder(self) -> Decoder:
        """Returns a decoder for tokens that arrive a few at a time."""

    def decode(self, tokens: Iterable[int] | np.ndarray) -> bytes:
        """Returns the bytes of `tokens` (0..vocab_size-1, else DataError). An escape that is cut off gives nothing."""
        return self.stream_decoder().feed(tokens)


def checked(tokens: Iterable[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns `tokens` as an array. DataError where one is not in 0..vocab_size-1."""
    array = tokens if isinstance(tokens, np.ndarray) else np.fromiter(tokens, np.int64)
    low, high = (array.min(), array.max()) if len(array) else (0, 0)
    if low < 0 or high >= vocab_size:
        raise DataError(f"tokens from {low} to {high}: expected 0 to {vocab_size - 1}")
    return array


Texts = Callable[[str], Iterator[bytes]]
"""The training text, from its beginning at each call, at most PART bytes at once; the argument says what for."""


class TokenizerTrainer(Part):
    """Makes a tokenizer of one kind: from the training text, or again from what `Tokenizer.to_json` returned."""

    needs_text: ClassVar[bool] = True  # whether `train` reads the text

    def train(self, texts: Texts) -> Tokenizer:
        """Returns the tokenizer of a text. Raises DataError where the text is not enough for one."""
        raise NotImplementedError

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> Tokenizer:
        """Returns the tokenizer that `to_json` described; else raises DataError, KeyError, TypeError or ValueError."""
        raise NotImplementedError


TOKENIZERS: Family[TokenizerTrainer] = Family("tokenizer", "intlm.data.tokenizers")


def tokenizer_from_json(description: Any) -> Tokenizer:
    """Returns the tokenizer that `to_json` described. DataError where the description is of none."""
    name = description.get("name") if isinstance(description, dict) else None
    if not isinstance(name, str) or name not in TOKENIZERS.parts():
        known = " or ".join(f'"{part}"' for part in TOKENIZERS.parts())
        raise DataError(f"tokenizer {_short(description)}: name: expected {known}, or a plugin's with --plugin FILE")
    try:
        made = TOKENIZERS[name].read(description)
        if _canonical(made.to_json()) == _canonical(description):  # nothing in it was ignored
            return made
    except (KeyError, TypeError, ValueError):
        pass
    wanted = (TOKENIZERS[name].read.__doc__ or "").partition(": ")[2]
    raise DataError(f"tokenizer {_short(description)}: expected {wanted or 'what its to_json gives'}")


def _short(description: Any) -> str:
    text = repr(description)
    return text if len(text) <= 60 else text[:57] + "..."


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads the tokenizer of a tokenizer.json. DataError where the file is none."""
    text = files.read(path)
    try:
        return tokenizer_from_json(parse_json(text, dict[str, Any], path))
    except DataError as error:
        raise DataError(f"{path}: not a tokenizer: {error}") from None


def identity(tokenizer: Tokenizer) -> str:
    """The identity of a tokenizer: the sha256, in hex, of its canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(_canonical(tokenizer.to_json()).encode()).hexdigest()


def _canonical(description: Any) -> str:
    return json.dumps(description, sort_keys=True, separators=(",", ":"))
