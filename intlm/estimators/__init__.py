"""Estimators: how members are perturbed, and how their losses become votes. One file each.

A population is divided into units that carry their own noise (for `member` an antithetic pair); some consecutive units
read the same text. Everything is indexed by the unit's number in the whole population, so that its division into
chunks, devices and processes changes no bit. Devices send each other only sums of integers.
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

    # The structure of a population

    def units(self, members: int) -> int:
        """The number of units of a population of `members`."""
        raise NotImplementedError

    def units_of_a_text(self) -> int:
        """The number of units that read the same text."""
        raise NotImplementedError

    def scored(self, members: int) -> int:
        """The number of members whose losses count: `train_bits_per_byte` is the mean of these losses."""
        return members

    def init(self, population: "Population") -> Any:
        """The members' state before the first update, which is kept between updates: a pytree of [units, ...]."""
        raise NotImplementedError

    # An update

    def evaluate(
        self, engine: "Engine", parameters: "Parameters", batch: tuple[Array, ...], kept: Any, update: Array,
        first: Array, there: Array | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Evaluates some units on their texts. Nothing is sent between devices.

        batch: of their texts, [texts, ...]. kept: these units' state, as of `init`. update: uint32 scalar. there: bool
        [units], which of them count (None: all); the others must change nothing.
        Returns a pytree for `totals` and `votes`, whose arrays can be concatenated along their first axis (those of
        several devices are), and the units' next state.
        """
        raise NotImplementedError

    def losses(self, seen: Any) -> Array:
        """The losses that `scored` counts, from the result of `evaluate`: int32 [any] of 0 or more, 256 = one bit."""
        raise NotImplementedError

    def totals(self, seen: Any) -> Any:
        """The sums that `votes` needs, to be added up over devices: a pytree of int32."""
        raise NotImplementedError

    def votes(
        self, engine: "Engine", seen: Any, totals: Any, update: Array, first: Array, voters: Array | None = None
    ) -> tuple["Parameters", Array]:
        """The votes of some units, and the scalar that `deviations` needs, both to be added up over devices.

        totals: of all units. voters: bool [units], those that vote (None: all). Returns int32 by parameter, and an
        int32 scalar.
        """
        raise NotImplementedError

    def deviations(
        self, population: "Population", specifications: "Iterable[Specification]", chance: Array
    ) -> "Parameters":
        """A 256th of a vote's standard deviation where fitness says nothing: int32 by parameter, scalars or of its
        shape. chance: the sum of the scalars that `votes` returned."""
        raise NotImplementedError

    def saturated(self, kept: Any) -> Array:
        """The number of each unit's state values that are at an end of their range: int32 [units]."""
        raise NotImplementedError

    def states_of_a_unit(self, architecture: "Architecture") -> int:
        """The number of state values of a unit."""
        raise NotImplementedError


ESTIMATORS: Family[Estimator] = Family("estimator", "intlm.estimators", of_training=True)
