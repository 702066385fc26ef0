"""Vocabularies of pieces, each of some bytes, trained and applied by SentencePiece, lossless for any bytes.

SentencePiece works on Unicode text and changes it: by default it normalises, joins white space, and has no pieces for
bytes that are not UTF-8. Here it does none of that:

- It sees a letter for each of the 256 bytes (`LETTERS`), and all letters are in every vocabulary. It never sees white
  space, a character to normalise, or an unknown character, so it can lose nothing. Token 0, its
  "unknown", never occurs in its output: here it is the separator. A vocabulary of byte letters needs no byte fallback
  (256 more pieces, which repeat the frequent characters) and no other code for bytes that are not text; characters of
  several bytes become pieces where they are frequent.
- Text is divided into words first (`_UNITS`, `_WORDS`): a word with the space before it, digits, other signs, white
  space. No piece crosses their bounds, in training or after. So SentencePiece encodes each word once, and a dictionary
  gives its tokens after that; SentencePiece's float sums are over few pieces, in the order of the text; and text may
  be cut between words. It is also cut every `PART` bytes, in the middle of a word if need be.
"""

from __future__ import annotations  # NumPy is imported when it is used

import base64
import binascii
import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from intlm.data.tokenizers import MAX_VOCAB, PART, Texts, Tokenizer, TokenizerTrainer, checked
from intlm.errors import DataError
from intlm.lazy import np
from intlm.model import SEPARATOR
from intlm.settings import key

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

LETTERS = "".join(chr(byte if 0x21 <= byte < 0x7F else 0x100 + byte) for byte in range(256))
"""The character that SentencePiece sees for each byte: a printing ASCII character itself, else U+0100 + byte."""

LONGEST_PIECE = 16  # bytes
CACHED = 1 << 19  # units remembered, and words: 100 MB at most
_TABLE = dict(enumerate(LETTERS))
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}
# A unit: a run of at most 64 bytes that are no white space, with a space before it; or white space but for that space.
_UNITS = re.compile(rb" ?\S{1,64}+|\s{1,16}(?!\S)|\s{1,16}")
_WORDS = re.compile(rb" ?[A-Za-z\x80-\xff]++| ?[0-9]++| ?[^A-Za-z0-9\x80-\xff\s]++|\s++")


class _Cache(dict[bytes, bytes]):
    """A cache of `make`'s result for each text."""

    def __init__(self, make: Callable[[bytes], bytes]) -> None:
        self._make = make

    def __missing__(self, text: bytes) -> bytes:
        if len(self) == CACHED:
            self.clear()  # frequent texts soon come back
        made = self[text] = self._make(text)
        return made


