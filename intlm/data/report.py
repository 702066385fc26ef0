"""The report on a prepared corpus: sizes, lengths, most common tokens, samples of text (`intlm prepare --report`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from intlm import pictures
from intlm.data.shards import CHUNK, Corpus, Split
from intlm.data.tokenizers import Tokenizer
from intlm.model import SEPARATOR
from intlm.tracking.progress import VISIBLE
from intlm.tracking.table import format_table

COMMON = 20  # tokens shown
SAMPLES = 3  # documents of each split
SAMPLE_TOKENS = 150
NAMES = 20  # files shown


def summary(corpus: Corpus) -> str:
    """Tables of the splits and of the text's counts, and lists of the files that were read or left out."""
    rows = [
        (name, f"{s.documents:,}", f"{s.tokens:,}", f"{s.bytes:,}", f"{s.bytes / max(s.tokens - s.documents, 1):.3f}")
        for name, s in corpus.splits.items()
    ]
    tables = [format_table(["split", "documents", "tokens", "bytes", "bytes per token"], rows)]
    headers = ["read for", "empty", "filtered", "not UTF-8", "with NUL", "longest, bytes"]
    keys = ("empty", "filtered", "not_utf8", "with_nul", "longest")
    count_rows = [(name, *(f"{counts.get(key, 0):,}" for key in keys)) for name, counts in corpus.found.items()]
    if count_rows:
        tables.append(format_table(headers, count_rows))
    lines = []
    for name, files in corpus.files.items():
        if files["read"]:
            lines.append(f"{name}: read{' the rows of' * files['has_rows']} {_listed(files['read'])}")
        lines += [f"{name}: left out ({why}): {_listed(names)}" for why, names in files["left_out"].items()]
    if lines:
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:NAMES])
    return shown + (f" and {len(names) - NAMES:,} more" if len(names) > NAMES else "")


def report(corpus: Corpus, path: Path) -> str:
    """The report on each split, as text. Draws the lengths of its documents to the PNG `path`."""
    lengths, sections = {}, []
    for name, split in corpus.splits.items():
        lengths[name] = length_counts(split).tolist()
        counts = token_counts(split)
        used = np.count_nonzero(counts[1:])
        total = max(int(counts[1:].sum()), 1)
        common = [token for token in np.argsort(-counts, kind="stable").tolist() if token != SEPARATOR][:COMMON]
        rows = [
            (token, shown(corpus.tokenizer, token), f"{counts[token]:,}", f"{counts[token] / total:.2%}")
            for token in common
            if counts[token]
        ]
        sections += [
            f"{name}: {used:,} of {corpus.tokenizer.vocab_size - 1:,} tokens occur; the most common:",
            format_table(["token", "text", "times", "share"], rows, "rlrr"),
        ]
        sections += [f"{name}, from token {at:,} on:\n{text}" for at, text in samples(split, corpus.tokenizer)]
    pictures.lengths(lengths, path, f"{corpus.directory.name}: how long the documents are")
    return "\n\n".join(sections)


def token_counts(split: Split) -> np.ndarray:
    """The number of times that each token occurs: [vocabulary] int64."""
    counts = np.zeros(split.vocab_size, np.int64)
    for start in range(0, split.tokens, CHUNK):
        counts += np.bincount(split.read(start, min(CHUNK, split.tokens - start)), minlength=split.vocab_size)
    return counts


def length_counts(split: Split) -> np.ndarray:
    """The number of documents with 2^i to 2^(i+1) - 1 tokens, the separator not counted: [i] int64."""
    counts = np.zeros(64, np.int64)
    for start, end in split.document_spans():
        counts[(end - start).bit_length() - 1] += 1
    return counts[: np.flatnonzero(counts)[-1] + 1]


def shown(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token, on one line."""
    text = tokenizer.decode([token])
    return repr(text.decode(errors="backslashreplace")) if text else "(escape)"


def samples(split: Split, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """Yields the starts of some documents, far from one another, and the text of their first tokens."""
    wanted = [number * split.tokens // SAMPLES for number in range(SAMPLES)]
    for start, end in split.document_spans():
        if wanted and start > wanted[0]:
            text = tokenizer.decode(split.read(start, min(end - start, SAMPLE_TOKENS)))
            yield start, text.decode(errors="replace").translate(VISIBLE)
            wanted = [position for position in wanted if position >= start]
