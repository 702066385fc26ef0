"""Bits per byte of simple models (n-grams, gzip) on the same held-out bytes, to compare a run with.

n-grams are over bytes, with Witten-Bell interpolation (Bell, Witten and Cleary, Text Compression, 1990):

    P(w | h) = (c(hw) + n(h) · P(w | h')) / (c(h) + n(h))

where h' is the context h without its first byte, c(hw) counts w after h in the training text, c(h) all bytes
after h and n(h) the different ones; the empty context falls back on the uniform distribution over 256 bytes. The
held-out text begins with no context. `gzip -9` is given the held-out text alone.

Floats are used freely here: these figures are for people to read.
"""

import gzip
from pathlib import Path

import numpy as np

from intlm.errors import DataError, RunError
from intlm.schema import Amount, read_json

LADDER = "references.json"
"""The file in a run's directory."""

TRAIN_LIMIT = 64 << 20
"""Only the first TRAIN_LIMIT bytes of the training text are counted."""

CHUNK = 1 << 22  # bytes counted at once: np.bincount makes an int64 of each


def references(train: bytes | np.ndarray, valid: bytes | np.ndarray) -> dict[str, float]:
    """Returns the bits per byte on `valid` of models of `train`, by name, the weakest n-gram first.

    Args:
        train: training text: bytes, or [bytes] uint8. Only the first TRAIN_LIMIT bytes count.
        valid: held-out text, likewise, at least one byte; DataError if it has none.

    Returns:
        "unigram", "bigram", "trigram" and "gzip -9", in bits per byte.
    """
    seen, text = _bytes(train)[:TRAIN_LIMIT], _bytes(valid)
    if not len(text):
        raise DataError("references: the held-out text is empty: expected at least one byte")
    names = ("unigram", "bigram", "trigram")
    result = {}
    probability = np.full(len(text), 1 / 256)  # of each byte of the text, by the model so far
    for order, name in enumerate(names):
        counts = _counts(seen, order + 1)  # [contexts, 256]
        total = counts.sum(1)  # [contexts]
        different = np.count_nonzero(counts, axis=1)
        grams = _grams(text, order + 1)
        contexts = grams >> 8
        lower = probability[order:]  # the first `order` bytes have no context of this length
        # For a context never seen the formula would be 0/0: the shorter context's probability stays.
        weight = np.maximum(total + different, 1)[contexts]
        backed_off = np.where(total[contexts] > 0, different[contexts], 1) * lower
        probability[order:] = (counts.reshape(-1)[grams] + backed_off) / weight
        result[name] = float(-np.log2(probability).mean())
    result["gzip -9"] = len(gzip.compress(text.tobytes(), 9, mtime=0)) * 8 / len(text)
    return result


def read_ladder(path: Path) -> dict[str, float]:
    """Reads the `references` that a run keeps. Raises RunError."""
    hint = ": expected bits per byte by name; delete it to measure again"
    return read_json(path, dict[str, Amount], RunError, hint)


def _bytes(text: bytes | np.ndarray) -> np.ndarray:
    return text if isinstance(text, np.ndarray) else np.frombuffer(text, np.uint8)


def _grams(text: np.ndarray, length: int) -> np.ndarray:
    """Every sequence of `length` bytes (1 to 3) as a number, first byte highest: [bytes - length + 1] int32."""
    starts = max(0, len(text) - length + 1)
    grams = np.zeros(starts, np.int32)
    for place in range(length):
        grams = grams << 8 | text[place : place + starts]
    return grams


def _counts(text: np.ndarray, length: int) -> np.ndarray:
    """How often each sequence of `length` bytes occurs: [256**(length - 1), 256] int32."""
    counts = np.zeros(256**length, np.int32)
    for start in range(0, len(text), CHUNK):
        counts += np.bincount(_grams(text[start : start + CHUNK + length - 1], length), minlength=len(counts))
    return counts.reshape(-1, 256)
