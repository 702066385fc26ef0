"""Hooks: the actions of a run between updates, each with its own cadence: measure, sample, tell, save.

A hook sees the trainer after an update and the line of metrics, to which it may add. `due` is a function of the update
alone, so that all processes of a run agree; for actions by the clock they agree first (`Save`).
"""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from intlm.checkpoint import Checkpoints
from intlm.config import TrainConfig
from intlm.tracking.log import Log
from intlm.tracking.progress import Progress
from intlm.trainer import Trainer

PROGRESS_TOKENS = 1 << 18  # held-out tokens measured during training; the last measurement takes them all
SAVING_SHARE = 50  # the least time between checkpoints, in times that writing one takes


class Hook(Protocol):
    """An action that is called after updates."""

    def due(self, update: int) -> bool:
        """Whether to call the hook after this update, counted from 1."""

    def __call__(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Run the hook. line: the metrics of the update just made."""


class Measure:
    """Measures held-out loss and the run's health: every `evaluate_every` updates and after the last."""

    def __init__(self, settings: TrainConfig) -> None:
        self.every, self.last = settings.evaluate_every, settings.updates

    def due(self, update: int) -> bool:
        """See `Hook`."""
        return update == self.last or bool(self.every and update % self.every == 0)

    def __call__(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """See `Hook`."""
        line |= trainer.health()
        if trainer.processes.writes:
            valid = trainer.evaluate(None if trainer.update == self.last else PROGRESS_TOKENS)
            if valid:
                line["valid_bits_per_byte"] = valid.summary()["bits_per_byte"]


class Sample:
    """Generates a sample with the shared weights: every `sample_every` updates and after the last."""

    def __init__(self, settings: TrainConfig, progress: Progress | None) -> None:
        self.every, self.last, self.progress = settings.sample_every, settings.updates, progress

    def due(self, update: int) -> bool:
        """See `Hook`."""
        return bool(self.every and (update == self.last or update % self.every == 0))

    def __call__(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """See `Hook`."""
        if self.progress:
            line["sample"] = trainer.sample()
            self.progress.write(f"--- after {trainer.update} updates it writes:\n{line['sample']}\n---")


class Tell:
    """Gives every line to the metrics, the trackers and the progress line."""

    def __init__(self, log: Log, progress: Progress) -> None:
        self.log, self.progress = log, progress

    def due(self, update: int) -> bool:
        """See `Hook`."""
        return True

    def __call__(self, trainer: Trainer, line: Mapping[str, Any]) -> None:
        """See `Hook`."""
        self.log.write(line)
        self.progress.update(**line)


class Save:
    """Saves checkpoints: every `checkpoint_seconds`, less often where one takes long. Not a hook: it goes by the clock.

    checkpoints, log: of the process that writes; the log's lines are on the disk before a checkpoint is.
    """

    def __init__(self, settings: TrainConfig, checkpoints: Checkpoints | None, log: Log | None) -> None:
        self.seconds, self.checkpoints, self.log = settings.checkpoint_seconds, checkpoints, log
        self.saved, self.between = time.monotonic(), float(settings.checkpoint_seconds)

    def wished(self) -> bool:
        """Whether it is time for a checkpoint by this process's clock."""
        return self.checkpoints is not None and time.monotonic() - self.saved >= self.between

    def __call__(self, trainer: Trainer) -> None:
        """Write a checkpoint of the present state. All processes call it."""
        began = time.monotonic()
        if self.log:
            self.log.sync()
        trainer.save(self.checkpoints)
        self.saved = time.monotonic()
        self.between = self.seconds and max(self.seconds, SAVING_SHARE * (self.saved - began))
