"""Recurrent cells: the state of a layer, and how each token changes it. One file each.

`nonlinearity` holds what several of them share. A cell that is exported to C99 has its step in
kernels/portable/cells/NAME.h too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from intlm.lazy import Array
from intlm.settings import Family, Part

if TYPE_CHECKING:
    from intlm.model.forward import Weights
    from intlm.model.parameters import Architecture, Local


class Cell(Part):
    """A recurrent cell of integers. Its step is a pure function that sees the parameters through `Weights`, so that one
    writing serves inference, every estimator's members and the ONNX export."""

    future: ClassVar[tuple[str, ...]]
    """The units whose pre-activations change the next state, hence the predictions of later tokens. A unit named U has
    the parameters U_input, U_state and U_bias."""

    reads: ClassVar[Mapping[str, str]]
    """The operand of each matrix, in words, by the matrix's name; matrices with the same operand have one entry."""

    def parameters(self, hidden_size: int) -> tuple["Local", ...]:
        """A layer's parameters of the cell, in the order of their numbers."""
        raise NotImplementedError

    def state_size(self, hidden_size: int) -> int:
        """int8 values of a layer's state. The first hidden_size of them, at 1.0 = 127, are what the residual gets."""
        return hidden_size

    def scratch_size(self, hidden_size: int) -> int:
        """Bytes that the step in C keeps from one of its loops to the next."""
        return 0

    def step(self, weights: "Weights", x: Array, state: Array, architecture: "Architecture") -> Array:
        """The next state, int8 S + [state_size].

        weights: of the layer. x: the normed input, int8 S + [hidden], 1.0 = 16. state: int8 S + [state_size].
        """
        raise NotImplementedError


CELLS: Family[Cell] = Family("cell", "intlm.cells")
