"""Where text comes from: files, directories, recipes and data sets, read as documents without holding one in memory.

- A text file is any bytes; they are taken as they are (no decoding, no change of line ends), decompressed where they
  are compressed (`intlm.data.files`).
- A directory is every regular file below it, in the order of their paths; hidden ones are left out.
- A recipe is a Python file (`.py`) that defines `documents()`, an iterator of bytes, one object a document.
  It is code: it is run.
- A data set is rows of columns, one text a row: JSON Lines or Parquet (a file, or a directory that holds any:
  `intlm.data.layouts`), or `hub:OWNER/NAME`, perhaps `@REVISION`, of the Hugging Face hub, which `datasets` reads as a
  stream. In JSON Lines what is not UTF-8 is replaced by U+FFFD.

A document is an iterator of chunks of bytes, so that its size does not matter (but a row is in memory as a whole). It
must be read before the next one is asked for; what is left of it then is skipped. Empty documents are dropped.
"""

import codecs
import importlib.util
import itertools
import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from intlm.data import files
from intlm.data.layouts import Layout, layout
from intlm.data.rows import Rows, hub_rows
from intlm.errors import DataError, reason

VERSION = 2  # of what is read of a place: 1 took paths for patterns and compressed text for text
MARK = 1 << 26  # bytes of a data set from one place where reading may begin again to the next
HUB = "hub:"
COUNTED = ("documents", "bytes", "empty", "filtered", "separators", "not_utf8", "with_nul", "longest")
"""What is counted of a source: documents and their bytes; texts with none in them, rows left out; separators; documents
that are not UTF-8, and with a zero byte; the bytes of the longest."""


class Source(NamedTuple):
    """What to read, and how; the last four are for a data set."""

    place: str  # a path, or hub:OWNER/NAME
    separator: str = ""  # divides a text into documents, and is removed; "": none
    max_bytes: int = 0  # after so many no further document is read; 0: all are
    subset: str = ""
    split: str = "train"
    columns: str = "text"  # those that hold the text, with commas between
    filter: str = ""  # which rows; "": all

    @property
    def path(self) -> Path:
        """The place, where it is a path."""
        return Path(self.place)

    @property
    def is_recipe(self) -> bool:
        """Whether it is Python code that makes documents, rather than text."""
        return self.path.suffix == ".py" and not self.path.is_dir()

    @property
    def is_remote(self) -> bool:
        """Whether it is of the hub."""
        return self.place.startswith(HUB)

    @property
    def is_data_set(self) -> bool:
        """Whether it has rows, rather than being a text."""
        return self.is_remote or (not self.is_recipe and self.layout.has_rows)

    @property
    def layout(self) -> Layout:
        """Which files it is of, and which are left out. DataError if there are none."""
        if self.is_remote:
            return Layout([], True, {}, set())
        return layout(self.path, self.column_names, self.subset, self.split)

    @property
    def column_names(self) -> list[str]:
        """The columns that hold the text."""
        return [name.strip() for name in self.columns.split(",")]

    @property
    def size(self) -> int | None:
        """The bytes of its text, where its files' sizes tell."""
        found = self.layout
        if found.has_rows or any(map(files.is_compressed, found.files)):
            return None
        return sum(path.stat().st_size for path in found.files)


class Mark(NamedTuple):
    """A place in a source where reading may begin again."""

    state: dict[str, Any] | None  # what `datasets` calls so; None: the beginning
    counts: dict[str, int]  # what was counted before it


