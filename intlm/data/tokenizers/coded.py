"""Tokenizers with a code for each byte, such as `bytes` and `alphabet`: encoding and decoding by any table of codes.

A byte becomes either one token, or the escape token followed by a fixed number of further tokens, none of them 0. So
text may be cut anywhere. An escape that is the code of no byte decodes to nothing, nor do its tokens; a separator ends
an escape left unfinished.
"""

from __future__ import annotations  # NumPy is imported when it is used

from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

from intlm.data.tokenizers import Tokenizer, checked
from intlm.lazy import np
from intlm.model import SEPARATOR


class CodedTokenizer(Tokenizer):
    """A code for each byte. A subclass says which tokens stand for which byte."""

    is_quick: ClassVar[bool] = True

    @property
    @abstractmethod
    def escape(self) -> int:
        """The token id that opens a code of several tokens."""

    @cached_property
    @abstractmethod
    def codes(self) -> tuple[tuple[int, ...], ...]:
        """For each of the 256 bytes its tokens: (token,), or (escape, ...) always of the same length."""

    def encode(self, data: bytes) -> np.ndarray:
        """Returns the tokens of `data`: [tokens] of `dtype`, values 1..vocab_size-1, at least one for each byte."""
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

    def stream_decoder(self) -> CodeDecoder:
        """Returns a decoder for tokens that arrive a few at a time."""
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
        """Returns the bytes that `tokens` (0..vocab_size-1, else DataError) add to the text decoded so far."""
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
        """Read the rest of the open escape from `position` on; returns the position after its last token."""
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
