"""Bits per byte of a text (docs/evaluating.md).

The protocol: every document is read alone, from a zero state, its first token predicted from the separator that
begins it. Separators are not predicted and not counted. A document longer than SEGMENT tokens is cut into segments
that are read side by side; each first reads, uncounted, the WARM_UP tokens before it as if they began the document.
Segments are independent and sums are exact, so the result does not depend on the batch. Bytes and words are those of
the text, or of the text that it was made from (`Document.counted`).
"""

import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from intlm import pictures
from intlm.data import files, wikitext
from intlm.data.prepare import sources_of
from intlm.data.shards import Split
from intlm.data.sources import HUB, Reader, Source
from intlm.data.tokenizers import Tokenizer
from intlm.errors import ConfigError, DataError
from intlm.language_model import BLOCK, LanguageModel
from intlm.model import SEPARATOR
from intlm.run import load, open_corpus, open_run, write_whole
from intlm.tracking.progress import VISIBLE
from intlm.tracking.table import format_table

SEGMENT = 1024
WARM_UP = 256
BATCH_LOGITS = 1 << 24  # logits held at once
MOST_ROWS = 256  # the most rows of a batch whose size is not given
FRACTION_BITS = 40  # fraction bits of the exact losses, which are summed as integers, so that the order has no effect
SHOWN = 3  # the number of best and of worst documents that are shown
BEGINNING = 48  # characters of a document that are shown
# The first positions of the bins: one position a bin up to 8, then four bins from one power of two to the next.
BIN_STARTS = np.array([*range(1, 4), *((4 + part) << power for power in range(50) for part in range(4))])


class Document(NamedTuple):
    """A text to measure."""

    tokens: np.ndarray  # [tokens], without separators
    counted: bytes  # the text whose bytes and words are counted


class Evaluation(NamedTuple):
    """A model's losses on a text. Adding those of several documents gives those of the whole, exactly."""

    tokens: int
    bytes: int
    words: int
    loss: int  # the sum of the exact losses, 2^FRACTION_BITS = one bit
    integer_loss: int  # the sum of the integer losses, 256 = one bit

    @property
    def bits(self) -> float:
        """The exact loss in bits: by the float64 log-softmax of the logits."""
        return self.loss / 2**FRACTION_BITS

    def summary(self) -> dict[str, Any]:
        """The figures under the names that scripts rely on. None: larger than any float."""
        per_token, per_byte, per_word = (self.bits / size for size in (self.tokens, self.bytes, self.words))
        return {
            "bits_per_byte": per_byte,
            "bits_per_byte_integer": self.integer_loss / 256 / self.bytes,
            "bits_per_token": per_token,
            "bits_per_token_integer": self.integer_loss / 256 / self.tokens,
            "perplexity_per_token": 2**per_token,
            "perplexity_per_byte": 2**per_byte,
            "perplexity_per_word": 2**per_word if per_word < 1024 else None,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "words": self.words,
        }


class Segment(NamedTuple):
    """A part of a document that is read without a break."""

    inputs: np.ndarray  # the tokens read: a separator, then any warm-up, then text
    targets: np.ndarray  # the tokens that the last len(targets) inputs predict
    document: int = 0  # the number of the document
    start: int = 0  # the position of targets[0] in it


class Block(NamedTuple):
    """A model's logits for BLOCK tokens of some segments, read side by side."""

    segments: list[Segment]  # those of the first rows; the other rows are not counted
    logits: np.ndarray  # int16 [batch, BLOCK, vocabulary]
    targets: np.ndarray  # int32 [batch, BLOCK], -1 where nothing is counted
    positions: np.ndarray  # [len(segments), BLOCK], the position of each target in its document


@dataclass
class Positions:
    """The exact loss by the position in the document, 1 being the first: bin i begins at BIN_STARTS[i]."""

    tokens: np.ndarray = field(default_factory=lambda: np.zeros(len(BIN_STARTS), np.int64))
    loss: np.ndarray = field(default_factory=lambda: np.zeros(len(BIN_STARTS), object))  # in Python's integers

    def add(self, positions: np.ndarray, losses: np.ndarray) -> None:
        """Add tokens at some positions, the first being 0. Both are int64 [n]."""
        bins = np.searchsorted(BIN_STARTS, positions + 1, "right") - 1
        sums = np.zeros(len(BIN_STARTS), np.int64)
        np.add.at(sums, bins, losses)
        self.tokens += np.bincount(bins, minlength=len(BIN_STARTS))
        self.loss += sums


