"""The metrics file of a run: JSON Lines, one object a line, line n being that of update n.

- A line is written whole and flushed before the next update: a run killed at any moment leaves at most its
  last line torn.
- Resuming from a checkpoint drops the lines past it (`truncate_after`); the others keep their bytes.
"""

import json
import operator
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import msgspec

from intlm.errors import RunError, writing
from intlm.schema import Amount, Count, Positive, convert, parse_json


class Line(msgspec.Struct):
    """The fields that intlm reads by name: some are in every line, others in some. Further fields are only shown."""

    update: Positive
    tokens_evaluated: Count
    tokens_read: Count
    seconds: Amount
    train_bits_per_byte: Amount
    valid_bits_per_byte: Amount | msgspec.UnsetType = msgspec.UNSET
    sample: str | msgspec.UnsetType = msgspec.UNSET


Values = dict[str, Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float | str]


class MetricsWriter:
    """Appends to the metrics file at `path`. Call `truncate_after` first where the file may exist already."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115 (open for the length of a run)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append `line` and flush. Numbers may be NumPy or JAX scalars; NaN and infinity raise ValueError."""
        text = json.dumps(line, allow_nan=False, default=operator.methodcaller("item"))
        with writing(self._path):
            self._file.write(text.encode() + b"\n")
            self._file.flush()

    def sync(self) -> None:
        """Sync all lines to the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path):
            self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of the file, without a torn last one. Damage elsewhere: RunError names the file and line."""
    return [record for _, record in _lines(path)]


def truncate_after(path: Path, update: int) -> None:
    """Drop the lines of updates later than `update`, and a torn last line. No file: nothing to do.

    Atomic: the file is the old one or the new one at every moment. Raises RunError on other damage.
    """
    if not path.exists():
        return
    kept = b"".join(line + b"\n" for line, record in _lines(path) if record["update"] <= update)
    if kept == path.read_bytes():
        return
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        with open(temporary, "wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each whole line (bytes, no newline) with its object."""
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    # Without its newline a line is torn, unless only that is missing: no part of an object is an object.
    with suppress(ValueError, RecursionError):
        json.loads(last)
        lines.append(last)
    for number, line in enumerate(lines, start=1):
        place = f"{path}: line {number}"
        record = parse_json(line, Values, place, RunError)
        convert(record, Line, place, RunError)
        if record["update"] != number:
            raise RunError(f"{place}: damaged: of update {record['update']}, expected {number}: lines are missing")
        yield line, record
