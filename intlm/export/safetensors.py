"""The weights alone, as every export has them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intlm.export import FORMATS, Format

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel


@FORMATS.register("safetensors")
@dataclass(frozen=True, kw_only=True)
class Safetensors(Format):
    """The weights and nothing else."""

    def write(self, model: "LanguageModel", out: Path) -> None:
        """See `Format.write`."""
