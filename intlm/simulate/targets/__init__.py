"""Simulation targets: the machines that a trained model can be run on, and their reports. One file each."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from intlm.settings import Family, Part

if TYPE_CHECKING:
    from intlm.simulate.machine import Machine


class Report(Protocol):
    """The result of a simulation."""

    @property
    def same_bits(self) -> bool:
        """Whether every bit was the reference's."""

    def summary(self) -> dict[str, Any]:
        """The report as a dictionary, for --json."""

    def text(self) -> str:
        """The report as a table for a terminal."""


class Target(Part):
    """A machine, or a description of one, that a model runs on; its settings are flags of `intlm simulate`."""

    def simulate(self, run: Path, text: Path | None, tokens: int) -> Report:
        """Run the model of a run (or of an export) over the first `tokens` tokens of a text.

        text: a file; None: the run's held-out split.
        """
        raise NotImplementedError


class MachineTarget(Target):
    """A machine that is stepped token by token and held to the reference bit for bit."""

    machine: ClassVar[Callable[..., "Machine"]]
    """Makes the machine of a model (`intlm.language_model.LanguageModel`) and of a directory for its files: a class, or
    a method where the part has settings."""

    def simulate(self, run: Path, text: Path | None, tokens: int) -> Report:
        """See `Target.simulate`. Raises MissingPackage where the machine is not installed, BuildError where the model
        does not compile for it."""
        from intlm.simulate.comparison import simulate

        return simulate(run, self.name, self.machine, text, tokens)


TARGETS: Family[Target] = Family("target", "intlm.simulate.targets")
