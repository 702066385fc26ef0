"""The plain recurrent cell (Elman, Cognitive Science 14, 1990; docs/numerics.md, section 5.5): no gate.

h' = candidate(x W + h U + b)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intlm.arithmetic.fixed_point import activation_rescale
from intlm.cells import CELLS, Cell
from intlm.cells.nonlinearity import candidate, from_state
from intlm.lazy import Array, jnp
from intlm.model.parameters import Kind, Local

if TYPE_CHECKING:
    from intlm.model.forward import Weights
    from intlm.model.parameters import Architecture


@CELLS.register("rnn")
@dataclass(frozen=True)
class Rnn(Cell):
    """The plain recurrent cell: every token replaces the whole state."""

    future = ("candidate",)
    reads = {  # noqa: RUF012 - a constant
        "candidate_input": "normed input of the cell",
        "candidate_state": "recurrent state",
    }

    def parameters(self, hidden_size: int) -> tuple[Local, ...]:
        """See `Cell.parameters`."""
        square, vector = (hidden_size, hidden_size), (hidden_size,)
        return (
            Local("candidate_input", square, Kind.MATRIX),  # W
            Local("candidate_state", square, Kind.MATRIX),  # U
            Local("candidate_bias", vector, Kind.BIAS),  # b
        )

    def step(self, weights: "Weights", x: Array, state: Array, architecture: "Architecture") -> Array:
        """See `Cell.step`."""
        total = activation_rescale(architecture.hidden_size)(weights.multiply("candidate_input", x))
        total += from_state(architecture)(weights.multiply("candidate_state", state))
        return candidate(total + weights.vector("candidate_bias"), architecture.nonlinearity).astype(jnp.int8)