@dataclass(frozen=True)
class PieceTokenizer(Tokenizer):
    """A SentencePiece model whose pieces are bytes.

    Args:
        name: its kind, which is SentencePiece's name for the model as well.
        model: the model, serialised. DataError where it is no model, or its pieces are not bytes.
    """

    name: str
    model: bytes = field(repr=False)

    def __post_init__(self) -> None:
        try:
            lacking = set(LETTERS).difference(map(self._processor.id_to_piece, range(1, self.vocab_size)))
            self.pieces  # noqa: B018 - refuses other letters
        except (RuntimeError, LookupError) as error:
            raise DataError(f"tokenizer {self.name!r}: not a SentencePiece model of bytes: {error}") from None
        if lacking:
            raise DataError(f"tokenizer {self.name!r}: a SentencePiece model without some bytes: {sorted(lacking)[:3]}")
        if self.vocab_size > MAX_VOCAB:
            raise DataError(f"tokenizer {self.name!r}: {self.vocab_size} pieces: expected at most {MAX_VOCAB}")
        self._encode_word(bytes(range(256)))  # refuses a model of whole words, or one that normalises

    @classmethod
    def train(cls, name: str, texts: Iterable[bytes], vocab_size: int) -> PieceTokenizer:
        """Trains a vocabulary on a sample, the same on any machine. The whole sample is held in memory.

        A unigram vocabulary is smaller where the sample has no more pieces. Raises DataError where the sample is too
        small for a BPE vocabulary of that size, or the size does not hold the 256 bytes.
        """
        import sentencepiece

        sample = list(texts)  # at once: SentencePiece would swallow an error
        words = (word for text in sample for unit in _UNITS.findall(text) for word in _WORDS.findall(unit))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=chain(LETTERS, map(_letters, words)),
                model_writer=model,
                model_type=name,
                vocab_size=vocab_size,
                hard_vocab_limit=name != "unigram",  # which makes fewer where the sample has no more
                character_coverage=1.0,
                max_sentencepiece_length=LONGEST_PIECE,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_by_unicode_script=False,  # the letters mean nothing
                split_by_number=False,
                unk_id=SEPARATOR,
                bos_id=-1,
                eos_id=-1,
                num_threads=16,  # whatever the machine has: their number decides how floats are summed
                minloglevel=2,
            )
        except RuntimeError as error:
            reason, size = str(error).rpartition("] ")[2], sum(map(len, sample))
            wanted = f"data.{name}.vocab_size = {vocab_size}"
            raise DataError(f"{wanted}: SentencePiece makes no such vocabulary from {size:,} bytes: {reason}") from None
        return cls(name, model.getvalue())

    @classmethod
    def from_base64(cls, name: str, model: str) -> PieceTokenizer:
        """The tokenizer of `to_json`'s "model"."""
        try:
            return cls(name, base64.b64decode(model, validate=True))
        except binascii.Error as error:
            raise DataError(f"tokenizer {name!r}: its model is not base64: {error}") from None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "model": base64.b64encode(self.model).decode()}

    @cached_property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each token; none for the separator."""
        tokens = range(1, self.vocab_size)
        return [b"", *(bytes(map(_BYTES.__getitem__, self._processor.id_to_piece(token))) for token in tokens)]

    def encode(self, data: bytes) -> np.ndarray:
        """The tokens of `data`: [tokens] uint16, values 1..vocab_size-1. DataError where the model loses a word."""
        parts = (_UNITS.findall(data[start : start + PART]) for start in range(0, len(data), PART))
        return np.frombuffer(b"".join(map(self._units.__getitem__, chain.from_iterable(parts))), self.dtype)

    def stream_decoder(self) -> PieceDecoder:
        return PieceDecoder(self)

    @cached_property
    def _processor(self) -> SentencePieceProcessor:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _units(self) -> _Cache:
        """A cache of the tokens of each unit, as bytes of `dtype`, and of each word within a unit."""

        words = _Cache(self._encode_word)
        return _Cache(lambda unit: b"".join(map(words.__getitem__, _WORDS.findall(unit))))

    def _encode_word(self, word: bytes) -> bytes:
        """Returns the tokens of a word, as bytes of `dtype`. DataError where they do not decode to the word."""
        tokens = self._processor.encode(_letters(word))
        if SEPARATOR in tokens or b"".join(map(self.pieces.__getitem__, tokens)) != word:
            raise DataError(
                f"tokenizer {self.name!r}: its model loses text: {word[:20]!r} does not come back from its tokens: "
                "expected a model without normalisation, not of whole words, as `intlm tokenizer train` makes"
            )
        return struct.pack(f"<{len(tokens)}H", *tokens)


class PieceDecoder:
    """Decodes tokens as they come: each piece by itself."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self._pieces = tokenizer.pieces

    def feed(self, tokens: Iterable[int] | np.ndarray) -> bytes:
        """Returns the bytes that `tokens` (0..vocab_size-1, else DataError) add to the text decoded so far."""
        return b"".join(map(self._pieces.__getitem__, checked(tokens, len(self._pieces)).tolist()))


def _letters(text: bytes) -> str:
    return text.decode("latin-1").translate(_TABLE)


@dataclass(frozen=True, kw_only=True)
class PieceTrainer(TokenizerTrainer):
    """Trains a vocabulary of pieces; its name is SentencePiece's for the kind of model."""

    vocab_size: int = key("tokens in the vocabulary", 4096, low=257, high=MAX_VOCAB)
    sample_bytes: int = key("bytes at the beginning of the training text to train it on", 1 << 24, low=1)

    def train(self, texts: Texts) -> PieceTokenizer:
        """See `TokenizerTrainer.train`."""

        def sample() -> Iterator[bytes]:
            left = self.sample_bytes
            for text in texts("sampling"):
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return

        return PieceTokenizer.train(self.name, sample(), self.vocab_size)

    @classmethod
    def read(cls, description: Mapping[str, Any]) -> PieceTokenizer:
        """See `TokenizerTrainer.read`: its name, and "model": SentencePiece's in base64."""
        return PieceTokenizer.from_base64(cls.name, description["model"])
