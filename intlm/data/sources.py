"""Sources of text: files, directories, Python files and data sets, read as documents without holding one in memory.

- A text file is any bytes; they are taken as they are (no decoding, no change of line ends), decompressed where they
  are compressed (`intlm.data.files`).
- A directory is every regular file below it, in the order of their paths; hidden ones are left out.
- A recipe is a Python file (`.py`) that defines `documents()`, an iterator of bytes, one object per document.
  It is run, as any code.
- A data set is rows of columns, one text per row: JSON Lines or Parquet (a file, or a directory that holds any:
  `intlm.data.layouts`), or `hub:OWNER/NAME`, perhaps `@REVISION`, of the Hugging Face hub, which `datasets` reads as a
  stream. In JSON Lines, bytes that are not UTF-8 are replaced by U+FFFD.

A document is an iterator of chunks of bytes, so that its size does not matter (but a row is in memory as a whole). It
must be read before the next document is requested, which skips the rest of it. Empty documents are dropped.
"""

import codecs
import importlib.util
import itertools
import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from intlm.data import files
from intlm.data.layouts import Layout, layout
from intlm.data.rows import Rows, hub_rows
from intlm.errors import DataError, reason

PATIENCE = 100_000  # a requested column must occur in the first so many rows: JSON may leave a null out
VERSION = 2  # the version of how a path is read: 1 took paths for patterns and compressed text for text
MARK = 1 << 26  # bytes of a data set between places from which an interrupted reading can continue
HUB = "hub:"
COUNTED = ("documents", "bytes", "empty", "filtered", "separators", "not_utf8", "with_nul", "longest")
"""The counts of a source: documents and their bytes; empty texts and filtered rows, both left out; separators;
documents that are not UTF-8; documents with a zero byte; the bytes of the longest document."""


class Source(NamedTuple):
    """A path or data set to read, and how; the last four fields are for a data set."""

    place: str  # a path, or hub:OWNER/NAME
    separator: str = ""  # divides a text into documents, and is removed; "": none
    max_bytes: int = 0  # reading ends with the document that reaches it; 0: no limit
    subset: str = ""
    split: str = "train"
    columns: str = "text"  # the columns that hold the text, separated by commas
    filter: str = ""  # a condition on rows; "": all rows

    @property
    def path(self) -> Path:
        """The place, where it is a path."""
        return Path(self.place)

    @property
    def is_recipe(self) -> bool:
        """Whether it is a Python file that yields documents."""
        return self.path.suffix == ".py" and not self.path.is_dir()

    @property
    def is_remote(self) -> bool:
        """Whether it is a data set of the hub."""
        return self.place.startswith(HUB)

    @property
    def is_data_set(self) -> bool:
        """Whether it consists of rows, not of plain text."""
        return self.is_remote or (not self.is_recipe and self.layout.has_rows)

    @property
    def layout(self) -> Layout:
        """The files of the source, and those that are left out. DataError if there are none to read."""
        if self.is_remote:
            return Layout([], True, {}, set())
        return layout(self.path, self.column_names, self.subset, self.split)

    @property
    def column_names(self) -> list[str]:
        """The columns that hold the text."""
        return [name.strip() for name in self.columns.split(",")]

    @property
    def size(self) -> int | None:
        """The bytes of its text; None where the sizes of its files do not tell."""
        layout = self.layout
        if layout.has_rows or any(map(files.is_compressed, layout.files)):
            return None
        return sum(path.stat().st_size for path in layout.files)


class Mark(NamedTuple):
    """A position in a source from which reading can start again."""

    state: dict[str, Any] | None  # the `state_dict` of the rows; None: the beginning
    counts: dict[str, int]  # what was counted before it


