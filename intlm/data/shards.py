"""Prepared corpora on disk: flat files of tokens, mapped into memory, and an index that describes them.

A prepared directory holds

    index.json                the format and its version, the dtype, the tokenizer and its identity, the
                              request ("request"), each split's counts and shards, and its own checksum
    train-00000.bin, ...      the tokens of a split, little-endian uint8 or uint16, nothing else
    valid-00000.bin, ...      (only where text is held out)

Each document is written as the separator and then its tokens, and a split is the concatenation of its shards;
a shard may end anywhere. The starts of documents are not stored: no token of a text is the separator, so a search for
separators finds them. A directory gets its name when all of it is written. Until then it is called `.NAME.partial`, and
`progress.json` in it says how much is certainly on the disk, so that an interrupted preparation can be continued.
"""

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Literal

import msgspec
import numpy as np
from tqdm import tqdm

from intlm.data.tokenizers import Tokenizer, identity, tokenizer_from_json
from intlm.errors import DataError
from intlm.model import SEPARATOR
from intlm.schema import Count, Positive, Sha256, check_range, convert, read_object

FORMAT = "intlm token shards"
VERSION = 1
SHARD_TOKENS = 1 << 28  # the most tokens in a file
CHUNK = 1 << 20  # tokens scanned or decoded at once
PROGRESS = "progress.json"


ShardName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z]+-[0-9]{5,}\.bin\Z")]  # cannot lead out of the directory


class Shard(msgspec.Struct, frozen=True):
    """A file of tokens, as the index describes it."""

    file: ShardName
    tokens: Positive
    sha256: Sha256


class Counts(msgspec.Struct, frozen=True):
    """A split, as the index describes it."""

    documents: Positive
    tokens: Positive
    bytes: Positive
    shards: Annotated[list[Shard], msgspec.Meta(min_length=1)]


class Index(msgspec.Struct, frozen=True):
    """The fields of an index, except those that `read_index` checks."""

    dtype: str
    tokenizer: dict[str, Any]
    tokenizer_identity: str
    request: dict[str, Any]
    splits: dict[str, Counts]
    found: dict[str, dict[str, Count]] = {}
    files: dict[str, dict[str, Any]] = {}


class Changed(DataError):
    """The files of an interrupted preparation, or the text that it had read, have changed since."""


class Split:
    """One split of a corpus: a sequence of tokens on disk, read as needed.

    Attributes:
        tokens: the number of tokens, the separator before each document included.
        documents: the number of documents, at least 1.
        bytes: the number of bytes of text that the tokens stand for; separators stand for none.
        vocab_size: the size of the vocabulary; all tokens are below it.
    """

    def __init__(self, counts: Counts, directory: Path, tokenizer: Tokenizer) -> None:
        self.tokens = counts.tokens
        self.documents = counts.documents
        self.bytes = counts.bytes
        self.vocab_size: int = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self._path = directory / counts.shards[0].file
        self._shards = [_Mapped(directory / shard.file, shard.tokens, tokenizer) for shard in counts.shards]
        self._ends = np.cumsum([shard.tokens for shard in counts.shards])

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Returns the tokens at `positions`, int64 in 0..tokens-1 of any shape: that shape, uint8 or uint16."""
        if len(self._shards) == 1:
            return self._shards[0][positions]
        result = np.empty(positions.shape, self._tokenizer.dtype)
        shard_of = np.searchsorted(self._ends, positions, side="right")
        for number in np.unique(shard_of):
            here, shard = shard_of == number, self._shards[number]
            result[here] = shard[positions[here] - (self._ends[number] - shard.tokens)]
        return result

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns `count` tokens from `start` (any integer) on, as from a ring: [count] uint8 or uint16."""
        result = np.empty(count, self._tokenizer.dtype)
        done = 0
        while done < count:
            position = (start + done) % self.tokens
            number = int(np.searchsorted(self._ends, position, side="right"))
            shard = self._shards[number]
            first = position - int(self._ends[number]) + shard.tokens
            run = shard[first : first + count - done]
            result[done : done + len(run)] = run
            done += len(run)
        return result

    def equals(self, other: "Split") -> bool:
        """Whether both are the same tokens."""
        if self.tokens != other.tokens:
            return False
        return all(np.array_equal(self.read(at, CHUNK), other.read(at, CHUNK)) for at in range(0, self.tokens, CHUNK))

    def document_spans(self) -> Iterator[tuple[int, int]]:
        """Yields each document's (start, end) in tokens, without its separator. DataError if their number is wrong."""
        documents, start = 0, 0
        for position in range(0, self.tokens, CHUNK):
            chunk = self.read(position, min(CHUNK, self.tokens - position))
            if position == 0 and chunk[0] != SEPARATOR:
                raise DataError(f"{self._path}: damaged: begins with token {chunk[0]}, expected a separator")
            for at in (position + np.flatnonzero(chunk == SEPARATOR)).tolist():
                if documents:
                    yield start, at
                documents, start = documents + 1, at + 1
        yield start, self.tokens
        if documents != self.documents:
            raise DataError(f"{self._path}: damaged: {documents} documents, expected {self.documents}")

    def to_bytes(self, limit: int | None = None) -> bytes:
        """Returns the text, nothing between its documents: all of it, or its first `limit` bytes."""
        decoder = self._tokenizer.stream_decoder()
        limit = self.bytes if limit is None else limit
        result = bytearray()
        for position in range(0, self.tokens, CHUNK):
            if len(result) >= limit:
                break
            result += decoder.feed(self.read(position, min(CHUNK, self.tokens - position)))
        return bytes(result[:limit])


