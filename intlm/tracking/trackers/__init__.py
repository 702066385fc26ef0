"""Trackers: services that receive a run's metrics, chosen by `train.trackers`. One file each.

The run's directory keeps the run's id at the service and the last update that was sent. So a resumed run is the same
run there, and updates that are computed again, with the same numbers, are not sent twice.
"""

import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from intlm.errors import MissingPackage, RunError
from intlm.schema import Count, read_json
from intlm.settings import Family, Part

PROJECT = "intlm"  # unless the service's own environment variable names another


class Tracker(Part):
    """A service that receives the metrics of a run."""

    package: ClassVar[str] = ""  # the Python package that must be installed

    def start(self, project: str, identity: str, directory: Path, config: dict[str, Any]) -> Any:
        """Start a run at the service, or resume it. The result has `log(values, step=update)` and `finish()`.

        identity: the run's id at the service, 8 hex digits. config: every key of the configuration, in nested
        dictionaries. May raise anything where the service does not start.
        """
        raise NotImplementedError


TRACKERS: Family[Tracker] = Family("tracker", "intlm.tracking.trackers", of_training=True)


def check_installed(trackers: Sequence[str]) -> None:
    """Raise MissingPackage for the first tracker whose package is not installed."""
    for name in trackers:
        package = TRACKERS[name].package
        try:
            installed = importlib.util.find_spec(package) if package else None
        except ValueError:  # sys.modules keeps it from being imported
            installed = None
        if package and not installed:
            raise MissingPackage(package, f'train.trackers = "{name}"', "pip install 'intlm[trackers]'")


class _Known(msgspec.Struct):
    """A run's record of a service: its identity there, which is a part of file names, and the last update sent."""

    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}\Z")]
    sent: Count = 0


class Service:
    """Sends the lines of a run to the tracker `name`, those that the run has already included.

    config: every key, in nested dictionaries.

    Raises RunError where the service does not start.
    """

    def __init__(self, name: str, directory: Path, config: dict[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        self._name, self._failed = name, False
        self._path = directory / f"{name}.json"
        self._known = _Known(secrets.token_hex(4))
        if self._path.exists():
            self._known = read_json(self._path, _Known, RunError, f": delete it to start a new run at {name}")
        project = os.environ.get(f"{name.upper()}_PROJECT") or PROJECT
        try:
            self._run = TRACKERS[name]().start(project, self._known.id, directory, config)
        except Exception as error:  # each service has many kinds of its own
            raise RunError(f"train.trackers: {name} does not start: {str(error).strip()[:300]}") from None
        self._note()
        for line in lines:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Send a metrics line, unless an earlier part of the run sent it. A failing service does not stop the run."""
        if self._failed or line["update"] <= self._known.sent:
            return
        try:
            self._run.log({name: value for name, value in line.items() if name != "update"}, step=line["update"])
        except Exception as error:
            self._failed = True
            what = f"{self._name} does not accept metrics any more: {str(error).strip()[:300]}"
            print(f"intlm: {what}: training continues without it; resuming the run sends the rest", file=sys.stderr)
            return
        self._known.sent = line["update"]
        self._note()

    def close(self) -> None:
        with suppress(Exception):  # as in `write`
            self._run.finish()

    def _note(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_bytes(msgspec.json.encode(self._known))
        os.replace(temporary, self._path)
