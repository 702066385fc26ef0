"""TensorBoard event files in a run's directory: a line's numbers as scalars against the update, samples as text.

- A line is one event, whole in the file before the next update.
- A run that is resumed keeps the events up to its checkpoint and cuts the others off: whatever reads the files finds
  each update once, in order, with the time at which it was made. Lines of metrics.jsonl that the files lack are added.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from intlm.errors import writing


class TensorBoard:
    """Appends to a new event file in `directory`, beside the files of the run's earlier lines."""

    def __init__(self, directory: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._checksum, self._text = record_writer.masked_crc32c, summary.text
        self._events, self._summary = event_pb2, summary_pb2.Summary
        self._directory = directory
        self._file: BinaryIO | None = None
        update = lines[-1]["update"] if lines else 0
        self._newest = 0.0  # the latest time of an event
        kept = max((self._cut(path, update) for path in sorted(directory.glob("events.out.tfevents.*"))), default=0)
        # Files are read in the order of their names, which are times: the clock may have been set back.
        self._behind = max(0.0, self._newest + 1e-5 - time.time())
        for line in lines:
            if line["update"] > kept:
                self.write(line, self._now() - (lines[-1]["seconds"] - line["seconds"]))

    def write(self, line: Mapping[str, Any], wall_time: float | None = None) -> None:
        """Append a metrics line. wall_time: when it was made, in seconds since 1970; None: now."""
        values = []
        for name, value in line.items():
            if isinstance(value, str):
                # Markdown shows indented text as it is.
                values += self._text(name, "\n".join(f"    {row}" for row in value.split("\n"))).value
            elif name != "update":
                values.append(self._summary.Value(tag=name, simple_value=float(value)))
        wall_time = self._now() if wall_time is None else wall_time
        if self._file is None:
            self._open(line["update"])
        self._append(wall_time=wall_time, step=line["update"], summary=self._summary(value=values))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _now(self) -> float:
        """The time in seconds since 1970, never less than that of an event before."""
        self._newest = max(self._newest, time.time() + self._behind)
        return self._newest

    def _open(self, update: int) -> None:
        """Begin a file, whose first line is that of `update`."""
        now = self._now()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        self._file = open(self._directory / name, "xb")  # noqa: SIM115 (open for the length of a run)
        self._append(wall_time=now, file_version="brain.Event:2")
        # A TensorBoard that shows the run now has read the events that were cut off: this makes it forget them.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._append(wall_time=now, step=update, session_log=start)

    def _append(self, **fields: Any) -> None:
        assert self._file is not None
        event = self._events.Event(**fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", self._checksum(part)) for part in (length, event)]
        with writing(Path(self._file.name)):
            self._file.write(length + sums[0] + event + sums[1])
            self._file.flush()

    def _cut(self, path: Path, update: int) -> int:
        """Cut a file before its first event that is later than `update`, torn or damaged, and delete it where no line
        is left. Returns the last update left, 0 where there is none."""
        from google.protobuf.message import DecodeError

        content, end, last = path.read_bytes(), 0, 0
        while len(content) - end >= 12:
            length, checksum = struct.unpack_from("<QI", content, end)
            after = end + 16 + length
            if self._checksum(content[end : end + 8]) != checksum or after > len(content):
                break
            try:
                event = self._events.Event.FromString(content[end + 12 : after - 4])
            except DecodeError:
                break
            if event.step > update:
                break
            self._newest = max(self._newest, event.wall_time)
            end, last = after, event.step if event.HasField("summary") else last
        if not last:
            path.unlink()
        elif end < len(content):
            os.truncate(path, end)
        return last
