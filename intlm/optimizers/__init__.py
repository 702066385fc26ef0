"""Optimizers: they turn votes into new weights. One file each; `steps` holds what several of them share."""

from collections.abc import Mapping
from typing import Any, ClassVar

from intlm.lazy import Array, np
from intlm.schema import check_range
from intlm.settings import Family, Part


class Optimizer(Part):
    """Pure functions of integers, as in optax: `init` makes the state, `update` turns votes into the next weights.

    `setting` is the schedule: one integer for each update, which is an argument of `update`, so that one compiled
    program serves the whole run.
    """

    former: ClassVar[tuple[str, ...]] = ()  # fields that the state had in earlier versions; in a checkpoint, dropped

    def init(self, parameters: dict[str, Array]) -> Any:
        """The state before the first update: a pytree in which dictionaries hold a value for each parameter."""
        return ()

    def update(
        self, kinds: Mapping[str, Any], parameters: dict[str, Array], votes: dict[str, Array], state: Any,
        deviations: dict[str, Array], setting: Array,
    ) -> tuple[dict[str, Array], Any]:  # fmt: skip
        """Returns the next weights and state, element by element: the arrays may be any slice of a parameter's.

        kinds: each parameter's `intlm.model.parameters.Kind`. parameters: int8, by name. votes: int32, of the same
        shapes; the population wants a weight to move along its vote. deviations: int32, of the same shape or scalars, a
        256th of a vote's standard deviation where fitness says nothing. setting: int32 scalar, of `setting`.
        """
        raise NotImplementedError

    def limits(self) -> tuple[tuple[int, int], ...]:
        """The least and the greatest value of each field of the state, which is a named tuple of dictionaries.

        Without any limits, a state that is read from a checkpoint is not checked.
        """
        return ()

    def setting(self, update: int) -> int:
        """The schedule: an int32 for an update, counted from 0."""
        return 0

    def schedule_end(self) -> int:
        """The update at which the schedule has reached its end; 0: it has none."""
        return 0


def check_state(optimizer: Optimizer, state: Any, place: object) -> None:
    """Raise a RunError that names `place` and the field for a value that no update can make (numerics.md, 11)."""
    for field, arrays, (low, high) in zip(getattr(state, "_fields", ()), state, optimizer.limits(), strict=False):
        for name, array in arrays.items():
            check_range(np.asarray(array), low, high, f"{place}: optimizer: {field} of {name}")


OPTIMIZERS: Family[Optimizer] = Family("optimizer", "intlm.optimizers", of_training=True)
