"""One update, a pure function of the state before it and of its number: evaluate, vote, move the weights.

The two halves, `make_evaluation` and `make_step`, are programs for one device, which has the whole population or its
part of it (intlm.population.sharding).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8
from intlm.lazy import Array
from intlm.model.parameters import Parameters, initialise, specifications
from intlm.optimizers import Optimizer
from intlm.population import Engine, Population
from intlm.population.sharding import DIVIDED, SAME, Sharding, limbs


class TrainState(NamedTuple):
    """The state that one update hands to the next."""

    parameters: Parameters
    optimizer: Any
    members: Any  # of `Estimator.init`: for `member`, recurrent states, int8 [pairs, 2, layers, hidden]
    common: Any = ()  # of `Estimator.init_common`


class UpdateReport(NamedTuple):
    """The results of an update besides the next state."""

    seen: Any  # the result of `Estimator.evaluate`: for `member`, losses, int32 [pairs, 2], 256 = one bit
    loss: Array  # the sum of the losses that the estimator counts (intlm.population.sharding.limbs)
    changed: Array  # int32 scalar, the number of weights that moved


class Health(NamedTuple):
    """Measurements of an update that show whether a run learns."""

    halves: tuple[Parameters, Parameters]  # the votes of each half (`Estimator.votes`)
    saturated: Array  # the number of the members' state values at an end of their range (sharding.limbs)


_REPORT: Any = (DIVIDED, SAME, SAME)  # the sharding of each field

Evaluation = Callable[[Parameters, Any, Any, tuple[Array, ...], Array], tuple[Any, Any]]
Step = Callable[[Parameters, Any, Any, Any, Array, Array], tuple[Parameters, Any, Any, UpdateReport]]
UpdateStep = Callable[..., tuple[TrainState, UpdateReport]]


def initial_state(population: Population, optimizer: Optimizer) -> TrainState:
    """The state before the first update, whole."""
    parameters = initialise(population.architecture, population.seed)
    estimator = population.estimator
    return TrainState(
        parameters, optimizer.init(parameters), estimator.init(population), estimator.init_common(population)
    )


def make_evaluation(population: Population, engine: Engine, sharding: Sharding, halves: bool = False) -> Evaluation:
    """An update's first half, for a device's part of the population. Nothing is sent between devices.

    Its arguments: parameters; the members' part of the state and what they share; the batch, arrays of [texts, ...];
    the update's number, uint32. Returns `UpdateReport.seen` and the members' part of the next state.
    halves: whether `make_health`'s function will be called with the result.
    """

    def evaluation(
        parameters: Parameters, members: Any, common: Any, batch: tuple[Array, ...], update: Array
    ) -> tuple[Any, Any]:
        return population.estimator.evaluate(
            engine, parameters, batch, members, common, update, sharding.first(), sharding.there(), halves
        )

    return evaluation


def make_step(population: Population, engine: Engine, optimizer: Optimizer, sharding: Sharding) -> Step:
    """An update's second half: from the evaluation's result to new parameters.

    Its arguments: parameters; the optimizer's state; what members share; the result of `make_evaluation`'s function;
    the update's number, uint32; the optimizer's setting for it, int32.
    """
    described = specifications(population.architecture)
    kinds = {s.name: s.kind for s in described}
    estimator = population.estimator

    def step(
        parameters: Parameters, remembered: Any, common: Any, seen: Any, update: Array, setting: Array
    ) -> tuple[Parameters, Any, Any, UpdateReport]:
        totals, loss = sharding.total((estimator.totals(seen), limbs(estimator.losses(seen))))
        votes, chance = estimator.votes(engine, seen, totals, update, sharding.first())
        votes, chance = sharding.scatter(votes, chance)
        deviations = sharding.own(estimator.deviations(population, described, chance))
        votes, deviations = estimator.standardised(votes, deviations)
        before = sharding.own(parameters)
        after, remembered = optimizer.update(kinds, before, votes, remembered, deviations, setting)
        moved = sum((jnp.sum(after[name] != before[name], dtype=jnp.int32) for name in after), jnp.int32(0))
        parameters, told = sharding.gather(after, moved[None])
        report = UpdateReport(seen, loss, jnp.sum(told, dtype=jnp.int32))
        return parameters, remembered, estimator.learn(population, common, totals), report

    return step


def _joined(evaluations: Sequence[Evaluation], step: Step, meet: Callable[[Any], None] | None = None) -> UpdateStep:
    """Both halves one after the other. evaluations: for an update without health, and for one with it. meet: called
    between them with the evaluation's result."""

    def update_step(
        state: TrainState, batch: tuple[Array, ...], update: Array, setting: Array, health: bool = False
    ) -> tuple[TrainState, UpdateReport]:
        parameters, remembered, members, common = state
        seen, members = evaluations[health](parameters, members, common, batch, update)
        if meet:
            meet(seen)
        parameters, remembered, common, report = step(parameters, remembered, common, seen, update, setting)
        return TrainState(parameters, remembered, members, common), report

    return update_step


