"""Estimators: how members are perturbed, and how their losses become votes. One file each.

A population is divided into units that carry their own noise (for `member` an antithetic pair); some consecutive units
read the same text. Everything is indexed by the unit's number in the whole population, so that its division into
chunks, devices and processes changes no bit. Devices send each other only sums of integers.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from intlm.lazy import Array
from intlm.settings import Family, Part
from intlm.version import TRAINING_VERSION

if TYPE_CHECKING:
    from intlm.model.parameters import Architecture, Parameters, Specification
    from intlm.population.engine import Engine, Population


Table = tuple[list[str], list[tuple[str, ...]]]  # headers and rows


class Estimator(Part):
    """An update's method, from the shared weights to votes. `evaluate` and `votes` run on each device, for some units.

    A population is `intlm.population.engine.Population`: architecture, objective, seed, members. The first of the
    given units is number `first` (uint32 scalar) of the whole population.
    """

    training_version: ClassVar[int] = TRAINING_VERSION
    """The version of the arithmetic of training in which a run's results last changed; only runs of it are resumed."""

    evaluates_halves: ClassVar[bool] = False
    """Whether `evaluate` must be told when `votes` will be asked for halves."""

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

    def init_common(self, population: "Population") -> Any:
        """What all units share before the first update, and keeps between updates: a pytree of int32."""
        return ()

    def check_common(self, common: Any, place: object) -> None:
        """Raise a RunError that names `place` for a value, from a checkpoint, that no update can make."""

    # An update

    def evaluate(
        self, engine: "Engine", parameters: "Parameters", batch: tuple[Array, ...], kept: Any, common: Any,
        update: Array, first: Array, there: Array | None = None, halves: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Evaluates some units on their texts. Nothing is sent between devices.

        batch: of their texts, [texts, ...]. kept: these units' state, as of `init`. common: as of `init_common`.
        update: uint32 scalar. there: bool [units], which of them count (None: all); the others must change nothing.
        halves: whether `votes` will be asked for those of halves, only with `evaluates_halves`.
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

    def learn(self, population: "Population", common: Any, totals: Any) -> Any:
        """What all units share in the next update. totals: of all units."""
        return common

    def votes(
        self, engine: "Engine", seen: Any, totals: Any, update: Array, first: Array, half: int | None = None
    ) -> tuple["Parameters", Any]:
        """The votes of some units, and what `deviations` needs, both to be added up over devices.

        totals: of all units. half: 0 or 1: only one half of what votes in an update does, to see how far the two agree;
        None: all. Returns int32 by parameter, and a pytree of int32.
        """
        raise NotImplementedError

    def deviations(
        self, population: "Population", specifications: "Iterable[Specification]", chance: Any
    ) -> "Parameters":
        """The standard deviation of votes where fitness says nothing: int32 by parameter, scalars or of its shape.
        chance: the sum of what `votes` returned."""
        raise NotImplementedError

    def standardised(self, votes: "Parameters", deviations: "Parameters") -> tuple["Parameters", "Parameters"]:
        """Votes as optimizers take them, and a 256th of their standard deviation (`Optimizer.update`), element by
        element, of any slice of the parameters. deviations: see `deviations`; returned as they are, they are 256ths."""
        return votes, deviations

    def saturated(self, kept: Any) -> Array:
        """The number of each unit's state values that are at an end of their range: int32 [units]."""
        raise NotImplementedError

    def inspect(self, population: "Population", parameters: "Parameters", tokens: Array) -> Table:
        """A table of the noise of these weights' members, for `intlm inspect`; no rows where there is none.

        tokens: int32 [texts, T], of held-out text.
        """
        return [], []

    def noise_values(self, specifications: "Iterable[Specification]", members: int, tokens: int) -> int:
        """The number of random values of an update, for `intlm bench`."""
        raise NotImplementedError

    def states_of_a_unit(self, architecture: "Architecture") -> int:
        """The number of state values of a unit."""
        raise NotImplementedError


ESTIMATORS: Family[Estimator] = Family("estimator", "intlm.estimators", of_training=True)
