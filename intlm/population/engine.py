"""The seam between the method and whatever computes it: an engine evaluates a population and gathers its votes.

Everything is indexed by the pair's number in the whole population, so that chunks, devices and processes are only ways
of walking through it: `evaluate` and `accumulate` are given some pairs that follow each other, and the number of the
first. All calls are pure and can be traced by jax.jit.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from intlm.arithmetic.fixed_point import Array
from intlm.eggroll.perturbation import Perturbation
from intlm.model.parameters import Architecture, Parameters

Prepared = Any  # arrays that only the engine that made them understands
FIRST: Any = np.uint32(0)  # the first pair of a population that is not divided


class Problem(NamedTuple):
    """What an engine is built for; hashable."""

    architecture: Architecture
    perturbation: Perturbation
    pairs: int  # in the whole population
    group_size: int  # pairs that share a text
    fitness_maximum: int  # the largest |fitness| that `accumulate` will be given
    chunk_size: int = 0  # members evaluated at once; 0: chosen by the engine
    threads: int = 0  # of the native engine; 0: one a core


class Engine(Protocol):
    """Held to the others bit for bit by tests/conformance."""

    name: str

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = FIRST
    ) -> tuple[Array, Array]:
        """Read a text with every member of some pairs.

        tokens: uint16 [texts, T], texts = pairs / group_size. targets: uint16 [texts, T, K], what is to follow each
        (`intlm.model.loss`). states: int8 [pairs, 2, layers, hidden]. update: uint32 scalar. first: uint32 scalar, the
        number of the first of these pairs, a multiple of group_size.
        Returns losses, int32 [pairs, 2], summed over the T tokens (256 = one bit), and the next states.
        """

    def accumulate(self, fitness: Array, update: Array, first: Array = FIRST) -> Parameters:
        """What some pairs vote. fitness: int8 [pairs]; first: see `evaluate`. Returns each parameter's votes, int32."""

    def prepare(self, parameters: Parameters) -> Prepared:
        """The shared weights as `infer` and `generate` of this engine want them."""

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

        logits: int16 [vocabulary], what the first token is drawn from. states: int8 [layers, hidden].
        position: uint32 scalar, tokens drawn before. A separator is read like any other token.
        Returns the tokens, int32 [count], and the logits and states after the last.
        """
