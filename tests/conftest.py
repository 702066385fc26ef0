"""Shared by the tests against the oracle: its values in the package's types, and weights of many kinds."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

# Before jax is imported; set it to run the same tests on a GPU. On a CPU the gpu engine's kernels are interpreted.
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ.setdefault("INTLM_INTERPRET", "1")
    # Compiling is most of what the tests cost; so it takes a quarter of the time, and of integers it changes nothing.
    # Children have the same options. A release of XLA that does not know one of them ends at once.
    if "XLA_FLAGS" not in os.environ:
        quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"}
        known = [sys.executable, "-c", "import jax; jax.devices()"]
        if subprocess.run(known, env=os.environ | quick, capture_output=True).returncode == 0:
            os.environ |= quick

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import settings

from intlm.cells import CELLS
from intlm.estimators.member import Member, Perturbation
from intlm.fitness import FITNESS
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.optimizers.threshold import Threshold
from intlm.population import Population, make_engine
from intlm.update import make_update_step

# The same examples every time: a failure here is a change of the code. No deadline, for the first call compiles.
settings.register_profile("intlm", deadline=None, derandomize=True)
settings.load_profile("intlm")


class Recording:
    """An engine that records the arguments and results of its calls."""

    def __init__(self, engine: str, population: Population) -> None:
        self.built = make_engine(engine, population)
        self.name, self.population = self.built.name, population

    def evaluate(self, *arguments: Any) -> Any:
        """See `Engine.evaluate`."""
        return self.built.evaluate(*arguments)

    def accumulate(self, fitness: jax.Array, *arguments: Any) -> Parameters:
        """See `Engine.accumulate`."""
        self.fitness, self.votes = fitness, self.built.accumulate(fitness, *arguments)
        return self.votes


@cache
def compiled_update(engine: str, population: Population, options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """See `Bridge.update`."""

    def run(*arguments: Any) -> Any:
        recording = Recording(engine, population)
        step = make_update_step(population, recording, Threshold())  # its setting is an argument
        after, report = step(*arguments)
        return after, report, recording.fitness, recording.votes

    return jax.jit(run, compiler_options=dict(options))


class Bridge:
    """Converts the oracle's values, lists by number in int64, to the package's, dictionaries by name in int8."""

    @staticmethod
    def architecture(shape: oracle.Shape) -> Architecture:
        """The package's description of a shape."""
        return Architecture(
            shape.vocabulary, shape.hidden, shape.layers, shape.feed_forward, shape.nonlinearity, CELLS[shape.cell]()
        )

    @staticmethod
    def perturbation(noise: oracle.Noise) -> Perturbation:
        """The package's settings of some noise."""
        return Perturbation(noise.seed, noise.rank, noise.sigma_shift, noise.noise_reuse)

    @classmethod
    def population(
        cls,
        shape: oracle.Shape,
        noise: oracle.Noise,
        pairs: int,
        group_size: int = 1,
        fitness: str = "sign",
        chunk_size: int = 0,
    ) -> Population:
        """The population that an engine is built for."""
        estimator = Member(
            rank=noise.rank, sigma_shift=noise.sigma_shift, noise_reuse=noise.noise_reuse, group_size=group_size,
            fitness=FITNESS[fitness](),
        )  # fmt: skip
        return Population(cls.architecture(shape), estimator, 2 * pairs, noise.seed, chunk_size=chunk_size)

    @classmethod
    def parameters(cls, shape: oracle.Shape, values: oracle.Parameters) -> Parameters:
        """The package's parameters of these values."""
        return cls.named(shape, values, jnp.int8)

    @classmethod
    def named(cls, shape: oracle.Shape, values: list[oracle.Array], dtype: Any = jnp.int32) -> Parameters:
        """Parameters, or arrays of the same shapes, by the package's names."""
        described = specifications(cls.architecture(shape))
        assert [s.shape for s in described] == [v.shape for v in values]
        return {s.name: jnp.asarray(v, dtype) for s, v in zip(described, values, strict=True)}

    @classmethod
    def assert_equal(cls, shape: oracle.Shape, found: Parameters, expected: oracle.Parameters) -> None:
        """Asserts that parameters, or their votes, are exactly the oracle's, with none missing and none extra."""
        described = specifications(cls.architecture(shape))
        assert set(found) == {s.name for s in described}
        for s, value in zip(described, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(found[s.name]), value, err_msg=s.name)

    @staticmethod
    def update(
        engine: str, population: Population, options: Mapping[str, Any] = MappingProxyType({})
    ) -> Callable[..., Any]:
        """One update of `engine` by `threshold`, which returns also the fitness and the votes; compiled once for each
        set of XLA's options."""
        return compiled_update(engine, population, tuple(options.items()))

    @staticmethod
    def random_parameters(shape: oracle.Shape, rng: np.random.Generator, kind: str = "random") -> oracle.Parameters:
        """Values of every parameter: `random` ones, `extreme` ones of either sign, all `high` or all `low`."""

        def draw(size: tuple[int, ...]) -> Any:
            if kind == "random":
                return rng.integers(-127, 127, size, endpoint=True)
            if kind == "extreme":
                return rng.choice(np.array([-127, 127]), size)
            return np.full(size, {"high": 127, "low": -127}[kind])

        return [draw(size).astype(np.int64) for size in oracle.parameter_shapes(shape)]


@pytest.fixture(scope="session")
def bridge() -> type[Bridge]:
    """See `Bridge`."""
    return Bridge
