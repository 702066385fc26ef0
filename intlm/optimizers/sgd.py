"""Plain steps of master weights along the votes (docs/numerics.md, section 9)."""

from collections.abc import Mapping
from dataclasses import dataclass

from intlm.lazy import Array
from intlm.model.parameters import Kind, Parameters
from intlm.optimizers import OPTIMIZERS
from intlm.optimizers.steps import Stepped, masters, moved, rounded, standardised


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd(Stepped):
    """Plain steps of master weights: each update's votes alone decide it."""

    def init(self, parameters: Parameters) -> Parameters:
        """The master weights: int32 by parameter."""
        return masters(parameters)

    def update(
        self, kinds: Mapping[str, Kind], parameters: Parameters, votes: Parameters, state: Parameters,
        deviations: Parameters, setting: Array,
    ) -> tuple[Parameters, Parameters]:  # fmt: skip
        """See `Optimizer.update`."""
        master = {
            name: moved(kind, state[name], standardised(votes[name], deviations[name]), setting, self.weight_decay)
            for name, kind in kinds.items()
        }
        return rounded(master), master
