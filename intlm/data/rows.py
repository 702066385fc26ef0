"""Rows of data sets: of JSON Lines and Parquet files one after the other, or of the hub.

A row is a dict of columns. `state_dict` says after which row the reading is, and `load_state_dict` begins there, as the
data sets of `datasets` do.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intlm.data import files
from intlm.errors import DataError, reason

LONGEST = 1 << 30  # bytes of a line of JSON
BATCH_ROWS = 64  # of Parquet, held at once, fewer where they are
BATCH = 1 << 24  # bytes long on average, or where each could be as long as all of its group and that makes
MOST = 1 << 32  # bytes


class Rows:
    """The rows of some files, in their order."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._state = {"file": 0, "row": 0}

    @property
    def place(self) -> str:
        """The row that was read last, for people."""
        return f"{self._paths[self._state['file']]}, row {self._state['row']}"

    def state_dict(self) -> dict[str, int]:
        """Where the reading is: which file, and how many of its rows have been read."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin there."""
        self._state = dict(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows. DataError names the file, and of JSON the line."""
        state = self._state
        for number in range(state["file"], len(self._paths)):
            path = self._paths[number]
            rows = parquet_rows if files.form(path) == "parquet" else json_rows
            for row in rows(path, state["row"]):
                state["row"] += 1
                yield row
            state.update(file=number + 1, row=0)


def json_rows(path: Path, skip: int = 0) -> Iterator[dict[str, Any]]:
    """The objects of JSON Lines from the one with the number `skip` on. What is not UTF-8 is replaced by U+FFFD."""
    for number, line in enumerate(_lines(path), start=1):
        if not line or line.isspace():
            continue
        if skip:
            skip -= 1
            continue
        text = line.decode("utf-8", "replace")
        try:
            row = json.loads(text.removeprefix("\ufeff") if number == 1 else text)
            if not isinstance(row, dict):
                raise ValueError(f"it is a {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: not a JSON object: {reason(error)}: expected one a line (of an array "
                "`jq -c '.[]'` makes them)"
            ) from None
        yield row


def _lines(path: Path) -> Iterator[bytes]:
    line, number = bytearray(), 1
    for chunk in files.chunks(path):
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
    """The rows of a Parquet file from the one with the number `skip` on."""
    with files.reading(path):
        import pyarrow
        from pyarrow import parquet

        pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # which gives back what a long row took
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


def hub_rows(name: str, revision: str, subset: str, split: str) -> Any:
    """The rows of a split of a data set of the hub, a `datasets.IterableDataset`."""
    import datasets  # slow to import
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets.load_dataset(name, subset or None, revision=revision or None, split=split, streaming=True)
