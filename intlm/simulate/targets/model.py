"""A description of hardware that may not exist: the bits by our own arithmetic, cycles and energy by ZigZag."""

from dataclasses import dataclass
from pathlib import Path

from intlm.settings import key
from intlm.simulate.targets import TARGETS, Report, Target


@TARGETS.register("model")
@dataclass(frozen=True, kw_only=True)
class Described(Target):
    """Hardware that a TOML file describes and that need not exist."""

    hardware: str = key("the description of the hardware, such as configs/hardware/gemmini.toml", path=True)
    streams: int = key("texts read in parallel", 1, low=1)
    picture: str = key("a PNG to write, of bits per byte by accumulator width; empty: none", "", path=True)

    def simulate(self, run: Path, text: Path | None, tokens: int) -> Report:
        """See `Target.simulate`. Raises MissingPackage where ZigZag is not installed."""
        from intlm.simulate.what_if import what_if

        drawing = Path(self.picture) if self.picture else None
        return what_if(run, Path(self.hardware), text, tokens, self.streams, drawing)
