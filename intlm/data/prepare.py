"""From text to a prepared corpus: what is held out, which tokenizer, and the passes over the text.

The text is read at most three times, in chunks: to measure the documents (only to hold some out), to count
the bytes that occur in the training split (only for an alphabet), and to write the tokens. 8 bytes for each
document are all that is kept. A recipe is run once, its text kept meanwhile in a file without a name.

What is held out is decided by the sizes and the order of the documents alone, so the same text is divided
the same way everywhere.
"""

import hashlib
import itertools
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from intlm.data import sources
from intlm.data.shards import Corpus, CorpusWriter, read_index
from intlm.data.tokenizers import NAMES, AlphabetTokenizer, ByteTokenizer, Tokenizer
from intlm.errors import DataError

Documents = Iterable[Iterable[bytes]]


def prepare(
    source: Path,
    valid: Path | None,
    valid_bytes: int,
    tokenizer_name: str,
    document_separator: str | None,
    directory: Path,
) -> Corpus:
    """The corpus in `directory`, made there first unless it is there already, from the same request.

    Args:
        source: the text to train on: a file, a directory or a recipe (`data.train`; see `sources`).
        valid: the text held out (`data.valid`), or None to hold out a part of `source`.
        valid_bytes: how many bytes of `source` to hold out where `valid` is None (`data.valid_bytes`): the
            last ones of a single document; of several, whole documents chosen by a hash of their ordinals,
            about so many bytes in all, at least one, never all. More than half of the text counts as half. 0 for none.
        tokenizer_name: `bytes` or `alphabet` (`data.tokenizer`); an alphabet is that of the training split.
        document_separator: divides each file into documents, or None (`data.document_separator`).
        directory: where the corpus is, or will be. It is replaced where it holds another prepared corpus.

    A request is the same when its arguments are, and the sizes and times of the files (of a recipe, its
    contents: what it reads is not known).

    Raises:
        DataError: a source that cannot be read or has no text, a directory that is in use for something else, or a
            damaged corpus.
    """
    if tokenizer_name not in NAMES:
        raise DataError(f"data.tokenizer = {tokenizer_name!r}: expected one of {', '.join(NAMES)}")
    if valid_bytes < 0:
        raise DataError(f"data.valid_bytes = {valid_bytes}: expected 0 or more")
    for text_path in filter(None, (source, valid)):
        if directory.resolve().is_relative_to(text_path.resolve()):
            raise DataError(f"{directory}: lies within the text, {text_path}: expected it elsewhere")
    request = {
        "train": _fingerprint(source),
        "valid": _fingerprint(valid) if valid else None,
        "valid_bytes": 0 if valid else valid_bytes,
        "tokenizer": tokenizer_name,
        "document_separator": document_separator,
    }
    if (directory / "index.json").exists():
        if read_index(directory)["request"] == request:
            return Corpus.open(directory)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"{directory}: not a prepared corpus: expected one, or an empty or new directory")

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory.parent) as spool:
        read = _reader(source, document_separator, spool)
        if request["valid_bytes"]:
            sizes = array("q", (sum(map(len, document)) for document in read("measuring")))
            cuts: Iterable[int] = _cuts(np.array(sizes), valid_bytes)
        else:
            cuts = itertools.repeat(sys.maxsize)
        tokenizer: Tokenizer = ByteTokenizer()
        if tokenizer_name == "alphabet":
            counts = np.zeros(256, np.int64)
            for split, _, text in _pieces(read("counting bytes"), cuts):
                if split == "train":
                    counts += np.bincount(np.frombuffer(text, np.uint8), minlength=256)
            tokenizer = AlphabetTokenizer.from_counts(counts)
        with CorpusWriter(directory, tokenizer) as writer:
            pieces = _pieces(read("preparing"), cuts)
            if valid:
                held_out = _watch(sources.documents(valid, document_separator), "preparing valid", None)
                pieces = itertools.chain(pieces, _pieces(held_out, itertools.repeat(0)))
            for split, is_new, text in pieces:
                writer.write(split, text, is_new)
            for split, path in (("train", source), ("valid", valid)):
                if path and _fingerprint(path) != request[split]:
                    raise DataError(f"{path}: changed while it was being read: expected it to stay as it is")
            writer.finish(request)
    return Corpus.open(directory)


def _fingerprint(source: Path) -> dict[str, str]:
    """What a source is and whether it has changed: its place and a digest."""
    digest = hashlib.sha256()
    if sources.is_recipe(source):
        digest.update(sources.read_recipe(source))
    else:
        for path in sources.files(source):
            stat = path.stat()
            digest.update(f"{path.relative_to(source)!r} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return {"path": str(source.resolve()), "sha256": digest.hexdigest()}


def _reader(source: Path, separator: str | None, spool: IO[bytes]) -> Callable[[str], Documents]:
    """Something that reads the documents of `source` as often as it is called, saying what for."""
    if not sources.is_recipe(source):
        total = sum(path.stat().st_size for path in sources.files(source))
        return lambda purpose: _watch(sources.documents(source, separator), purpose, total)

    sizes = array("q")
    for document in _watch(sources.documents(source, separator), "running the recipe", None):
        sizes.append(sum(map(spool.write, document)))

    def read(purpose: str) -> Documents:
        spool.seek(0)
        return _watch((_take(spool, size) for size in sizes), purpose, sum(sizes))

    return read


def _take(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes of `file`, in chunks."""
    while size:
        chunk = file.read(min(size, sources.CHUNK))
        size -= len(chunk)
        yield chunk


def _watch(documents: Documents, purpose: str, total: int | None) -> Iterator[Iterator[bytes]]:
    """The same documents, with a progress bar on the terminal where it takes more than a second."""

    def count(document: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in document:
            yield chunk
            bar.update(len(chunk))

    form = {"unit": "B", "unit_scale": True, "delay": 1, "leave": False}
    with tqdm(desc=purpose, total=total, disable=None, **form) as bar:  # None: unless stderr is a terminal
        for document in documents:
            yield count(document)


def _cuts(sizes: np.ndarray, valid_bytes: int) -> np.ndarray:
    """How many bytes of each document are for training, the rest being held out: [documents] int64."""
    valid_bytes = min(valid_bytes, int(sizes.sum()) // 2)
    cuts = sizes.copy()
    if len(sizes) == 1:
        cuts[0] -= valid_bytes
        return cuts
    missing = valid_bytes
    for ordinal in np.argsort(_scramble(len(sizes)))[:-1].tolist():  # the last one trains, whatever happens
        if sizes[ordinal] < 2 * missing:  # with it the total is nearer than without
            missing -= sizes[ordinal]
            cuts[ordinal] = 0
    if missing == valid_bytes:  # every document is far larger
        cuts[np.argmin(sizes)] = 0
    return cuts


def _scramble(count: int) -> np.ndarray:
    """splitmix64 of 0 to count - 1, a hash in which no two are equal: [count] uint64."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _pieces(documents: Documents, cuts: Iterable[int]) -> Iterator[tuple[str, bool, bytes]]:
    """The documents in pieces: the split each is for, whether a document begins there, and its bytes.

    The first `cut` bytes of a document are for training and the rest are held out, a document there.
    """
    for document, cut in zip(documents, map(int, cuts), strict=False):
        position = 0
        for chunk in document:
            here = min(max(cut - position, 0), len(chunk))
            if here:
                yield "train", position == 0, chunk[:here]
            if here < len(chunk):
                yield "valid", position + here == cut, chunk[here:]
            position += len(chunk)
