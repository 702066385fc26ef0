"""Where text comes from: files, directories and recipes, read as documents without holding one in memory.

- A text file is any bytes; they are taken as they are (no decoding, no change of line ends).
- A directory is every regular file below it, in the order of their paths; hidden ones are left out.
- A recipe is a Python file (`.py`) that defines `documents()`, an iterator of bytes, one object a document.
  It is code: it is run.

A document is an iterator of chunks of bytes, so that its size does not matter. It must be read before the
next one is asked for; what is left of it then is skipped. Empty documents are dropped.
"""

import importlib.util
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from intlm.errors import DataError

CHUNK = 1 << 20  # bytes read at once


def is_recipe(source: Path) -> bool:
    """Whether `source` is Python code that makes documents, rather than text."""
    return source.suffix == ".py" and not source.is_dir()


def files(source: Path) -> list[Path]:
    """The files that `source` consists of, in the order in which they are read. DataError if it has none."""
    if not source.is_dir():
        if not source.is_file():
            raise DataError(f"{source}: no such text file, directory or recipe")
        return [source]
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    result = sorted((path for path in found if path.is_file()), key=lambda path: path.parts)
    if not result:
        raise DataError(f"{source}: a directory with no files in it, expected text files")
    return result


def read_recipe(path: Path) -> bytes:
    """The code of a recipe. DataError if it cannot be read."""
    return b"".join(_read_chunks(path))


def documents(source: Path, separator: str | None) -> Iterator[Iterator[bytes]]:
    """The documents of `source`, each in chunks.

    Args:
        source: a text file, a directory or a recipe.
        separator: divides what the source gives into several documents, and is removed
            (`data.document_separator`); None to leave each file, or object of a recipe, whole.

    Raises:
        DataError: nothing there, no text in it, a file that cannot be read, or a recipe that fails; the
            message names the file.
    """
    if separator == "":
        raise DataError('data.document_separator = "": expected at least one character, or none to be set')
    texts: Iterable[Iterable[bytes]]
    if is_recipe(source):
        texts = ((document,) for document in _run_recipe(source))
    else:
        texts = map(_read_chunks, files(source))
    is_empty = True
    for chunks in texts:
        pieces = _split(chunks, separator.encode()) if separator else chunks
        # Runs of pieces between boundaries (None) are documents. With the empty pieces gone, so are the
        # empty documents; and groupby skips what is left of a document that is not read to its end.
        present = (piece for piece in pieces if piece is None or piece)
        for is_boundary, document in itertools.groupby(present, key=lambda piece: piece is None):
            if not is_boundary:
                is_empty = False
                yield (piece for piece in document if piece is not None)
    if is_empty:
        raise DataError(f"{source}: no text in it, expected at least one byte")


def _read_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


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


def _run_recipe(path: Path) -> Iterator[bytes]:
    """What the recipe's `documents()` yields."""
    code = read_recipe(path)
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
        raise DataError(f"{path}: the recipe failed: {type(error).__name__}: {error}") from error
