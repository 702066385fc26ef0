"""Weights & Biases."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from intlm.tracking.trackers import TRACKERS, Tracker


@TRACKERS.register("wandb")
@dataclass(frozen=True, kw_only=True)
class Wandb(Tracker):
    """Weights & Biases."""

    package: ClassVar[str] = "wandb"

    def start(self, project: str, identity: str, directory: Path, config: dict[str, Any]) -> Any:
        """See `Tracker.start`."""
        import wandb  # slow

        name = directory.absolute().name
        return wandb.init(project=project, id=identity, name=name, dir=directory, config=config, resume="allow")
