"""The interface of engines: an engine evaluates a population and gathers its votes.

Everything is indexed by the pair's number in the whole population, so that its division into chunks, devices and
processes changes no bit: `evaluate` and `accumulate` are given some consecutive pairs, and the number of the first.
All calls are pure and can be traced by jax.jit.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from intlm.estimators import ESTIMATORS
from intlm.lazy import Array
from intlm.model.parameters import Architecture, Parameters
from intlm.objectives import OBJECTIVES, Objective
from intlm.settings import Part

if TYPE_CHECKING:
    from intlm.estimators.member import Perturbation
    from intlm.estimators.token import Evaluation

Prepared = Any  # arrays that only the engine that made them understands


@dataclass(frozen=True)
class Population:
    """The members that an engine evaluates: their model, objective and noise. Hashable."""

    architecture: Architecture
    estimator: Any = field(default_factory=lambda: ESTIMATORS["member"]())  # an `Estimator`; engines serve some
    members: int = 2
    seed: int = 0
    objective: Objective = field(default_factory=lambda: OBJECTIVES["next_token"]())
    chunk_size: int = 0  # members evaluated at once; 0: chosen by the engine
    threads: int = 0  # of the native engine; 0: one a core
    tokens: int = 1  # that a member reads in an update

    @property
    def units(self) -> int:
        """See `intlm.estimators`; for `member`, antithetic pairs."""
        return self.estimator.units(self.members)

    @property
    def group_size(self) -> int:
        """The number of units that read the same text."""
        return self.estimator.units_of_a_text()

    @property
    def texts(self) -> int:
        """The number of texts of an update."""
        return self.units // self.group_size

    @property
    def perturbation(self) -> "Perturbation":
        """The settings that the noise of `member` is drawn by."""
        return self.estimator.perturbation(self.seed)

    @property
    def largest_fitness(self) -> int:
        """The largest |fitness| that `Engine.accumulate` is given, for `member`."""
        return self.estimator.fitness.largest(self.units, self.estimator.rank)


def unserved(population: Population, *served: type[Part]) -> str:
    """The first of a population's parts that is not exactly of the `served` classes, as a reason; empty if all are."""
    parts = {
        "estimator": population.estimator, "objective": population.objective, "cell": population.architecture.cell
    }  # fmt: skip
    for kind, part in parts.items():
        if type(part) not in served:
            return f"it does not serve the {kind} {part.name}"
    return ""


class Engine(Protocol):
    """Evaluates a population and gathers its votes. tests/conformance compares all engines bit for bit."""

    name: str
    population: Population

    @staticmethod
    def serves(population: Population) -> str:
        """The reason why this engine cannot evaluate a population here; empty if it can. `xla` serves every one."""

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = ...
    ) -> tuple[Array, Array]:
        """Read a text with every member of some pairs.

        tokens: uint16 [texts, T], texts = pairs / group_size. targets: uint16 [texts, T, K], the targets of each token
        (`intlm.model.loss`). states: int8 [pairs, 2, layers, hidden]. update: uint32 scalar. first: uint32 scalar, the
        number of the first of these pairs, a multiple of group_size.
        Returns losses, int32 [pairs, 2], summed over the T tokens (256 = one bit), and the next states.
        """

    def accumulate(self, fitness: Array, update: Array, first: Array = ...) -> Parameters:
        """Returns the votes of some pairs by parameter, int32. fitness: int8 [pairs]; first: see `evaluate`."""

    def evaluate_tokens(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, means: Array, update: Array,
        first: Array, there: Array | None = None, voters: Array | None = None,
    ) -> "Evaluation":  # fmt: skip
        """Read texts with their clean and noisy members, and gather their votes, for the estimator `token`.

        tokens: uint16 [texts, T]. targets: uint16 [texts, T, K]. states: int8 [texts, layers, state size], the clean
        members'. means: int32 [2], the mean magnitudes of d and R that fitness is measured by. update, first: uint32
        scalars, the number of the first text. there: bool [texts], those that count (None: all). voters: bool
        [members], the noisy members that vote (None: all).
        """

    def prepare(self, parameters: Parameters) -> Prepared:
        """Prepares the shared weights for `infer` and `generate` of this engine."""

    def infer(self, prepared: Prepared, tokens: Array, states: Array) -> tuple[Array, Array]:
        """Read texts with the shared weights.

        tokens: int [batch, T]. states: int8 [batch, layers, hidden].
        Returns logits, int16 [batch, T, vocabulary] (256 = one bit), and the next states.
        """

    def generate(
        self, prepared: Prepared, logits: Array, states: Array, key: Array, position: Array, inverse: Array,
        top_k: int, count: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Write `count` tokens of one stream, reading each (`intlm.model.sampling.sample`).

        logits: int16 [vocabulary], from which the first token is drawn. states: int8 [layers, hidden].
        position: uint32 scalar, the number of tokens drawn before. A separator is read like any other token.
        Returns the tokens, int32 [count], and the logits and states after the last.
        """
