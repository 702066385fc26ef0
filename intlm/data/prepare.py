"""Makes a prepared corpus from text: holds text out, trains the tokenizer and writes the tokens.

The text is read at most three times, in chunks: to measure the documents (only to hold some out by their sizes), for
the tokenizer (an alphabet reads all of the training split, a vocabulary of pieces its beginning), and to write the
tokens. Only 8 bytes for each document are kept in memory. A Python file is run once: where its text is read more than
once, it is kept meanwhile in an unnamed temporary file.

Which text is held out depends on the sizes and the order of the documents alone, so the same text is divided
the same way everywhere. The tokens are made in blocks of text, by several processes where that is slow, and written in
the text's order: the number of processes changes nothing. Every SAVE_SECONDS the progress is saved, and a preparation
that was killed continues from there.
"""

import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from intlm import config as configuration
from intlm import plugins
from intlm.config import DataConfig
from intlm.data import files, sources
from intlm.data.shards import (
    PROGRESS,
    Changed,
    Corpus,
    CorpusWriter,
    discard_replaced,
    read_index,
    read_progress,
    scratch,
)
from intlm.data.sources import Mark, Reader, Source
from intlm.data.tokenizers import (
    PART,
    Tokenizer,
    identity,
    load_tokenizer,
    tokenizer_from_json,
)
from intlm.errors import ConfigError, DataError
from intlm.model import SEPARATOR
from intlm.settings import flatten

BLOCK = 4 << 20  # bytes of text that are encoded at once
SAVE_SECONDS = 30
_CUTS = "cuts.npy"


class Position(NamedTuple):
    """A position in the text, from which reading can continue."""

    split: int  # the number of the source
    mark: Mark | None  # the place in it where reading starts; None: its beginning
    parts: int  # parts to skip from there
    crc: int  # the checksum of these parts, to check that the text is still the same
    found: dict[str, dict[str, int]]  # the counts of the earlier sources, by split


class Part(NamedTuple):
    """A document, or PART bytes of one."""

    split: str
    is_new: bool  # whether a document begins here
    text: bytes


class Run(NamedTuple):
    """Encoded parts of one split."""

    split: str
    tokens: np.ndarray  # [tokens] of the tokenizer's dtype
    documents: int  # documents that begin in it
    bytes: int


