"""Rows of data sets: of JSON Lines and Parquet files, one file after the other, or of the hub.

A row is a dict of columns. `state_dict` returns the position of the reading, and `load_state_dict` continues from
there, as in the data sets of `datasets`.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from intlm.data import files
from intlm.errors import DataError, reason

LONGEST = 1 << 30  # bytes of a line of JSON
BATCH_ROWS = 64  # rows of Parquet held at once; fewer where rows are long:
BATCH = 1 << 24  # bytes at once, by the average length of a row
MOST = 1 << 32  # bytes at once, if each row were as long as its whole row group


class Rows:
    """The rows of some files, in their order."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._state = {"file": 0, "row": 0}

    @property
    def place(self) -> str:
        """The place of the row that was read last, in words."""
        return f"{self._paths[self._state['file']]}, row {self._state['row']}"

    def state_dict(self) -> dict[str, int]:
        """The position of the reading: the file, and the number of its rows that have been read."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the position of a `state_dict`."""
        self._state = dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the rows. A DataError names the file, and in JSON the line."""
        state = self._state
        for number in range(state["file"], len(self._paths)):
            path = self._paths[number]
            rows = parquet_rows if files.form(path) == "parquet" else json_rows
            for row in rows(path, state["row"]):
                state["row"] += 1
                yield row
            state.update(file=number + 1, row=0)


def json_rows(path: Path, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the objects of JSON Lines from number `skip` on. Bytes that are not UTF-8 are replaced by U+FFFD."""
    return (_parsed(*line) for line in islice(_lines(str(path), files.chunks(path)), skip, None))


def _parsed(place: str, line: bytes) -> dict[str, Any]:
    """Returns the object of a line of JSON. Strings stay strings, also where they look like a time or a number."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
        if not isinstance(row, dict):
            raise ValueError(f"it is a {type(row).__name__}")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not a JSON object: {reason(error)}: expected one per line (for an array: `jq -c '.[]'`)"
        ) from None
    return row


def _lines(path: str, chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yields the lines that are not blank, each with its place, without a byte order mark."""
    for number, line in enumerate(_divided(path, chunks), start=1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text and not text.isspace():
            yield f"{path}, line {number}", text


def _divided(path: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    line, number = bytearray(), 1
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        line += first
        for text in more:
            yield bytes(line)
            line[:] = text
            number += 1
        if len(line) > LONGEST:
            raise DataError(f"{path}, line {number}: longer than {LONGEST:,} bytes, expected a row of at most that")
    yield bytes(line)


def parquet_rows(path: Path, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file from number `skip` on."""
    with files.reading(path):
        import pyarrow
        from pyarrow import parquet

        pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # it frees the memory of a long row
        with (
            path.open("rb") as file,
            parquet.ParquetFile(file, buffer_size=files.CHUNK, page_checksum_verification=True) as table,
        ):
            for number in range(table.num_row_groups):
                group = table.metadata.row_group(number)
                if skip >= group.num_rows:
                    skip -= group.num_rows
                    continue
                size = max(group.total_byte_size, 1)
                fitting = min(BATCH_ROWS, BATCH * group.num_rows // size, MOST // size)
                for batch in table.iter_batches(max(fitting, 1), [number]):
                    yield from batch.slice(skip).to_pylist()
                    skip = max(skip - len(batch), 0)


def _batches(lines: Iterable[tuple[str, bytes]]) -> Iterator[list[dict[str, Any]]]:
    """Yields the lines as rows, about a megabyte of them at once."""
    some, size = [], 0
    for place, line in lines:
        some.append({"place": place, "line": line})
        size += len(line)
        if size >= files.CHUNK:
            yield some
            some, size = [], 0
    yield some


class HubLines:
    """The rows of JSON Lines of the hub. `datasets` only gives the lines: its own parser would guess the columns and
    their types anew in every block of a file."""

    def __init__(self, builder: Any, split: str) -> None:
        import datasets
        import pyarrow

        config = datasets.DownloadConfig(token=builder.token, storage_options=builder.storage_options)

        def tables(files_iterables: Iterable[Iterable[str]], **_: object) -> Iterator[tuple[Any, Any]]:
            for shard, paths in enumerate(files_iterables):
                for path in paths:
                    with datasets.utils.file_utils.xopen(path, "rb", download_config=config) as file:
                        head = file.read(files.CHUNK)
                        lines = _lines(path, chain([head], iter(partial(file.read, files.CHUNK), b"")))
                        if head.lstrip().startswith(b"["):  # an array: the file is read whole
                            items = json.loads((head + file.read()).decode("utf-8", "replace"))
                            lines = (
                                (f"{path}, item {i}", json.dumps(x).encode()) for i, x in enumerate(items, start=1)
                            )
                        for number, some in enumerate(_batches(lines)):
                            yield datasets.builder.Key(shard, number), pyarrow.Table.from_pylist(some, schema)

        schema = pyarrow.schema({"place": pyarrow.string(), "line": pyarrow.large_binary()})
        builder.info.features = datasets.Features.from_arrow_schema(schema)
        builder._generate_tables = tables
        self._lines = builder.as_streaming_dataset(split=split)
        self.state_dict, self.load_state_dict = self._lines.state_dict, self._lines.load_state_dict

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (_parsed(row["place"], row["line"]) for row in self._lines)


def hub_rows(name: str, revision: str, subset: str, split: str) -> Any:
    """The rows of a split of a data set of the hub, with `state_dict` and `load_state_dict` as `Rows` has them."""
    import datasets  # slow to import
    import pyarrow
    from datasets.packaged_modules.json.json import Json

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    builder = datasets.load_dataset_builder(name, subset or None, revision=revision or None)
    if isinstance(builder, Json):
        return HubLines(builder, split)
    return builder.as_streaming_dataset(split=split)
