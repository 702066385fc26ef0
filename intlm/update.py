"""One update, a pure function of the state before it and of its number: evaluate, fitness, votes, optimizer.

`make_update_step` is a device's program: of the whole population, or of its part (intlm.population.sharding).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8, Array
from intlm.config import EggrollConfig
from intlm.eggroll import adam, fitness, momentum, threshold
from intlm.eggroll.optimizer import Optimizer, scheduled_step
from intlm.model.forward import zero_states
from intlm.model.parameters import Parameters, initialise, specifications
from intlm.population import Engine, Problem
from intlm.population.sharding import DIVIDED, SAME, Sharding, limbs


class TrainState(NamedTuple):
    """What one update hands to the next."""

    parameters: Parameters
    optimizer: Any
    members: Array  # int8 [pairs, 2, layers, hidden], recurrent states


class UpdateReport(NamedTuple):
    """What an update says of itself."""

    losses: Array  # int32 [pairs, 2], 256 = one bit
    loss: Array  # their sum over all members (intlm.population.sharding.limbs)
    changed: Array  # int32 scalar, weights that moved
    wishes: Array  # int32 [wishes], how many devices have each


class Health(NamedTuple):
    """What tells an update of a run that learns from one of a run that does not."""

    halves: tuple[Parameters, Parameters]  # what the first half of the pairs votes, and the second
    saturated: Array  # of the members' states, how many are at an end of their range (sharding.limbs)


# What of these is divided among devices.
_STATE: Any = (SAME, DIVIDED, DIVIDED)
_REPORT: Any = (DIVIDED, SAME, SAME, SAME)

UpdateStep = Callable[..., tuple[TrainState, UpdateReport]]  # see `make_update_step`


def make_optimizer(eggroll: EggrollConfig) -> Optimizer:
    """The optimizer that a configuration asks for."""
    if eggroll.optimizer == "threshold":
        return threshold.optimizer(eggroll.alpha, eggroll.decay_updates)
    stepped = {"momentum": momentum, "adam": adam}[eggroll.optimizer]
    return Optimizer(
        stepped.init,
        partial(stepped.update, eggroll.momentum, eggroll.weight_decay),
        partial(scheduled_step, eggroll.step, eggroll.warmup_updates, eggroll.decay_updates),
        stepped.limits(eggroll.momentum),
    )


def initial_state(problem: Problem, seed: int, optimizer: Optimizer) -> TrainState:
    """The state before the first update, whole."""
    parameters = initialise(problem.architecture, seed)
    states = zero_states((problem.pairs, 2), problem.architecture)
    return TrainState(parameters, optimizer.init(parameters), states)


def make_evaluation(problem: Problem, engine: Engine, sharding: Sharding) -> Callable[..., tuple[Array, Array]]:
    """An update's first half: what a device's part of the population loses on its text. Nothing crosses.

    Its arguments: parameters, members; tokens, targets and update as of `make_update_step`. Returns losses and members.
    """

    def evaluation(
        parameters: Parameters, members: Array, tokens: Array, targets: Array, update: Array
    ) -> tuple[Array, Array]:
        losses, members = engine.evaluate(parameters, tokens, targets, members, update, sharding.first())
        return sharding.counted(losses), members

    return evaluation


def make_step(
    problem: Problem, engine: Engine, fitness_name: str, optimizer: Optimizer, sharding: Sharding
) -> Callable[..., tuple[Parameters, Any, UpdateReport]]:
    """An update's second half: from losses to new parameters.

    Its arguments: parameters; the optimizer's state; losses; update, setting and wishes as of `make_update_step`.
    """
    described = specifications(problem.architecture)
    rank = problem.perturbation.rank

    def step(
        parameters: Parameters, remembered: Any, losses: Array, update: Array, setting: Array, wishes: Array
    ) -> tuple[Parameters, Any, UpdateReport]:
        sizes, loss = sharding.total((fitness.sizes(losses), limbs(losses.reshape(-1))))
        shaped = fitness.shape(fitness_name, losses, rank, problem.pairs, sizes)
        votes = engine.accumulate(shaped, update, sharding.first())
        votes, energy = sharding.scatter(votes, fitness.energy(shaped))
        before = sharding.own(parameters)
        after, remembered = optimizer.update(described, before, votes, remembered, energy, rank, setting)
        moved = sum((jnp.sum(after[name] != before[name], dtype=jnp.int32) for name in after), jnp.int32(0))
        parameters, told = sharding.gather(after, jnp.concatenate([moved[None], wishes[0]]))
        told = jnp.sum(told, axis=0, dtype=jnp.int32)
        return parameters, remembered, UpdateReport(losses, loss, told[0], told[1:])

    return step


def make_update_step(
    problem: Problem, engine: Engine, fitness_name: str, optimizer: Optimizer, sharding: Sharding | None = None
) -> UpdateStep:
    """The whole update of a device's part of the population (`sharding`; None: all of it).

    Its arguments: the state; tokens, uint16 [texts, T]; targets, uint16 [texts, T, K]; the update's number, uint32;
    the optimizer's setting for it, int32; wishes, int32 [1, any], 1 or 0, that processes tell each other (None: none).
    """
    sharding = sharding or Sharding(problem)
    evaluation = make_evaluation(problem, engine, sharding)
    step = make_step(problem, engine, fitness_name, optimizer, sharding)

    def update_step(
        state: TrainState, tokens: Array, targets: Array, update: Array, setting: Array, wishes: Array | None = None
    ) -> tuple[TrainState, UpdateReport]:
        losses, members = evaluation(state.parameters, state.members, tokens, targets, update)
        told = jnp.zeros((1, 0), jnp.int32) if wishes is None else wishes
        parameters, remembered, report = step(state.parameters, state.optimizer, losses, update, setting, told)
        return TrainState(parameters, remembered, members), report

    return update_step


def compile_update(
    problem: Problem,
    engine: Engine,
    fitness_name: str,
    optimizer: Optimizer,
    sharding: Sharding,
    meet: Callable[[Array], None] | None,
) -> UpdateStep:
    """`make_update_step` as a program over all devices, its state donated.

    meet: called with the losses before anything crosses between processes; None: a process is alone.
    """
    if meet is None:
        whole = make_update_step(problem, engine, fitness_name, optimizer, sharding)
        return sharding.compile(
            whole,
            (TrainState(*_STATE), DIVIDED, DIVIDED, SAME, SAME, DIVIDED),
            (TrainState(*_STATE), UpdateReport(*_REPORT)),
            donate_argnums=0,
        )
    evaluation = sharding.compile(
        make_evaluation(problem, engine, sharding),
        (SAME, DIVIDED, DIVIDED, DIVIDED, SAME),
        (DIVIDED, DIVIDED),
        donate_argnums=1,
    )
    step = sharding.compile(
        make_step(problem, engine, fitness_name, optimizer, sharding),
        (SAME, DIVIDED, DIVIDED, SAME, SAME, DIVIDED),
        (SAME, DIVIDED, UpdateReport(*_REPORT)),
        donate_argnums=(0, 1),
    )

    def update_step(
        state: TrainState, tokens: Array, targets: Array, update: Array, setting: Array, wishes: Array
    ) -> tuple[TrainState, UpdateReport]:
        losses, members = evaluation(state.parameters, state.members, tokens, targets, update)
        meet(losses)
        parameters, remembered, report = step(state.parameters, state.optimizer, losses, update, setting, wishes)
        return TrainState(parameters, remembered, members), report

    return update_step


def make_health(
    problem: Problem, engine: Engine, fitness_name: str, sharding: Sharding
) -> Callable[[Array, Array, Array], Health]:
    """What an update's losses, the members' states after it and its number say of the run."""

    def health(losses: Array, members: Array, update: Array) -> Health:
        first = sharding.first()
        sizes = sharding.total(fitness.sizes(losses))
        shaped = fitness.shape(fitness_name, losses, problem.perturbation.rank, problem.pairs, sizes)
        early = first + jnp.arange(losses.shape[0], dtype=jnp.uint32) < problem.pairs // 2
        votes = [engine.accumulate(jnp.where(half, shaped, jnp.int8(0)), update, first) for half in (early, ~early)]
        ends = jnp.sum(jnp.abs(sharding.counted(members)) == MAX8, axis=(1, 2, 3), dtype=jnp.int32)
        return Health(*sharding.total(((votes[0], votes[1]), limbs(ends))))

    return health


def cosine(halves: tuple[Parameters, Parameters]) -> float:
    """The cosine of two sets of votes: 0 give or take 1 / sqrt(weights) by chance alone, 1 where all is signal.

    NaN where one of them is of nothing.
    """
    a, b = (np.concatenate([np.ravel(v) for v in half.values()]).astype(np.float64) for half in halves)
    size = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / size) if size else float("nan")


def saturated(values: Iterable[Array]) -> float:
    """The share of int8 values that are at an end of their range."""
    arrays = [np.asarray(value) for value in values]
    return sum(int((np.abs(array) == MAX8).sum()) for array in arrays) / sum(array.size for array in arrays)