def prepare(data: DataConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """Opens the corpus in `data.prepared`; makes it first unless a corpus of the same request is there.

    tokenizer: the tokenizer to use; None: the one that `data` asks for.

    The held-out text is `valid`, or `valid_split`, or `valid_bytes` of `train`: the last bytes of a single document;
    of several, whole documents chosen by a hash of their ordinals, about `valid_bytes` in all, at least one document,
    never all; `valid_bytes` above half of the text count as half. A tokenizer is trained on the training split.

    Two requests are the same when their settings of text and tokenizer are, and the sizes and times of the files (for a
    Python file and the tokenizer's file the contents; changes of the data that a Python file reads, or of the hub, are
    not noticed).

    Raises:
        DataError: a source that cannot be read or has no text, a directory that is in use for something else, or a
            damaged corpus.
    """
    train, valid = sources_of(data)
    _check(data, train, valid)
    directory = Path(data.prepared)
    around = {files.identity(path) for path in (directory.resolve(), *directory.resolve().parents) if path.exists()}
    for source in filter(None, (train, valid)):
        if not source.layout.folders.isdisjoint(around):
            raise DataError(f"{directory}: lies inside the text, {source.place}: expected a directory elsewhere")
    given, request = tokenizer, _request(data, train, valid, tokenizer)
    if (directory / "index.json").exists():
        discard_replaced(directory)
        if _is_same(read_index(directory)["request"], request):
            return Corpus.open(directory)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(f"{directory}: not a prepared corpus: expected one, or an empty or new directory")

    directory.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(scratch(directory)) as made, tempfile.TemporaryFile(dir=directory.parent) as spool:
        try:
            progress = read_progress(made)
            if progress and _is_same(progress["request"], request):
                return _make(data, train, valid, given, request, progress, spool)
        except Changed as error:
            print(f"intlm: {error}: preparing from the beginning", file=sys.stderr)
        for path in made.iterdir():
            if path.name != ".lock":
                path.unlink()
        return _make(data, train, valid, given, request, None, spool)


def _make(
    data: DataConfig,
    train: Source,
    valid: Source | None,
    given: Tokenizer | None,
    request: dict[str, Any],
    progress: dict[str, Any] | None,
    spool: IO[bytes],
) -> Corpus:
    """Make the corpus of a request, continuing from `progress`. Raises Changed where that cannot be used."""
    directory, made, saved = Path(data.prepared), scratch(Path(data.prepared)), time.monotonic()
    once = progress or (not data.valid_bytes and (given or data.tokenizer_file or not data.tokenizer.needs_text))
    texts = _Texts(train, None if once else spool)
    if progress:
        tokenizer = tokenizer_from_json(progress["tokenizer"])
        split, mark, parts, crc, counts = progress["position"]
        position = Position(split, mark and Mark(*mark), parts, crc, counts)
        if _sha256(made / _CUTS) != progress["cuts"]:
            raise Changed(f"{made / _CUTS}: changed since the preparation was interrupted")
        texts.cuts = np.load(made / _CUTS)
    else:
        position = Position(0, None, 0, 0, {})
        texts.hold_out(data.valid_bytes)
        np.save(made / _CUTS, texts.cuts)
        tokenizer = given or _tokenizer(data, texts)
    splits = [texts, _Texts(valid, None, "valid")] if valid else [texts]
    known = {"request": request, "tokenizer": tokenizer.to_json(), "cuts": _sha256(made / _CUTS)}
    with CorpusWriter(directory, tokenizer) as writer:
        if progress:
            writer.resume(progress["splits"])
        blocks = _blocks(splits, position)
        for runs, position in _encoded(blocks, tokenizer, data.processes):
            for run in runs:
                writer.append(*run)
            if time.monotonic() - saved >= SAVE_SECONDS:
                writer.save(known | {"position": position})
                saved = time.monotonic()
        if _request(data, train, valid, given) != request:
            raise DataError(f"{train.place}: changed while it was being read: expected it to stay as it is")
        read = {"train": train} | ({"valid": valid} if valid else {})
        writer.finish(request, position.found, {split: _files(source) for split, source in read.items()})
    for split, source in read.items():
        if source.separator and not position.found[split]["separators"]:
            hint = ": in a shell write $'\\n\\n' for line ends" if "\\" in source.separator else ""
            what = f"data.document_separator = {source.separator!r}: does not occur in {source.place}"
            print(f"intlm: {what}: every text counts as one document{hint}", file=sys.stderr)
    return Corpus.open(directory)


def _sha256(path: Path) -> str:
    """The sha256 of a file, in hex; empty where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _files(source: Source) -> dict[str, Any]:
    """The files of a source, by their names in it, and those that were left out."""
    layout = source.layout

    def names(paths: list[Path]) -> list[str]:
        return [path.name if path == source.path else path.relative_to(source.path).as_posix() for path in paths]

    left_out = {why: names(paths) for why, paths in layout.left_out.items()}
    return {"has_rows": layout.has_rows, "read": names(layout.files), "left_out": left_out}


def train_tokenizer(data: DataConfig) -> Tokenizer:
    """Returns the tokenizer that `prepare` would use."""
    train, valid = sources_of(data)
    _check(data, train, valid)
    with tempfile.TemporaryFile() as spool:
        texts = _Texts(train, spool)
        texts.hold_out(data.valid_bytes)
        return _tokenizer(data, texts)


def sources_of(data: DataConfig) -> tuple[Source, Source | None]:
    """The source of the training text, and the source of the held-out text where that is a separate one."""
    separator = data.document_separator
    train = Source(data.train, separator, data.max_bytes, data.subset, data.split, data.columns, data.filter)
    if data.valid or data.valid_split:
        return train, train._replace(place=data.valid or data.train, max_bytes=0, split=data.valid_split or data.split)
    return train, None


def _check(data: DataConfig, train: Source, valid: Source | None) -> None:
    """Raise DataError for splits or columns that the text does not have, and for held-out text that is trained on."""
    if not (train.is_remote or (train.path.is_dir() and train.is_data_set)):
        lacking = {"valid_split": "splits", "split": "splits", "subset": "subsets"}
        if not train.is_data_set:
            lacking |= {"columns": "columns", "filter": "columns"}
        what = "a Python file" if train.is_recipe else "a single file" if train.is_data_set else "a text"
        for key, missing in lacking.items():
            value, default = getattr(data, key), configuration.keys()[f"data.{key}"].default
            if value != default:
                raise DataError(f"data.{key} = {value!r}: {data.train} is {what}, which has no {missing}")
    if valid:
        _check_apart(train, valid)


def _check_apart(train: Source, valid: Source) -> None:
    """Raise DataError where some text is in both sources."""
    if train.is_remote and train.place == valid.place and train.subset == valid.subset:
        splits, held_out = (set(source.split.split("+")) for source in (train, valid))
        if splits & held_out or "all" in splits | held_out:
            raise DataError(
                f"{valid.place}: split {valid.split!r} is held out, but split {train.split!r} is trained on: expected "
                "splits without common rows"
            )
    read = {(stat.st_dev, stat.st_ino) for stat in map(Path.stat, train.layout.files)}
    for path in valid.layout.files:
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) in read:
            raise DataError(f"{path}: is both held out and trained on: expected other text to hold out")


def corpora(data: DataConfig) -> list[tuple[int, Corpus]]:
    """The corpora of a mixture with their shares: the configuration's own, then others in its tokens, beside it."""
    first, held_out = prepare(data), sources_of(data)[1]
    mixture = [(data.share, first)]
    for number, (share, path) in enumerate(data.others, start=1):
        other = configuration.load(Path(path)).data
        if other.mixture:
            raise ConfigError(f"{path}: data.mixture = {other.mixture!r}: must be empty in a corpus of a mixture")
        if held_out:
            _check_apart(sources_of(other)[0], held_out)
        place = first.directory.with_name(f"{first.directory.name}-{number}-{Path(path).stem}")
        other = replace(other, prepared=str(place), processes=data.processes)
        corpus = prepare(other, first.tokenizer)
        if "valid" in first.splits and corpus.split("train").equals(first.split("valid")):
            raise DataError(f"{other.train}: is trained on, but {data.train} holds it out: expected other text")
        mixture.append((share, corpus))
    return mixture


def _request(data: DataConfig, train: Source, valid: Source | None, given: Tokenizer | None) -> dict[str, Any]:
    """The request of a corpus: all that its bits depend on."""
    if given:
        tokenizer: Any = identity(given)
    elif data.tokenizer_file:
        tokenizer = hashlib.sha256(files.read(Path(data.tokenizer_file))).hexdigest()
    else:
        settings = flatten(data.tokenizer).values()
        tokenizer = [data.tokenizer.name, *settings] if settings else data.tokenizer.name
    texts = {
        name: source._asdict() | {"place": _fingerprint(source, Path(data.prepared))} if source else None
        for name, source in (("train", train), ("valid", valid))
    }
    return {**texts, "valid_bytes": data.valid_bytes, "tokenizer": tokenizer, "reader": sources.VERSION}


def _is_same(one: Any, other: dict[str, Any]) -> bool:
    """Whether two requests are the same, the first as read from a file. In a project that was moved, paths relative
    to the corpus decide."""

    def seen(request: Any, text: str, name: str) -> Any:
        value = request.get(text)
        if not isinstance(value, dict) or not isinstance(place := value.get("place"), dict):
            return value
        return value | {"place": [place.get(name, place.get("name")), place.get("sha256")]}

    if not isinstance(one, dict) or any(one.get(key) != other[key] for key in other.keys() - {"train", "valid"}):
        return False
    return all(
        any(seen(one, text, name) == seen(other, text, name) for name in ("name", "beside"))
        for text in ("train", "valid")
    )


def _fingerprint(source: Source, corpus: Path) -> dict[str, str]:
    """The path of a source, absolute and relative to the corpus, and a digest that tells whether it has changed."""
    if source.is_remote:
        return {"name": source.place}
    digest = hashlib.sha256()
    if source.is_recipe:
        digest.update(files.read(source.path))
    else:
        for path in source.layout.files:
            stat = path.stat()
            digest.update(f"{path.relative_to(source.path)!r} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    place = source.path.resolve()
    return {"name": str(place), "beside": os.path.relpath(place, corpus.resolve()), "sha256": digest.hexdigest()}


@contextmanager
def _exclusive(made: Path) -> Iterator[Path]:
    """Lock the directory in which a corpus is made. Raises DataError if another process has it."""
    made.mkdir(exist_ok=True)
    with (made / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{made}: another `intlm prepare` is writing it") from None
        try:
            yield made
        finally:
            if made.exists() and not (made / PROGRESS).exists():
                shutil.rmtree(made)


class _Texts:
    """The text of a source, which can be read several times; that of a Python file only if `spool` can keep it."""

    def __init__(self, source: Source, spool: IO[bytes] | None, split: str = "train") -> None:
        self.split = split
        self.place = source.place
        self.cuts = np.zeros(0, np.int64)  # bytes of each document for this split; past the end: all
        self._source = source
        self._spool = spool
        self._sizes: array[int] | None = None  # of the recipe's documents

    def hold_out(self, valid_bytes: int) -> None:
        """Measure the documents, and leave about `valid_bytes` of them for the split "valid"."""
        if valid_bytes:
            _, documents = self.read("measuring")
            self.cuts = _cuts(np.array(array("q", (sum(map(len, document)) for document in documents))), valid_bytes)

    def read(self, purpose: str, mark: Mark | None = None) -> tuple[Reader, Iterator[Iterator[bytes]]]:
        """Returns a reader, and its documents with a progress bar on the terminal."""
        source, texts = self._source, None
        total: int | None
        if source.is_recipe and self._spool:
            if self._sizes is None:
                self._sizes = array("q")
                bar = tqdm(sources.run_recipe(source.path), "running the file", disable=None, delay=1, leave=False)
                self._sizes.extend(map(self._spool.write, bar))
            self._spool.seek(0)
            total, texts = sum(self._sizes), (_take(self._spool, size) for size in self._sizes)
        else:
            total = None if source.is_recipe else source.size
        reader = Reader(source, mark, texts)
        return reader, _watch(reader, purpose, total)

    def training(self, purpose: str) -> Iterator[bytes]:
        """Yields the text of the training split, at most PART bytes at once."""
        reader, documents = self.read(purpose)
        for document in documents:
            yield from (part.text for part in self.parts(document, reader.counts["documents"]) if part.split == "train")

    def parts(self, document: Iterable[bytes], ordinal: int) -> Iterator[Part]:
        """Yields a document in parts: the first ones for this split, the rest as a document of the held-out split."""
        cut = int(self.cuts[ordinal]) if ordinal < len(self.cuts) else sys.maxsize
        split, waiting, is_new, position = self.split, bytearray(), True, 0
        for chunk in document:
            here = max(cut - position, 0)
            for name, text in ((self.split, chunk[:here]), ("valid", chunk[here:])):
                if not text:
                    continue
                if name != split:
                    if waiting:
                        yield Part(split, is_new, bytes(waiting))
                    split, waiting, is_new = name, bytearray(), True
                waiting += text
                while len(waiting) >= PART:
                    yield Part(split, is_new, bytes(waiting[:PART]))
                    del waiting[:PART]
                    is_new = False
            position += len(chunk)
        if waiting:
            yield Part(split, is_new, bytes(waiting))


def _take(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yields the next `size` bytes of `file`, in chunks."""
    while size:
        chunk = file.read(min(size, files.CHUNK))
        size -= len(chunk)
        yield chunk


def _watch(reader: Reader, purpose: str, total: int | None) -> Iterator[Iterator[bytes]]:
    """Yields a reader's documents, with a progress bar on a terminal if reading takes more than a second."""

    def count(document: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in document:
            yield chunk
            bar.update(len(chunk))

    form = {"unit": "B", "unit_scale": True, "delay": 1, "leave": False, "miniters": 1}
    with tqdm(desc=purpose, total=total, disable=None, **form) as bar:  # None: unless stderr is a terminal
        for document in reader:
            yield count(document)


def _cuts(sizes: np.ndarray, valid_bytes: int) -> np.ndarray:
    """The bytes of each document that are trained on; the rest is held out: [documents] int64."""
    valid_bytes = min(valid_bytes, int(sizes.sum()) // 2)
    cuts = sizes.copy()
    if len(sizes) == 1:
        cuts[0] -= valid_bytes
        return cuts
    missing = valid_bytes
    for ordinal in np.argsort(_scramble(len(sizes)))[:-1].tolist():  # the last one is always trained on
        if sizes[ordinal] < 2 * missing:  # the total is nearer with it than without
            missing -= sizes[ordinal]
            cuts[ordinal] = 0
    if missing == valid_bytes:  # every document is far larger
        cuts[np.argmin(sizes)] = 0
    return cuts


def _scramble(count: int) -> np.ndarray:
    """splitmix64 of 0 to count - 1, a hash without collisions: [count] uint64."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _tokenizer(data: DataConfig, texts: _Texts) -> Tokenizer:
    """The tokenizer of a configuration: read from its file, or trained."""
    if data.tokenizer_file:
        return load_tokenizer(Path(data.tokenizer_file))
    return data.tokenizer.train(texts.training)


def _blocks(splits: list[_Texts], position: Position) -> Iterator[tuple[list[Part], Position]]:
    """Yields the text from a position on, about BLOCK bytes at once, each block with the position after it.

    Raises Changed where the text before the position is not what it was.
    """
    skip = position.parts
    for number in range(position.split, len(splits)):
        texts = splits[number]
        reader, documents = texts.read(f"preparing {texts.split}", position.mark)
        begun, done, crc = reader.mark, 0, 0  # the parts since that mark
        block: list[Part] = []
        size = 0
        for document in documents:
            if reader.mark is not begun:
                begun, done, crc = reader.mark, 0, 0
            for part in texts.parts(document, reader.counts["documents"]):
                done += 1
                crc = zlib.crc32(part.text, zlib.crc32(f"{part.split} {part.is_new}".encode(), crc))
                if skip:
                    skip -= 1
                    if not skip and crc != position.crc:
                        raise Changed(f"{texts.place}: no longer the text that an interrupted preparation read")
                    continue
                block.append(part)
                size += len(part.text)
                if size >= BLOCK:
                    yield block, Position(number, begun, done, crc, position.found)
                    block, size = [], 0
        if skip:
            raise Changed(f"{texts.place}: shorter than when the preparation was interrupted")
        position = Position(number + 1, None, 0, 0, position.found | {texts.split: reader.counts})
        yield block, position


def _encode(tokenizer: Tokenizer, parts: list[Part]) -> list[Run]:
    separator = np.array([SEPARATOR], tokenizer.dtype)
    runs = []
    for split, group in groupby(parts, key=attrgetter("split")):
        some = list(group)
        tokens = [array for p in some for array in ((separator,) if p.is_new else ()) + (tokenizer.encode(p.text),)]
        size = sum(len(part.text) for part in some)
        runs.append(Run(split, np.concatenate(tokens), sum(part.is_new for part in some), size))
    return runs


def _encoded(
    blocks: Iterator[tuple[list[Part], Position]], tokenizer: Tokenizer, processes: int
) -> Iterator[tuple[list[Run], Position]]:
    """Yields the encoded blocks, in order; made by several processes where the tokenizer is slow and the text long."""
    processes = processes or os.cpu_count() or 1
    first = list(islice(blocks, 1))
    is_short = sum(len(part.text) for parts, _ in first for part in parts) < BLOCK
    blocks = chain(first, blocks)
    if processes == 1 or tokenizer.is_quick or is_short:
        yield from ((_encode(tokenizer, parts), position) for parts, position in blocks)
        return
    # Not forked: JAX has threads. A worker imports what tokenizers need, and no JAX.
    context = multiprocessing.get_context("spawn")
    with _safe_path():  # the pool also starts a process that watches the others
        pool = ProcessPoolExecutor(processes, context, _start_worker, (plugins.loaded(), tokenizer.to_json()))

    def submit(parts: list[Part]) -> "Future[list[Run]]":  # which starts a worker where all are busy
        with _safe_path():
            return pool.submit(_encode_in_worker, parts)

    waiting: deque[tuple[Future[list[Run]], Position]] = deque()
    try:
        for parts, position in blocks:
            waiting.append((submit(parts), position))
            if len(waiting) > 2 * processes:
                future, position = waiting.popleft()
                yield future.result(), position
        yield from ((future.result(), position) for future, position in waiting)
    except BrokenProcessPool:
        raise DataError(
            "a worker process died: data.processes = 1 prepares the text without any (a script that prepares "
            "text must be importable: if __name__ == '__main__')"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keeps a Python process started inside from importing from the working directory; it gets this one's paths."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


_worker: Tokenizer


def _start_worker(asked: list[Path], tokenizer: dict[str, Any]) -> None:
    """Set up a worker: it leaves Ctrl-C to the parent, and ends with it, even if the parent is killed."""
    global _worker
    for file in asked:
        plugins.load(file)
    _worker = tokenizer_from_json(tokenizer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _encode_in_worker(parts: list[Part]) -> list[Run]:
    return _encode(_worker, parts)