class Reader:
    """One pass over the documents of a source, each an iterator of chunks.

    Args:
        source: what to read.
        mark: where to begin; None: at the beginning.
        texts: what the source gives, each in chunks, where that is known already; None: it is read.

    Attributes:
        counts: of COUNTED, what was read so far, the document at hand not yet among them.
        mark: the last place before the document at hand where another reader may begin.

    Raises, as it is read, DataError: nothing there, no text in it, a file that cannot be read, a recipe that fails, or
    a data set without what is asked of it; the message names the place.
    """

    def __init__(
        self, source: Source, mark: Mark | None = None, texts: Iterable[Iterable[bytes]] | None = None
    ) -> None:
        self._source = source
        self._texts = self._read() if texts is None else texts
        self.mark = mark or Mark(None, dict.fromkeys(COUNTED, 0))
        self.counts = dict(self.mark.counts)

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        source, found = self._source, 0
        for chunks in self._texts:
            pieces = _split(chunks, source.separator.encode()) if source.separator else chunks
            # Runs of pieces between boundaries (None) are documents. With the empty pieces gone, so are the
            # empty documents; and groupby skips what is left of a document that is not read to its end.
            present = (piece for piece in map(self._seen, pieces) if piece is None or piece)
            before = found
            for is_boundary, document in itertools.groupby(present, key=lambda piece: piece is None):
                if not is_boundary:
                    found += 1
                    yield self._counted(piece for piece in document if piece is not None)
                    if source.max_bytes and self.counts["bytes"] >= source.max_bytes:
                        return
            self.counts["empty"] += found == before
        if not found and not self.counts["documents"]:
            raise DataError(f"{source.place}: no text in it, expected at least one byte")

    def _seen(self, piece: bytes | None) -> bytes | None:
        self.counts["separators"] += piece is None
        return piece

    def _read(self) -> Iterable[Iterable[bytes]]:
        source = self._source
        if source.is_recipe:
            return map(_chunks, run_recipe(source.path))
        found = source.layout
        return self._rows(found.files) if found.has_rows else map(files.chunks, found.files)

    def _counted(self, document: Iterator[bytes]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        size, is_utf8, has_nul = 0, True, False
        for chunk in itertools.chain(document, (b"",)):  # the last: whether a character is cut off
            size += len(chunk)
            has_nul = has_nul or b"\0" in chunk
            if is_utf8:
                try:
                    decoder.decode(chunk, not chunk)
                except UnicodeDecodeError:
                    is_utf8 = False
            if chunk:
                yield chunk
        self.counts["documents"] += 1
        self.counts["bytes"] += size
        self.counts["not_utf8"] += not is_utf8
        self.counts["with_nul"] += has_nul
        self.counts["longest"] = max(size, self.counts["longest"])

    def _rows(self, paths: list[Path]) -> Iterator[Iterator[bytes]]:
        """The text of each row."""
        source, size = self._source, 0
        columns = source.column_names
        is_wanted = row_filter(source.filter)
        rows: Any = None
        try:
            rows = _remote(source) if source.is_remote else Rows(paths)
            if self.mark.state:
                rows.load_state_dict(self.mark.state)
            for row in rows:
                if not is_wanted(row):
                    self.counts["filtered"] += 1
                    continue
                text = b"\n\n".join(_bytes_of(row, name) for name in columns)
                yield _chunks(text)
                size += len(text)
                if size >= MARK:  # all documents of the row have been read
                    self.mark, size = Mark(rows.state_dict(), dict(self.counts)), 0
        except DataError:
            raise
        except Exception as error:  # datasets raises many kinds
            place = rows.place if isinstance(rows, Rows) else source.place
            raise DataError(f"{place}: cannot be read: {reason(error)}") from error


def row_filter(text: str) -> Callable[[dict[str, Any]], bool]:
    """What `text` says of a row: conditions `COLUMN OP VALUE` joined by `and`; no text: always true.

    OP is one of == != < <= > >=, VALUE is JSON. A null is unequal to all else, and neither less nor more. DataError for
    another text; the function raises it for a row without the column.
    """
    order = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
    compare = {"==": operator.eq, "!=": operator.ne, **order}
    conditions = []
    rest = text.strip()
    while rest:
        found = re.match(r"([\w.-]+)\s*(==|!=|<=|>=|<|>)\s*", rest)
        try:
            assert found
            value, end = json.JSONDecoder().raw_decode(rest, found.end())
            after = re.fullmatch(r"(?s)\s+and\s+(\S.*)|", rest[end:])
            assert after
        except (AssertionError, ValueError):
            raise DataError(
                f"data.filter = {text!r}: cannot be read from {rest!r} on: expected COLUMN OP VALUE, joined by and, OP "
                f"one of {' '.join(compare)}, VALUE a number, true, false or a string in double quotes"
            ) from None
        conditions.append((found[1], found[2], value))
        rest = after[1] or ""

    def is_wanted(row: dict[str, Any]) -> bool:
        for name, sign, value in conditions:
            if name not in row:
                raise DataError(f"data.filter: no column {name!r}, only {', '.join(row)}")
            if (sign in order and (row[name] is None or value is None)) or not compare[sign](row[name], value):
                return False
        return True

    return is_wanted


def _remote(source: Source) -> Any:
    name, _, revision = source.place.removeprefix(HUB).partition("@")
    return hub_rows(name, revision, source.subset, source.split)


def _bytes_of(row: dict[str, Any], name: str) -> bytes:
    if name not in row:
        raise DataError(f"data.columns: no column {name!r}, only {', '.join(row)}")
    text = row[name]
    if text is None:
        return b""
    if not isinstance(text, str | bytes):
        raise DataError(f"data.columns: column {name!r} holds {type(text).__name__}, expected text")
    return text.encode() if isinstance(text, str) else text


def _split(chunks: Iterable[bytes], separator: bytes) -> Iterator[bytes | None]:
    """The text between separators in pieces, and None in place of each separator."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator)
        for text in whole:
            yield text
            yield None
        # A separator may have begun within the last len(separator) - 1 bytes: they wait for the next chunk.
        sure = max(0, len(rest) - len(separator) + 1)
        yield rest[:sure]
        rest = rest[sure:]
    yield rest


def _chunks(text: bytes) -> Iterator[bytes]:
    return (text[start : start + files.CHUNK] for start in range(0, len(text), files.CHUNK))


def run_recipe(path: Path) -> Iterator[bytes]:
    """What the recipe's `documents()` yields. DataError where it fails."""
    code = files.read(path)
    spec = importlib.util.spec_from_file_location(f"intlm_recipe_{path.stem}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: dataclasses, for one, look there
    try:
        # Compiled here rather than by the loader, which would trust and leave a cache beside the recipe.
        exec(compile(code, path, "exec"), module.__dict__)
        for document in module.documents():
            if not isinstance(document, bytes):
                raise TypeError(f"documents() yielded {type(document).__name__}, expected bytes")
            yield document
    except Exception as error:
        name, why = type(error).__name__, reason(error)
        raise DataError(f"{path}: the recipe failed: {name}{f': {why}' * (why != name)}") from error
