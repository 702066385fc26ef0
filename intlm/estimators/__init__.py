"""Estimators: what noise members carry, and what is voted from what they lose. One file each.

A population is divided into units that carry their own noise (for `member` an antithetic pair); some units that follow
each other read the same text. Everything is indexed by the unit's number in the whole population, so that chunks,
devices and processes are only ways of walking through it. Only sums of integers cross between devices.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from intlm.lazy import Array
from intlm.settings import Family, Part

if TYPE_CHECKING:
    from intlm.model.parameters import Architecture, Parameters, Specification
    from intlm.population.engine import Engine, Population


class Estimator(Part):
    """An update's method, from the shared weights to votes. `evaluate` and `votes` run on each device, for some units.

    A population is `intlm.population.engine.Population`: architecture, objective, seed, members. The first of the
    given units is number `first` (uint32 scalar) of the whole population.
    """

    # How a population is made up

    def units(self, members: int) -> int:
        """How many units so many members are."""
        raise NotImplementedError

    def units_of_a_text(self) -> int:
        """How many units read the same text."""
        raise NotImplementedError

    def scored(self, members: int) -> int:
        """How many members' losses `totals` adds up: what `train_bits_per_byte` is the mean of."""
        return members

    def init(self, population: "Population") -> Any:
        """What members keep from one update to the next, before the first: a pytree of [units, ...]."""
        raise NotImplementedError

    # An update

    def evaluate(
        self, engine: "Engine", parameters: "Parameters", batch: tuple[Array, ...], kept: Any, update: Array,
        first: Array, there: Array | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """What some units make of their texts. Nothing crosses between devices.

        batch: of their texts, [texts, ...]. kept: of `init`, for these units. update: uint32 scalar. there: bool
        [units], which of them count (None: all); the others are to change nothing.
        Returns a pytree for `totals` and `votes`, whose arrays can lie side by side along their first axis (those of
        several devices do), and what the units keep.
        """
        raise NotImplementedError

    def losses(self, seen: Any) -> Array:
        """The losses that `scored` counts, of what `evaluate` returned: int32 [any] of 0 or more, 256 = one bit."""
        raise NotImplementedError

    def totals(self, seen: Any) -> Any:
        """What `votes` must know of the whole population, to be added up over devices: a pytree of int32."""
        raise NotImplementedError

    def votes(
        self, engine: "Engine", seen: Any, totals: Any, update: Array, first: Array, voters: Array | None = None
    ) -> tuple["Parameters", Array]:
        """What some units vote, and what `deviations` must know, both to be added up over devices.

        totals: of all units. voters: bool [units], those that vote (None: all). Returns int32 by parameter, and an
        int32 scalar.
        """
        raise NotImplementedError

    def deviations(
        self, population: "Population", specifications: "Iterable[Specification]", chance: Array
    ) -> "Parameters":
        """A 256th of a vote's standard deviation where fitness says nothing: int32 by parameter, scalars or of its
        shape. chance: the sum of what `votes` returned."""
        raise NotImplementedError

    def saturated(self, kept: Any) -> Array:
        """How many of each unit's state values are at an end of their range: int32 [units]."""
        raise NotImplementedError

    def states_of_a_unit(self, architecture: "Architecture") -> int:
        """How many state values a unit has."""
        raise NotImplementedError


ESTIMATORS: Family[Estimator] = Family("estimator", "intlm.estimators", of_training=True)
