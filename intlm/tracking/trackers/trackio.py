"""trackio, which keeps runs on this machine or in a Hugging Face Space."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from intlm.tracking.trackers import TRACKERS, Tracker


@TRACKERS.register("trackio")
@dataclass(frozen=True, kw_only=True)
class Trackio(Tracker):
    """trackio."""

    package: ClassVar[str] = "trackio"

    def start(self, project: str, identity: str, directory: Path, config: dict[str, Any]) -> Any:
        """See `Tracker.start`. The service knows a run by its name alone."""
        import trackio  # slow

        name = f"{directory.absolute().name}-{identity}"
        return trackio.init(project=project, name=name, config=config, resume="allow")