def split_documents(split: Split, limit: int | None = None) -> Iterator[np.ndarray]:
    """Yields the tokens of each document of a split, without separators; at most `limit` tokens in all."""
    left = math.inf if limit is None else limit
    for start, end in split.document_spans():
        if left <= 0:
            return
        count = int(min(end - start, left))
        left -= count
        yield split.read(start, count)


def documents_of(run: Path, text: Path | None, split: str = "valid") -> tuple[Iterator[np.ndarray], str, int | None]:
    """The documents of a text, or of a split of a run's corpus, by the run's tokenizer; their name, and their bytes
    where known. A text is read with the run's settings for `data.train`, but Python code is not run."""
    config, tokenizer = open_run(run)
    if text:
        data = replace(config.data, valid="", valid_split="", max_bytes=0)
        source = sources_of(replace(data, train=str(text.absolute() if str(text).startswith(HUB) else text)))[0]
        return text_documents(source, tokenizer), str(text), source.size
    corpus = open_corpus(config, tokenizer, run)
    chosen = corpus.split(split)
    corpus.verify(split)
    return split_documents(chosen), f"{split} split", chosen.bytes


def text_documents(source: Source, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yields the tokens of each document of a source. Python code is read as text, not run."""
    texts = [files.chunks(source.path)] if source.is_recipe else None
    return (tokenizer.encode(b"".join(document)) for document in Reader(source, texts=texts))


def wikitext_documents(path: Path, tokenizer: Tokenizer) -> Iterator[Document]:
    """Yields the pages of a WikiText file. The loss is of their plain text; words and bytes are counted in the file.

    Raises DataError where the file has no heading of a page.
    """
    for file in files.find(path).files:
        # The pages keep all bytes of the file: no line end is changed, no invalid byte replaced.
        pages = list(wikitext.pages(files.read(file).decode("utf-8", "surrogateescape")))
        if not any(map(wikitext.is_title, (page.partition("\n")[0] for page in pages))):
            raise DataError(f"{file}: not WikiText: expected a line such as ' = Title = ' before each page")
        for page in pages:
            text, counted = (some.encode("utf-8", "surrogateescape") for some in (wikitext.detokenised(page), page))
            yield Document(tokenizer.encode(text), counted)


@dataclass
class Report:
    """The report of `intlm evaluate`."""

    what: str
    whole: Evaluation
    documents: list[dict[str, Any]] | None  # where figures of each document were asked for

    def text(self) -> str:
        """The report as tables for a terminal."""
        rows = [(name.replace("_", " "), _shown(value)) for name, value in self.whole.summary().items()]
        tables = [format_table([self.what, ""], rows)]
        if self.documents:
            ranked = sorted(self.documents, key=lambda one: one["bits_per_byte"])
            some = [*ranked[:SHOWN], *ranked[max(SHOWN, len(ranked) - SHOWN) :]]
            cells = [(one["document"], one["bytes"], f"{one['bits_per_byte']:.4f}", one["begins"]) for one in some]
            headers = [f"of {len(ranked):,} documents", "bytes", "bits per byte", "begins"]
            tables.append(format_table(headers, cells, "rrrl"))
        return "\n\n".join(tables)


def evaluate_run(
    run: Path,
    text: Path | None = None,
    split: str = "valid",
    batch: int | None = None,
    is_wikitext: bool = False,
    documents: Path | None = None,
    drawing: Path | None = None,
) -> Report:
    """Measure the model of a run (or of an export) on a text file, or on a split of its corpus.

    is_wikitext: the file is WikiText, measured by its convention. documents: where to write each document's figures, as
    JSON Lines. drawing: where to draw the loss by the position in the document, as a PNG. Shows a progress bar where it
    takes more than two seconds. Raises ConfigError where there is nothing to measure.
    """
    if is_wikitext and not text:
        raise ConfigError("--wikitext: expected --text FILE, such as wiki.test.raw")
    for flag, path in (("documents", documents), ("picture", drawing)):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"--{flag} = {path}: expected a file in an existing directory")
    texts: Iterable[np.ndarray | Document]
    texts, what, size = documents_of(run, text, split)
    model = load(run)
    if is_wikitext and text:
        texts = wikitext_documents(text, model.tokenizer)
    positions = Positions() if drawing else None
    lines: list[dict[str, Any]] | None = [] if documents else None
    whole = total(())
    form = {"unit": "B", "unit_scale": True, "delay": 2, "leave": False, "disable": None}  # None: unless on a terminal
    with tqdm(desc=f"evaluating {what}", total=size, **form) as bar:
        for document, evaluation in measure(model, texts, batch, positions, bar.update):
            whole = total((whole, evaluation))
            if lines is not None and evaluation.bytes:
                lines.append(_line(len(lines), document, evaluation))
    if not whole.bytes:
        raise ConfigError(f"{what}: nothing to evaluate: it holds no text")
    if documents and lines is not None:
        write_whole(documents, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    if drawing and positions:
        bins = np.flatnonzero(positions.tokens)
        mean = [int(positions.loss[i]) / int(positions.tokens[i]) / 2**FRACTION_BITS for i in bins]
        pictures.loss_by_position(
            [(int(BIN_STARTS[i]), int(BIN_STARTS[i + 1])) for i in bins],
            positions.tokens[bins].tolist(),
            mean,
            whole.bits / whole.tokens,
            (SEGMENT, WARM_UP),
            drawing,
            f"{run.resolve().name} on {text.name if text else what}: the loss by the position in the document",
        )
    return Report(what, whole, lines)


def _line(number: int, document: Document, evaluation: Evaluation) -> dict[str, Any]:
    """The JSON line of a document."""
    beginning = document.counted[: 8 * BEGINNING].decode(errors="replace")
    return {
        "document": number,
        "bytes": evaluation.bytes,
        "tokens": evaluation.tokens,
        "words": evaluation.words,
        "bits": evaluation.bits,
        "bits_per_byte": evaluation.bits / evaluation.bytes,
        "bits_q40": evaluation.loss,
        "begins": " ".join(beginning.split())[:BEGINNING].translate(VISIBLE),
    }


def _shown(value: float | int | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if value is None:
        return "over 1e308"
    return f"{value:.4f}" if value < 1e9 else f"{value:.4g}"


def count_words(text: bytes) -> int:
    """The number of words: one more than there are runs of white space, as lm-evaluation-harness counts."""
    return len(re.split(r"\s+", text.decode(errors="replace")))


def evaluate(model: LanguageModel, texts: Iterable[np.ndarray | Document], batch: int | None = None) -> Evaluation:
    """Measure a model on documents. `batch`: segments read side by side."""
    return total(evaluation for _, evaluation in measure(model, texts, batch))


def total(evaluations: Iterable[Evaluation]) -> Evaluation:
    """The sum of the evaluations of several texts."""
    whole = [0] * len(Evaluation._fields)
    for one in evaluations:
        whole = [a + b for a, b in zip(whole, one, strict=True)]
    return Evaluation(*whole)


def measure(
    model: LanguageModel,
    texts: Iterable[np.ndarray | Document],
    batch: int | None = None,
    positions: Positions | None = None,
    advance: Callable[[float], object] = lambda size: None,
) -> Iterator[tuple[Document, Evaluation]]:
    """Yields a model's evaluation of each document, in their order.

    texts: documents, or their tokens. batch: segments read side by side; does not change the result. positions: losses
    are added to it. advance: is called with the number of bytes read since the last call.
    """
    waiting: deque[tuple[Document, list[int]]] = deque()  # with the tokens counted, the loss, the integer loss
    finished = 0

    def segments() -> Iterator[Segment]:
        for number, text in enumerate(texts):
            document = text if isinstance(text, Document) else Document(text, model.tokenizer.decode(text))
            waiting.append((document, [0, 0, 0]))
            yield from segments_of(document.tokens, number)

    def whole() -> Iterator[tuple[Document, Evaluation]]:
        nonlocal finished
        while waiting and waiting[0][1][0] == len(waiting[0][0].tokens):
            document, (tokens, loss, integer_loss) = waiting.popleft()
            finished += 1
            size = len(document.counted), count_words(document.counted)
            yield document, Evaluation(tokens, *size, loss, integer_loss)

    for block in read(model, segments(), batch):
        exact = fixed_point_losses(block.logits, block.targets)
        counted = block.targets >= 0
        integer = np.where(counted, model.integer_losses(block.logits, np.maximum(block.targets, 0)), 0)
        sums = [values.sum(axis=1, dtype=np.int64).tolist() for values in (counted, exact, integer)]
        for segment, *more in zip(block.segments, *sums, strict=False):
            document, have = waiting[segment.document - finished]
            have[:] = [a + b for a, b in zip(have, more, strict=True)]
            advance(more[0] * len(document.counted) / len(document.tokens))
        if positions:
            rows = counted[: len(block.segments)]
            positions.add(block.positions[rows], exact[: len(rows)][rows])
        yield from whole()
    yield from whole()  # documents without tokens


def segments_of(tokens: np.ndarray, document: int = 0) -> Iterator[Segment]:
    """Yields the segments of a document by the protocol."""
    for first in range(0, len(tokens), SEGMENT):
        last = min(first + SEGMENT, len(tokens))
        before = tokens[max(0, first - WARM_UP) : last - 1]
        yield Segment(np.concatenate([[SEPARATOR], before]), tokens[first:last], document, first)


def default_batch(model: LanguageModel) -> int:
    """The number of segments read side by side where none is given."""
    return max(1, min(MOST_ROWS, BATCH_LOGITS // (BLOCK * model.architecture.vocab_size)))


def read(model: LanguageModel, segments: Iterable[Segment], batch: int | None = None) -> Iterator[Block]:
    """Read segments from a zero state, `batch` of them side by side. Blocks that count nothing are left out."""
    queue, batch = iter(segments), batch or default_batch(model)
    first_batch = list(islice(queue, batch))
    batch = min(batch, max(len(first_batch), MOST_ROWS))  # no memory for rows that are not counted
    for chosen, inputs, targets in batches(chain(first_batch, queue), batch):
        states = model.start(batch)
        width = inputs.shape[1]
        starts = np.array([s.start - (width - len(s.targets)) for s in chosen])
        for first in range(0, width, BLOCK):
            logits, states = model.read(inputs[:, first : first + BLOCK], states)
            here = targets[:, first : first + BLOCK]
            if (here >= 0).any():
                yield Block(chosen, logits, here, starts[:, None] + np.arange(first, first + BLOCK))


def batches(segments: Iterable[Segment], batch: int) -> Iterator[tuple[list[Segment], np.ndarray, np.ndarray]]:
    """Yields `batch` segments at a time, with the arrays of their inputs and targets.

    The arrays are int32 [batch, a multiple of BLOCK]; targets are -1 where nothing is counted.
    """
    queue = iter(segments)
    while chosen := list(islice(queue, batch)):
        width = -(-max(len(s.inputs) for s in chosen) // BLOCK) * BLOCK
        # Segments are aligned at the end, so that targets are the row's last. The front is padded with separators:
        # the segment's own separator sets the state to zero after them.
        inputs = np.full((batch, width), SEPARATOR, np.int32)
        targets = np.full((batch, width), -1, np.int32)
        for row, segment in enumerate(chosen):
            inputs[row, width - len(segment.inputs) :] = segment.inputs
            targets[row, width - len(segment.targets) :] = segment.targets
        yield chosen, inputs, targets


def fixed_point_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The exact losses, int64 [batch, T], 2^FRACTION_BITS = one bit; 0 where nothing is counted.

    logits: int16 [batch, T, vocabulary]; targets: int32 [batch, T], -1 where nothing is counted.
    """
    counted = targets >= 0
    losses = np.zeros(targets.shape, np.int64)
    losses[counted] = np.rint(np.ldexp(exact_losses(logits[counted], targets[counted]), FRACTION_BITS))
    return losses


def exact_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Base-2 cross-entropy in float64. logits: int16 [n, vocabulary], 256 = one bit; targets: [n]."""
    below = logits.max(axis=-1, keepdims=True).astype(np.int32) - logits
    chosen = np.take_along_axis(below, targets[:, None], axis=-1)[:, 0]
    return np.log2(_EXP2[below].sum(axis=-1)) + chosen / 256


_EXP2 = np.exp2(-np.arange(1 << 16) / 256)
