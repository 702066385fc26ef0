"""The minimal gated unit (Zhou et al., arXiv 1603.09420; docs/numerics.md, section 5.2).

f = gate(x W_f + h U_f + b_f);  c = candidate(x W_h + (f h) U_h + b_h);  h' = (1 - f) h + f c
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intlm.arithmetic.fixed_point import GATE_MULTIPLIER, GATE_ONE, activation_rescale, q15_multiply
from intlm.cells import CELLS, Cell
from intlm.cells.nonlinearity import candidate as candidate_of
from intlm.cells.nonlinearity import from_state
from intlm.cells.nonlinearity import gate as gate_of
from intlm.lazy import Array, jnp
from intlm.model.parameters import Kind, Local

if TYPE_CHECKING:
    from intlm.model.forward import Weights
    from intlm.model.parameters import Architecture


@CELLS.register("mgu")
@dataclass(frozen=True)
class Mgu(Cell):
    """The minimal gated unit: one gate decides how much of the state is replaced."""

    future = ("gate", "candidate")
    reads = {  # noqa: RUF012 - a constant
        "gate_input": "normed input of the cell",
        "gate_state": "recurrent state",
        "candidate_state": "gated state",
    }

    def parameters(self, hidden_size: int) -> tuple[Local, ...]:
        """See `Cell.parameters`."""
        square, vector = (hidden_size, hidden_size), (hidden_size,)
        return (
            Local("gate_input", square, Kind.MATRIX),  # W_f
            Local("gate_state", square, Kind.MATRIX),  # U_f
            Local("gate_bias", vector, Kind.BIAS),  # b_f
            Local("candidate_input", square, Kind.MATRIX),  # W_h
            Local("candidate_state", square, Kind.MATRIX),  # U_h
            Local("candidate_bias", vector, Kind.BIAS),  # b_h
        )

    def scratch_size(self, hidden_size: int) -> int:
        """The gates."""
        return hidden_size

    def step(self, weights: "Weights", x: Array, state: Array, architecture: "Architecture") -> Array:
        """See `Cell.step`."""
        from_input = activation_rescale(architecture.hidden_size)
        gate = from_input(weights.multiply("gate_input", x)) + weights.vector("gate_bias")
        candidate = from_input(weights.multiply("candidate_input", x)) + weights.vector("candidate_bias")
        return recur(weights, gate, candidate, state, architecture)


def recur(weights: "Weights", gate: Array, candidate: Array, state: Array, architecture: "Architecture") -> Array:
    """The half of the step that goes from token to token; gate, candidate: what input and bias give, int32."""
    kind, rescale = architecture.nonlinearity, from_state(architecture)
    gate = gate_of(gate + rescale(weights.multiply("gate_state", state)), kind)
    old = state.astype(jnp.int32)
    reset = q15_multiply(gate * old, GATE_MULTIPLIER).astype(jnp.int8)
    candidate = candidate_of(candidate + rescale(weights.multiply("candidate_state", reset)), kind)
    return q15_multiply((2 * GATE_ONE - gate) * old + gate * candidate, GATE_MULTIPLIER).astype(jnp.int8)