class Reader:
    """One pass over the documents of a source, each an iterator of chunks.

    Args:
        source: what to read.
        mark: where to begin; None: at the beginning.
        texts: the source's texts, each in chunks, where they have been read already; None: the source is read.

    Attributes:
        counts: the counts of COUNTED so far, without the document being read.
        mark: the last position before the document being read from which another reader can start.

    Reading raises DataError where nothing is there, there is no text in it, a file cannot be read, a recipe fails, or a
    data set lacks what is asked of it; the message names the place.
    """

    def __init__(
        self, source: Source, mark: Mark | None = None, texts: Iterable[Iterable[bytes]] | None = None
    ) -> None:
        self._source = source
        self._texts = self._read() if texts is None else texts
        self.mark = mark or Mark(None, dict.fromkeys(COUNTED, 0))
        self.counts = dict(self.mark.counts)
        self._unseen: dict[str, str] = {}  # columns that no row has had so far -> the key that asks for them
        self._others: list[str] = []  # the columns of that row

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        source, nonempty = self._source, 0
        for chunks in self._texts:
            pieces = _split(chunks, source.separator.encode()) if source.separator else chunks
            # Runs of pieces between boundaries (None) are documents. With the empty pieces gone, so are the
            # empty documents; and groupby skips the rest of a document that is not read to its end.
            present = (piece for piece in map(self._seen, pieces) if piece is None or piece)
            before = nonempty
            for is_boundary, document in itertools.groupby(present, key=lambda piece: piece is None):
                if not is_boundary:
                    nonempty += 1
                    yield self._counted(piece for piece in document if piece is not None)
                    if source.max_bytes and self.counts["bytes"] >= source.max_bytes:
                        self._expect_all()
                        return
            self.counts["empty"] += nonempty == before
        self._expect_all()
        if not nonempty and not self.counts["documents"]:
            raise DataError(f"{source.place}: no text in it, expected at least one byte")

    def _seen(self, piece: bytes | None) -> bytes | None:
        self.counts["separators"] += piece is None
        return piece

    def _read(self) -> Iterable[Iterable[bytes]]:
        source = self._source
        if source.is_recipe:
            return map(_chunks, run_recipe(source.path))
        layout = source.layout
        return self._rows(layout.files) if layout.has_rows else map(files.chunks, layout.files)

    def _counted(self, document: Iterator[bytes]) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        size, is_utf8, has_nul = 0, True, False
        for chunk in itertools.chain(document, (b"",)):  # the last chunk tells whether a character is cut off
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
        """Yields the text of each row."""
        source, size = self._source, 0
        columns = source.column_names
        conditions = row_filter(source.filter)
        unseen = {name: "data.filter" for name, _, _ in conditions} | dict.fromkeys(columns, "data.columns")
        read = 0
        rows: Any = None
        try:
            rows = _remote(source) if source.is_remote else Rows(paths)
            if self.mark.state:
                rows.load_state_dict(self.mark.state["rows"])
                read, unseen = self.mark.state["read"], dict(self.mark.state["unseen"])
            self._unseen = unseen
            for row in rows:
                read += 1
                if unseen:
                    for name in unseen.keys() & row.keys():
                        del unseen[name]
                    self._others = list(row)
                    if read >= PATIENCE:
                        self._expect_all()
                try:
                    text = _text_of(row, columns) if is_wanted(row, conditions) else None
                except DataError as error:
                    place = rows.place if isinstance(rows, Rows) else f"{source.place}, row {read}"
                    raise DataError(f"{place}: {error}") from None
                if text is None:
                    self.counts["filtered"] += 1
                    continue
                yield _chunks(text)
                size += len(text)
                if size >= MARK:  # all documents of the row have been read
                    state = {"rows": rows.state_dict(), "read": read, "unseen": dict(unseen)}
                    self.mark, size = Mark(state, dict(self.counts)), 0
        except DataError:
            raise
        except Exception as error:  # datasets raises many kinds
            place = rows.place if isinstance(rows, Rows) else source.place
            raise DataError(f"{place}: cannot be read: {reason(error)}") from error

    def _expect_all(self) -> None:
        """Raises DataError where no row had one of the columns that are asked for."""
        for name, key in self._unseen.items():
            raise DataError(f"{self._source.place}: {key}: no column {name!r}, only {', '.join(self._others)}")


class Condition(NamedTuple):
    """One condition of a filter: a column compared with a value."""

    column: str
    sign: str
    value: float | str | bool | None


_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"==": operator.eq, "!=": operator.ne, **_ORDER}


def row_filter(text: str) -> list[Condition]:
    """Returns the conditions of `text`: `COLUMN OP VALUE`, joined by `and`; an empty text has none.

    OP is one of == != < <= > >=, VALUE a number, a string, true, false or null as JSON writes them. DataError for
    another text.
    """
    conditions = []
    rest = text.strip()
    while rest:
        match = re.match(r"([\w.-]+)\s*(==|!=|<=|>=|<|>)\s*", rest)
        try:
            assert match
            value, end = json.JSONDecoder().raw_decode(rest, match.end())
            after = re.fullmatch(r"(?s)\s+and\s+(\S.*)|", rest[end:])
            assert after and not isinstance(value, list | dict)
        except (AssertionError, ValueError, RecursionError):
            raise DataError(
                f"data.filter = {text[:60]!r}: not understood from {rest[:60]!r} on: expected COLUMN OP VALUE, joined "
                f'by and, OP one of {" ".join(_COMPARE)}, VALUE a number, a "string", true, false or null'
            ) from None
        conditions.append(Condition(match[1], match[2], value))
        rest = after[1] or ""
    return conditions


def is_wanted(row: dict[str, Any], conditions: list[Condition]) -> bool:
    """Whether a row meets all of the conditions.

    A column that a row does not have is null. Null is unequal to all else, and neither less nor greater. DataError
    where a value is compared with one of another type; all numbers are of one type.
    """
    for name, sign, expected in conditions:
        value = row.get(name)
        if value is None or expected is None:
            if sign in _ORDER or not _COMPARE[sign](value, expected):
                return False
            continue
        if (kind := _kind(value)) != (wanted := _kind(expected)):
            condition = f"{name} {sign} {json.dumps(expected)}"
            raise DataError(f"data.filter: {condition}: compares {kind}, {str(value)[:60]!r}, with {wanted}")
        if not _COMPARE[sign](value, Decimal(str(expected)) if isinstance(value, Decimal) else expected):
            return False
    return True


def _kind(value: Any) -> str:
    """The type of a value, in words."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float | Decimal):
        return "a number"
    return {"str": "a string", "datetime": "a time", "dict": "an object"}.get(kind := type(value).__name__, f"a {kind}")


def _remote(source: Source) -> Any:
    name, _, revision = source.place.removeprefix(HUB).partition("@")
    return hub_rows(name, revision, source.subset, source.split)


def _text_of(row: dict[str, Any], columns: Iterable[str]) -> bytes:
    """Returns the texts of some columns, a blank line between them; null is no text. DataError for other types."""
    texts = []
    for name in columns:
        text = b"" if row.get(name) is None else row[name]
        if not isinstance(text, str | bytes):
            raise DataError(f"data.columns: column {name!r} holds {type(text).__name__}, expected text")
        try:
            texts.append(text.encode() if isinstance(text, str) else text)
        except UnicodeEncodeError:
            raise DataError(f"data.columns: column {name!r} holds half a surrogate pair, expected text") from None
    return b"\n\n".join(texts)


def _split(chunks: Iterable[bytes], separator: bytes) -> Iterator[bytes | None]:
    """Yields the text between separators in pieces, and None in place of each separator."""
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
    """Yields what the recipe's `documents()` yields. DataError where it fails."""
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
        raise DataError(f"{path}: the Python file failed: {name}{f': {why}' * (why != name)}") from error
