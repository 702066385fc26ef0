"""The log of a run: each line goes into metrics.jsonl, and then to the trackers that show it."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from intlm.config import Config, tables
from intlm.settings import names_in
from intlm.tracking import metrics
from intlm.tracking.tensorboard import TensorBoard
from intlm.tracking.trackers import Service


class Receiver(Protocol):
    """A receiver of a run's lines."""

    def write(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Log:
    """The trackers of the run in `directory`, its metrics file first. That file is the record: TensorBoard events past
    its end (`metrics.truncate_after`) are removed. A context manager."""

    def __init__(self, directory: Path, config: Config) -> None:
        path = directory / "metrics.jsonl"
        with ExitStack() as stack:
            self._metrics = stack.enter_context(metrics.MetricsWriter(path))
            self._trackers: list[Receiver] = [self._metrics]
            lines = metrics.read(path)
            self._trackers.append(stack.enter_context(closing(TensorBoard(directory, lines))))
            for name in names_in(config.train.trackers):
                self._trackers.append(stack.enter_context(closing(Service(name, directory, tables(config), lines))))
            self._stack = stack.pop_all()

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line to each tracker."""
        for tracker in self._trackers:
            tracker.write(line)

    def sync(self) -> None:
        """Sync the lines to the disk."""
        self._metrics.sync()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
