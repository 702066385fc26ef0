"""Finds the files of a folder, and reads a file's bytes, compressed or not.

Text may be compressed by gzip, bzip2, xz or zstd, whatever the file's name. Other containers that are known by their
first bytes are refused, as their bytes are no text. However large a file expands to, only a chunk of it is in memory.
"""

import lzma
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import IO, NamedTuple

from intlm.errors import DataError, reason

CHUNK = 1 << 20  # bytes read at once
XZ_MEMORY = 1 << 28  # bytes that a decompressor of xz may take: `xz -9` asks for a quarter of them
_HEAD = 512  # first bytes of a file that identify a container
_COMPRESSED = {
    "gzip": rb"\x1f\x8b\x08",
    "bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
}
_NAMES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_REFUSED = {
    "Parquet": rb"PAR[1E]",
    "Arrow": rb"ARROW1|\xff{4}..\0\0",
    "a zip archive": rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    "a tar archive": rb".{257}ustar",
    "a 7-Zip archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "data compressed by lz4": rb"\x04\x22\x4d\x18",
    "data compressed by compress": rb"\x1f\x9d",
    "UTF-32 text": rb"\xff\xfe\0\0|\0\0\xfe\xff",
    "UTF-16 text": rb"\xff\xfe|\xfe\xff",
    "a PDF": rb"%PDF-",
    "an SQLite database": rb"SQLite format 3\0",
    "HDF5": rb"\x89HDF\r\n\x1a\n",
    "Avro": rb"Obj\x01",
    "data compressed twice": b"|".join(_COMPRESSED.values()),
}
_ANY_REFUSED = re.compile(b"|".join(_REFUSED.values()), re.DOTALL)
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Found(NamedTuple):
    """The files at or below a path."""

    files: list[Path]  # in the order of their paths
    left_out: dict[str, list[Path]]  # files that are not read, by the reason
    folders: set[tuple[int, int]]  # the folders that were searched, by `identity`


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any exception raised inside into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decompressors and pyarrow raise many kinds
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error


def find(place: Path) -> Found:
    """Returns the regular files at or below `place`, links followed; hidden files and special files are left out.

    A folder is searched once, however many links lead to it. Raises DataError where `place` does not exist or is
    neither file nor folder, and for a folder that cannot be read.
    """
    found = Found([], {}, set())
    waiting = [place]
    while waiting:
        path = waiting.pop()
        try:
            why = _look(path, found, waiting) if path is place or not path.name.startswith(".") else "hidden"
        except (OSError, RuntimeError, ValueError) as error:
            if path is place and isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink():
                raise DataError(f"{place}: no such text file, directory or .py file") from None
            if not path.is_symlink() or path.exists():
                raise DataError(f"{path}: cannot be read: {reason(error)}") from error
            why = "a broken link"
        if why and path is place:
            raise DataError(f"{place}: {why}: expected a text file, a directory or a .py file")
        if why:
            found.left_out.setdefault(why, []).append(path)
    if not found.files:
        what = "a directory with no files in it" if not found.left_out else f"nothing to read in it ({told(found)})"
        raise DataError(f"{place}: {what}: expected text files")
    return found


def _look(path: Path, found: Found, waiting: list[Path]) -> str:
    """Add a file to `found`, or a folder's contents to `waiting`. Returns why it was left out; empty if it was not."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        found.files.append(path)
    elif stat.S_ISDIR(mode):
        if identity(path) in found.folders:
            return "a link to a folder that is read already"
        found.folders.add(identity(path))
        waiting += sorted(path.iterdir(), key=attrgetter("name"), reverse=True)
    return _KINDS.get(stat.S_IFMT(mode), "")


def identity(path: Path) -> tuple[int, int]:
    """The identity of a folder, whatever name leads to it: device and inode."""
    status = path.stat()
    return status.st_dev, status.st_ino


def told(found: Found) -> str:
    """One line about the files that were left out."""
    return ", ".join(f"{paths[0].name}: {why}" for why, paths in found.left_out.items())


def form(path: Path) -> str:
    """The format of a file by its name, compressed or not: "jsonl", "json", "parquet" or "text"."""
    name = path.with_suffix("") if path.suffix.lower() in _NAMES else path
    suffix = name.suffix.lower()
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}.get(suffix, "text")


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() in _NAMES


def read(path: Path) -> bytes:
    """Returns the contents of a file, decompressed. DataError if it cannot be read."""
    return b"".join(chunks(path))


def chunks(path: Path) -> Iterator[bytes]:
    """Yields the contents of a file, decompressed, in pieces of at most CHUNK bytes.

    DataError if it cannot be read, is damaged, is no regular file, or is a container of a kind that is refused.
    """
    with reading(path):
        if what := _KINDS.get(stat.S_IFMT(path.stat().st_mode)):  # before it is opened: a FIFO would wait for ever
            raise DataError(f"{path}: {what}: expected a file")
    with reading(path), path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(0)
        method = next((name for name, magic in _COMPRESSED.items() if re.match(magic, head)), None)
        named = _NAMES.get(path.suffix.lower(), method)
        if head and named != method:
            raise DataError(f"{path}: cannot be read: not {named}, although its name says so")
        is_first = True
        for chunk in _decompressed(file, method):
            if is_first:
                check(path, chunk)
            is_first = is_first and not chunk
            if chunk:
                yield chunk


def check(path: Path, head: bytes) -> None:
    """Raise DataError for a file whose first bytes show that it is not text; the message names its format."""
    if not _ANY_REFUSED.match(head, 0, _HEAD):
        return
    kind = next(kind for kind, magic in _REFUSED.items() if re.match(magic, head[:_HEAD], re.DOTALL))
    raise DataError(
        f"{path}: holds {kind}: expected text (UTF-8), JSON Lines (.jsonl), or these compressed by gzip, bzip2, xz or "
        "zstd; or Parquet (.parquet)"
    )


def _decompressed(file: IO[bytes], method: str | None) -> Iterator[bytes]:
    if method == "xz":
        yield from _from_xz(file)
        return
    if method:
        import pyarrow  # it notices a stream that is cut off; zstandard's reader takes that for the end

        file = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), method)
    while chunk := file.read(CHUNK):
        yield chunk


def _from_xz(file: IO[bytes]) -> Iterator[bytes]:
    """Decompresses xz. `lzma.open` would take damage after a first stream for the end, and use any amount of memory."""
    data = file.read(CHUNK)
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
        while not stream.eof:
            if stream.needs_input and not data:
                data = file.read(CHUNK)
                if not data:
                    raise EOFError("cut off")
            yield stream.decompress(data, CHUNK)
            data = b""
        data = stream.unused_data
        while (data := data.lstrip(b"\0")) == b"" and (data := file.read(CHUNK)):
            pass
