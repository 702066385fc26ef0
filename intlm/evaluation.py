"""Bits per byte of a text (README, "How a model is measured").

The protocol: every document is read alone, from a zero state, its first token predicted from the separator that
begins it. Separators are not predicted and not counted. A document longer than SEGMENT tokens is cut into segments
that are read side by side; each first reads, uncounted, the WARM_UP tokens before it as if they began the document.
No segment knows of another, and sums are exact, so the number does not depend on the batch. Bytes are those of
the text.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intlm.data.shards import Split
from intlm.data.sources import files
from intlm.data.tokenizers import Tokenizer
from intlm.model import SEPARATOR
from intlm.run import BLOCK, LanguageModel, open_corpus, open_run

SEGMENT = 1024
WARM_UP = 256
BATCH_LOGITS = 1 << 24  # logits held at once
FRACTION_BITS = 40  # of the exact losses as they are summed: in integers, so that no order changes a digit


class Evaluation(NamedTuple):
    """What a model makes of a text."""

    tokens: int
    bytes: int
    bits: float  # from the exact float64 log-softmax of the logits
    integer_loss: int  # the integer losses' sum, 256 = one bit

    def summary(self) -> dict[str, float | int]:
        """The figures under the names that scripts rely on."""
        per_token, per_byte = self.bits / self.tokens, self.bits / self.bytes
        return {
            "bits_per_byte": per_byte,
            "bits_per_byte_integer": self.integer_loss / 256 / self.bytes,
            "bits_per_token": per_token,
            "bits_per_token_integer": self.integer_loss / 256 / self.tokens,
            "perplexity_per_token": 2**per_token,
            "perplexity_per_byte": 2**per_byte,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


class _Segment(NamedTuple):
    inputs: np.ndarray  # what is read, warm-up first
    targets: np.ndarray  # what the last len(targets) inputs predict


def split_documents(split: Split, limit: int | None = None) -> Iterator[np.ndarray]:
    """The tokens of each document of a split, without separators; at most `limit` tokens in all."""
    left = math.inf if limit is None else limit
    for start, end in split.document_spans():
        if left <= 0:
            return
        count = int(min(end - start, left))
        left -= count
        yield split.read(start, count)


def documents_of(run: Path, text: Path | None, split: str = "valid") -> tuple[Iterator[np.ndarray], str]:
    """The documents of a text file, or of a split of a run's corpus, by the run's tokenizer; and what to call them."""
    config, tokenizer = open_run(run)
    if text:
        return file_documents(text, config.data.document_separator, tokenizer), str(text)
    return split_documents(open_corpus(config, tokenizer).split(split)), f"{split} split"


def file_documents(path: Path, separator: str, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of each document of a text file (or directory), Python code included: it is not run."""
    for file in files(path):
        text = file.read_bytes()
        for document in text.split(separator.encode()) if separator else [text]:
            if document:
                yield tokenizer.encode(document)


def evaluate(model: LanguageModel, texts: Iterable[np.ndarray], batch: int | None = None) -> Evaluation:
    """Measure a model on documents, each an array of tokens. `batch`: segments read side by side."""
    batch = batch or max(1, min(256, BATCH_LOGITS // (BLOCK * model.architecture.vocab_size)))
    size = {"tokens": 0, "bytes": 0}

    def sized() -> Iterator[np.ndarray]:
        for text in texts:
            size["tokens"] += len(text)
            size["bytes"] += len(model.tokenizer.decode(text))
            yield text

    bits = integer = 0
    for inputs, targets in batches(sized(), batch):
        states = model.start(batch)
        for first in range(0, inputs.shape[1], BLOCK):
            logits, states = model.read(inputs[:, first : first + BLOCK], states)
            more = losses(model, logits, targets[:, first : first + BLOCK])
            bits, integer = bits + more[0], integer + more[1]
    return Evaluation(size["tokens"], size["bytes"], bits / 2**FRACTION_BITS, integer)


def batches(texts: Iterable[np.ndarray], batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The segments of documents, `batch` of them side by side: what is read, and what that predicts.

    Both are int32 [batch, a multiple of BLOCK]; targets are -1 where nothing is counted.
    """
    queue = _segments(texts)
    while chosen := list(islice(queue, batch)):
        width = -(-max(len(s.inputs) for s in chosen) // BLOCK) * BLOCK
        # Aligned at the end, a segment's targets are the row's last. What pads the front is separators: the
        # segment's own separator sets the state to zero after them.
        inputs = np.full((batch, width), SEPARATOR, np.int32)
        targets = np.full((batch, width), -1, np.int32)
        for row, segment in enumerate(chosen):
            inputs[row, width - len(segment.inputs) :] = segment.inputs
            targets[row, width - len(segment.targets) :] = segment.targets
        yield inputs, targets


def _segments(texts: Iterable[np.ndarray]) -> Iterator[_Segment]:
    for text in texts:
        for first in range(0, len(text), SEGMENT):
            last = min(first + SEGMENT, len(text))
            before = text[max(0, first - WARM_UP) : last - 1]
            yield _Segment(np.concatenate([[SEPARATOR], before]), text[first:last])


def losses(model: LanguageModel, logits: np.ndarray, targets: np.ndarray) -> tuple[int, int]:
    """The sums of the counted predictions' exact losses, 2^FRACTION_BITS = one bit, and of their integer ones.

    logits: int16 [batch, T, vocabulary]; targets: int32 [batch, T], -1 where nothing is counted.
    """
    counted = targets >= 0
    if not counted.any():
        return 0, 0
    integer = int(model.integer_losses(logits, np.maximum(targets, 0))[counted].sum(dtype=np.int64))
    exact = np.ldexp(exact_losses(logits[counted], targets[counted]), FRACTION_BITS)
    return int(np.rint(exact).astype(np.int64).sum()), integer


def exact_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Base-2 cross-entropy in float64. logits: int16 [n, vocabulary], 256 = one bit; targets: [n]."""
    below = logits.max(axis=-1, keepdims=True).astype(np.int32) - logits
    chosen = np.take_along_axis(below, targets[:, None], axis=-1)[:, 0]
    return np.log2(_EXP2[below].sum(axis=-1)) + chosen / 256


_EXP2 = np.exp2(-np.arange(1 << 16) / 256)