def make_update_step(
    population: Population, engine: Engine, optimizer: Optimizer, sharding: Sharding | None = None
) -> UpdateStep:
    """The whole update for a device's part of the population (`sharding`; None: all of it).

    Its arguments: the state; the batch, arrays of [texts, ...] (tokens, uint16 [texts, T], and targets, uint16
    [texts, T, K]); the update's number, uint32; the optimizer's setting for it, int32; and whether its health will be
    computed (`make_health`).
    """
    sharding = sharding or Sharding(population)
    evaluations = [make_evaluation(population, engine, sharding, halves) for halves in (False, True)]
    return _joined(evaluations, make_step(population, engine, optimizer, sharding))


def compile_update(
    population: Population,
    engine: Engine,
    optimizer: Optimizer,
    sharding: Sharding,
    meet: Callable[[Any], None] | None = None,
) -> UpdateStep:
    """`make_update_step` as two programs over all devices, its state donated.

    meet: called with the evaluation's result before anything is sent between devices: processes wait for each other.
    """

    def compiled(halves: bool) -> Evaluation:
        evaluation = make_evaluation(population, engine, sharding, halves)
        return sharding.compile(evaluation, (SAME, DIVIDED, SAME, DIVIDED, SAME), (DIVIDED, DIVIDED), donate_argnums=1)

    evaluation = compiled(False)
    step = sharding.compile(
        make_step(population, engine, optimizer, sharding), (SAME, DIVIDED, SAME, DIVIDED, SAME, SAME),
        (SAME, DIVIDED, SAME, UpdateReport(*_REPORT)), donate_argnums=(0, 1),
    )  # fmt: skip
    return _joined([evaluation, compiled(True) if population.estimator.evaluates_halves else evaluation], step, meet)


def make_health(population: Population, engine: Engine, sharding: Sharding) -> Callable[[Any, Any, Array], Health]:
    """Makes the function that computes `Health` from an update's `seen`, the members' state after it and its number."""
    estimator = population.estimator

    def health(seen: Any, members: Any, update: Array) -> Health:
        first, there = sharding.first(), sharding.there()
        totals = sharding.total(estimator.totals(seen))
        votes = [estimator.votes(engine, seen, totals, update, first, half)[0] for half in (0, 1)]
        ends = estimator.saturated(members)
        ends = ends if there is None else jnp.where(there, ends, 0)
        return Health(*sharding.total(((votes[0], votes[1]), limbs(ends))))

    return health


def cosine(halves: tuple[Parameters, Parameters]) -> float:
    """The cosine of two sets of votes: 0 give or take 1 / sqrt(weights) by chance alone, 1 where all is signal.

    NaN where one of them is all zero.
    """
    a, b = (np.concatenate([np.ravel(v) for v in half.values()]).astype(np.float64) for half in halves)
    size = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / size) if size else float("nan")


def saturated(values: Iterable[Array]) -> float:
    """The share of int8 values that are at an end of their range."""
    arrays = [np.asarray(value) for value in values]
    return sum(int((np.abs(array) == MAX8).sum()) for array in arrays) / sum(array.size for array in arrays)