class _Mapped:
    """A shard, mapped into memory. It is indexed like an array [tokens], and checks what is read.

    A file that is truncated while it is mapped would end the process (SIGBUS): its size is checked before each read.
    """

    def __init__(self, path: Path, tokens: int, tokenizer: Tokenizer) -> None:
        self.tokens = tokens
        self._path, self._size, self._vocab_size = path, tokens * tokenizer.dtype.itemsize, tokenizer.vocab_size
        try:
            with path.open("rb") as file:
                self._check(os.fstat(file.fileno()).st_size)
                self._file = mmap.mmap(file.fileno(), self._size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self._array = np.frombuffer(self._file, tokenizer.dtype)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        self._check(self._file.size())  # of the file, now
        tokens = self._array[index]
        check_range(tokens, 0, self._vocab_size - 1, self._path, DataError)
        return tokens

    def _check(self, size: int) -> None:
        if size != self._size:
            raise DataError(f"{self._path}: damaged: {size} bytes, expected {self._size}")


class Corpus:
    """A prepared directory, open for reading.

    Attributes:
        directory: its path.
        tokenizer: the tokenizer that made the tokens and decodes them.
        splits: the splits by name: "train", and "valid" where text is held out.
        request: the request that `prepare` was given.
        found: the counts of the text (`sources.COUNTED`): of "train", and of "valid" where it has its own source.
        files: by the same names, the files that were read ("read"; as rows where "has_rows" is true), and those that
            were not, by the reason ("left_out").
        identity: the sha256, in hex, of the tokenizer and of every token: equal where corpora are equal.
    """

    def __init__(self, directory: Path, index: Index) -> None:
        path = directory / "index.json"
        try:
            self.tokenizer = tokenizer_from_json(index.tokenizer)
        except DataError as error:  # its message does not name the file
            raise DataError(f"{path}: damaged: {error}") from None
        self.directory = directory
        self.request = index.request
        self.found = index.found
        self.files = index.files
        for key, value, expected in (
            ("tokenizer_identity", index.tokenizer_identity, identity(self.tokenizer)),
            ("dtype", index.dtype, self.tokenizer.dtype.name),
            *(
                (f"tokens of {k}", split.tokens, sum(s.tokens for s in split.shards))
                for k, split in index.splits.items()
            ),
        ):
            if value != expected:
                raise DataError(f"{path}: damaged: {key} = {value}, expected {expected}")
        self.splits = {name: Split(counts, directory, self.tokenizer) for name, counts in index.splits.items()}
        self.identity = _digest([index.tokenizer_identity, msgspec.to_builtins(index.splits)])
        self._counts = index.splits

    @classmethod
    def open(cls, directory: Path) -> "Corpus":
        """Open a prepared directory, checking its index and the size of every shard.

        Raises:
            DataError: it is missing, of another kind or damaged; the message names the file.
        """
        return cls(directory, convert(read_index(directory), Index, directory / "index.json"))

    def verify(self, *names: str) -> None:
        """Read the splits of these names, or all, and compare the checksums; shows a progress bar where it takes long.

        Raises DataError where a file is damaged, or holds tokens that are not in the vocabulary.
        """
        dtype = self.tokenizer.dtype
        counts = [self._counts[name] for name in names or self._counts]
        form = {"unit": "B", "unit_scale": True, "delay": 1, "leave": False, "disable": None}
        with tqdm(desc="checking shards", total=sum(c.tokens for c in counts) * dtype.itemsize, **form) as bar:
            for shard in (shard for split in counts for shard in split.shards):
                digest, path = hashlib.sha256(), self.directory / shard.file
                with path.open("rb") as file:
                    while block := file.read(CHUNK * dtype.itemsize):
                        digest.update(block)
                        tokens = np.frombuffer(block, dtype, len(block) // dtype.itemsize)
                        check_range(tokens, 0, self.tokenizer.vocab_size - 1, path, DataError)
                        bar.update(len(block))
                if digest.hexdigest() != shard.sha256:
                    actual = digest.hexdigest()
                    raise DataError(f"{path}: damaged: its sha256 is {actual}, expected {shard.sha256}")

    def split(self, name: str) -> Split:
        """Returns the split of that name. DataError where the corpus has none."""
        if name not in self.splits:
            raise DataError(
                f"{self.directory}: no split {name!r}, only {', '.join(self.splits)}"
                + (": set data.valid or data.valid_bytes to hold text out" if name == "valid" else "")
            )
        return self.splits[name]


class CorpusWriter:
    """Writes a prepared directory, all of it or nothing. A context manager; call `finish` before it ends.

    Args:
        directory: its final path. An existing directory is replaced when the new one is whole.
        tokenizer: the tokenizer that makes the tokens.
        shard_tokens: the most tokens in one file.

    Where it ends without `finish`, the state of the last `save` stays on the disk, for `resume`; without a `save`,
    nothing stays.
    """

    def __init__(self, directory: Path, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS) -> None:
        self._directory = directory
        self._scratch = scratch(directory)
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._splits: dict[str, dict[str, Any]] = {}
        self._files: dict[str, IO[bytes]] = {}  # each split's last shard, open
        self._hashes: dict[str, Any] = {}

    def __enter__(self) -> "CorpusWriter":
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if not (self._scratch / PROGRESS).exists():
            shutil.rmtree(self._scratch, ignore_errors=True)

    def resume(self, splits: dict[str, dict[str, Any]]) -> None:
        """Continue from the last `save`; drops what was written after it. Changed: a shard is not as it was then."""
        try:
            msgspec.convert(splits, dict[Literal["train", "valid"], Counts])
        except msgspec.ValidationError as error:
            raise Changed(f"{self._scratch / PROGRESS}: changed since the interruption: {error}") from None
        for split, counts in splits.items():
            for number, shard in enumerate(counts["shards"]):
                path, left = (
                    self._scratch / _shard_name(split, number),
                    shard["tokens"] * self._tokenizer.dtype.itemsize,
                )
                try:
                    file = self._files[split] = path.open("r+b")
                    digest = self._hashes[split] = hashlib.sha256()
                    while left and (block := file.read(min(left, CHUNK))):
                        digest.update(block)
                        left -= len(block)
                except OSError as error:
                    raise Changed(f"{path}: cannot be read: {error.strerror}") from None
                if digest.hexdigest() != shard["sha256"]:
                    raise Changed(f"{path}: changed since the preparation was interrupted")
                if number + 1 < len(counts["shards"]):
                    file.close()
            file.truncate()
            file.seek(0, os.SEEK_END)
        self._splits = splits

    def save(self, progress: dict[str, Any]) -> None:
        """Sync everything written so far to the disk, and write `progress` (JSON) and the notes that `resume` needs."""
        for split, file in self._files.items():
            _sync(file)
            self._splits[split]["shards"][-1]["sha256"] = self._hashes[split].hexdigest()
        noted = progress | {"splits": self._splits}
        _write_json(self._scratch / PROGRESS, noted | {"checksum": _digest(noted)})

    def write(self, split: str, text: bytes, new_document: bool) -> None:
        """Add `text` to `split`, as the beginning of a document or as more of its last one."""
        tokens = self._tokenizer.encode(text)
        if new_document:
            tokens = np.concatenate([np.array([SEPARATOR], tokens.dtype), tokens])
        self.append(split, tokens, int(new_document), len(text))

    def append(self, split: str, tokens: np.ndarray, documents: int, size: int) -> None:
        """Add `tokens` to `split`: [tokens] of the tokenizer's dtype, of `size` bytes; `documents` begin in them."""
        counts = self._splits.setdefault(split, {"documents": 0, "tokens": 0, "bytes": 0, "shards": []})
        counts["documents"] += documents
        counts["tokens"] += len(tokens)
        counts["bytes"] += size
        shards = counts["shards"]
        while len(tokens):
            if not shards or shards[-1]["tokens"] == self._shard_tokens:
                self._close_shard(split)
                shards.append({"file": _shard_name(split, len(shards)), "tokens": 0})
                self._files[split] = (self._scratch / shards[-1]["file"]).open("wb")
                self._hashes[split] = hashlib.sha256()
            run, tokens = np.split(tokens, [self._shard_tokens - shards[-1]["tokens"]])
            shards[-1]["tokens"] += len(run)
            self._files[split].write(run.data)
            self._hashes[split].update(run.data)

    def finish(
        self,
        request: dict[str, Any],
        found: dict[str, dict[str, int]] | None = None,
        files: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Write the index, with `request`, `found` and `files` (see `Corpus`), and give the directory its name.

        Every split must have been written to; a corpus has a "train" split at least. DataError where two are the same.
        """
        for split in self._splits:
            self._close_shard(split)
        sums = [[shard["sha256"] for shard in split["shards"]] for split in self._splits.values()]
        if sums[0] in sums[1:]:
            raise DataError(f"{self._directory}: the held-out text is the training text: expected other text")
        index = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self._tokenizer.dtype.name,
            "tokenizer": self._tokenizer.to_json(),
            "tokenizer_identity": identity(self._tokenizer),
            "request": request,
            "found": found or {},
            "files": files or {},
            "splits": self._splits,
        }
        _write_json(self._scratch / "index.json", index | {"checksum": _digest(index)})
        shards = {shard["file"] for split in self._splits.values() for shard in split["shards"]}
        if self._directory.is_dir():
            # A name cannot be exchanged in one step everywhere: for a moment there is no directory at all.
            discard_replaced(self._directory)
            self._directory.rename(_replaced(self._directory))
        self._scratch.rename(self._directory)
        discard_replaced(self._directory)
        for path in self._directory.iterdir():  # the files for resuming
            if path.name not in shards | {"index.json"}:
                path.unlink()

    def _close_shard(self, split: str) -> None:
        if split in self._files:
            file = self._files.pop(split)
            _sync(file)
            file.close()
            self._splits[split]["shards"][-1]["sha256"] = self._hashes.pop(split).hexdigest()


def scratch(directory: Path) -> Path:
    """The path at which a corpus is written until it is whole."""
    return directory.parent / f".{directory.name}.partial"


def discard_replaced(directory: Path) -> None:
    """Delete the directory that a corpus replaced, if the process that replaced it was killed before it could."""
    shutil.rmtree(_replaced(directory), ignore_errors=True)


def _replaced(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.replaced"


def read_progress(directory: Path) -> dict[str, Any] | None:
    """Reads the notes of `CorpusWriter.save` in a scratch directory; None without any. Changed: they are damaged."""
    path = directory / PROGRESS
    if not path.exists():
        return None
    try:
        progress = json.loads(path.read_bytes())
        if progress.pop("checksum", None) == _digest(progress):
            return dict(progress)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        pass
    raise Changed(f"{path}: changed since the preparation was interrupted")


def read_index(directory: Path) -> dict[str, Any]:
    """Reads the index of a prepared directory, and checks its checksum. DataError where it is missing or damaged."""
    path = directory / "index.json"
    index = read_object(path, ": expected a prepared corpus")
    if index.get("format") != FORMAT:
        raise DataError(f'{path}: not the index of a prepared corpus: expected "format": "{FORMAT}"')
    if index.get("version") != VERSION:
        raise DataError(f"{path}: version {index.get('version')} of the format: expected {VERSION}")
    if index.pop("checksum", None) != _digest(index):
        raise DataError(f"{path}: damaged: its contents do not match its checksum")
    return index


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05}.bin"


def _digest(value: Any) -> str:
    """The sha256, in hex, of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    """Replace a file by `value`, atomically and synced to the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        _sync(file)
    os.replace(temporary, path)


def _sync(file: IO[Any]) -> None:
    """Sync a file to the disk, before the directory gets its name."""
    file.flush()
    os.fsync(file.fileno())
