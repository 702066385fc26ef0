"""The native engine: fused C++ kernels (kernels/cpu), called through XLA's FFI, so that jit goes through them."""

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from intlm.cells.mgu import Mgu
from intlm.errors import ConfigError
from intlm.estimators.member import Member
from intlm.estimators.token import KINDS, Evaluation, Sums, Token, no_votes
from intlm.lazy import Array
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.objectives.next_token import NextToken
from intlm.population.engine import Population, Prepared, unserved
from intlm.population.sharding import FIRST

_LIBRARY = Path(__file__).with_name("libintlm.so")
_CALLS = ("evaluate", "accumulate", "evaluate_tokens", "prepare", "infer", "generate")


@cache
def missing() -> str:
    """Why the kernels cannot be used here; empty where they can. Registers them with JAX, and runs one.

    A library may exist and not run: it may be compiled for another processor, from other sources, or with the headers
    of a newer jaxlib than the installed one.
    """
    if jax.default_backend() != "cpu":
        return "JAX does not run on a CPU"
    if not _LIBRARY.exists():
        return "it needs a C++ compiler when the package is installed"
    again = f"install intlm again beside this jaxlib ({jax.lib.__version__})"
    try:
        library = kernels()
        if not instruction_set():
            raise ConfigError(f"INTLM_ISA = {os.environ['INTLM_ISA']}: this processor has no such instruction set")
        for name in _CALLS:
            symbol = getattr(library, "Intlm" + name.title().replace("_", ""))
            jax.ffi.register_ffi_target(f"intlm_{name}", jax.ffi.pycapsule(symbol), platform="cpu")
        NativeEngine(Population(Architecture(2, 8, 1, 8, "clip"))).probe()
    except (OSError, AttributeError, ValueError, jax.errors.JaxRuntimeError) as error:
        return f"{_LIBRARY} does not run here: {str(error).strip()[:300]}: {again}"
    return ""


def available() -> bool:
    """Whether the kernels can be used here."""
    return not missing()


@cache
def kernels() -> ctypes.CDLL:
    """The library. Raises OSError where there is none for this processor."""
    library = ctypes.CDLL(str(_LIBRARY))
    library.intlm_isa.restype = library.intlm_phases.restype = ctypes.c_char_p
    library.intlm_multiply.restype = library.intlm_read.restype = ctypes.c_double
    library.intlm_multiply.argtypes = [ctypes.c_int64, ctypes.c_int32]
    library.intlm_read.argtypes = [ctypes.c_int64, ctypes.c_int32, ctypes.c_int64]
    library.intlm_prepared_size.restype = ctypes.c_int64
    library.intlm_prepared_size.argtypes = [ctypes.c_int32] * 4
    library.intlm_measured.argtypes = [ctypes.POINTER(ctypes.c_int64)]
    return library


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_set() -> str:
    """The instruction set whose kernels run: the best of this processor, or the one that INTLM_ISA names.

    Empty if the processor does not have that one.
    """
    return kernels().intlm_isa().decode()


def multiply_rate(threads: int, seconds: float) -> float:
    """Measures for `seconds` the peak of exact int8 products per second of `threads` threads."""
    return kernels().intlm_multiply(round(seconds * 1e9), threads)


def read_rate(threads: int, size: int, seconds: float) -> float:
    """Measures for `seconds` the bytes per second that `threads` threads read, each its share of `size` bytes."""
    return kernels().intlm_read(round(seconds * 1e9), threads, size)


@contextmanager
def phases() -> Iterator[dict[str, float]]:
    """Measures the kernels inside the context: seconds per phase, summed over threads, filled in as it ends."""
    library = kernels()
    names = library.intlm_phases().decode().split(",")
    spent = (ctypes.c_int64 * len(names))()
    seconds: dict[str, float] = {}
    library.intlm_measure()
    try:
        yield seconds
    finally:
        library.intlm_measured(spent)
        seconds.update({name: nanoseconds / 1e9 for name, nanoseconds in zip(names, spent, strict=True)})


class NativeEngine:
    """See `Engine`."""

    name = "native"

    def __init__(self, population: Population) -> None:
        self.population = population
        self.specifications = specifications(population.architecture)
        self.sizes = [int(np.prod(s.shape)) for s in self.specifications]
        self.attributes = self._attributes(population.units)

    @staticmethod
    def serves(population: Population) -> str:
        """See `Engine.serves`."""
        return missing() or unserved(population, Member, Token, NextToken, Mgu)

    def _attributes(self, pairs: int) -> dict[str, np.generic]:
        """The population as attributes of a kernel call, by the names of `Problem` in kernels/cpu/kernels.h."""
        architecture, estimator = self.population.architecture, self.population.estimator
        rank, sigma_shift = (estimator.rank, estimator.sigma_shift) if isinstance(estimator, Member) else (1, 0)
        return {
            "vocab": np.int32(architecture.vocab_size),
            "hidden": np.int32(architecture.hidden_size),
            "layers": np.int32(architecture.num_layers),
            "feed_forward": np.int32(architecture.feed_forward_size),
            "table": np.bool_(architecture.nonlinearity == "table"),
            "rank": np.int32(rank),
            "sigma_shift": np.int32(sigma_shift),
            "pairs": np.int64(pairs),
            "group": np.int64(self.population.group_size),
            "seed": np.uint64(self.population.seed).view(np.int64),  # larger ones cannot be attributes
            "threads": np.int32(self.population.threads),
        }

    @property
    def prepared_size(self) -> int:
        """Bytes of what `prepare` makes: it depends on the instruction set."""
        a = self.population.architecture
        return kernels().intlm_prepared_size(a.vocab_size, a.hidden_size, a.num_layers, a.feed_forward_size)

    def probe(self) -> None:
        """Run a kernel. Raises what JAX raises where that fails."""
        call = jax.ffi.ffi_call("intlm_prepare", jax.ShapeDtypeStruct((self.prepared_size,), jnp.int8))
        jax.block_until_ready(call(np.zeros(sum(self.sizes), np.int8), **self.attributes))

    def _flat(self, parameters: Parameters) -> Array:
        return jnp.concatenate([parameters[s.name].reshape(-1) for s in self.specifications])

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = FIRST
    ) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        shapes = (jax.ShapeDtypeStruct(states.shape[:2], jnp.int32), jax.ShapeDtypeStruct(states.shape, jnp.int8))
        call = partial(jax.ffi.ffi_call("intlm_evaluate", shapes), **self._attributes(states.shape[0]))
        epoch = self.population.perturbation.epoch(update)
        losses, states = call(self._flat(parameters), tokens, targets, states, epoch, first)
        return losses, states

    def accumulate(self, fitness: Array, update: Array, first: Array = FIRST) -> Parameters:
        """See `Engine.accumulate`."""
        call = jax.ffi.ffi_call("intlm_accumulate", jax.ShapeDtypeStruct((sum(self.sizes),), jnp.int32))
        epoch = self.population.perturbation.epoch(update)
        flat = call(fitness, epoch, first, **self._attributes(fitness.shape[0]))
        return self._by_name(flat, [s.shape for s in self.specifications])

    def evaluate_tokens(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, means: Array, update: Array,
        first: Array = FIRST, there: Array | None = None, voters: Array | None = None,
    ) -> Evaluation:  # fmt: skip
        """See `Engine.evaluate_tokens`."""
        population = self.population
        settings, count = population.estimator.settings(population), tokens.shape[0]
        widths = {name: chance.shape for name, chance in no_votes(parameters).chance.items()}
        chances = [widths[s.name] for s in self.specifications]
        shapes = (
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct(states.shape, jnp.int8),
            jax.ShapeDtypeStruct((sum(self.sizes),), jnp.int32),
            jax.ShapeDtypeStruct((sum(math.prod(shape) for shape in chances),), jnp.int32),
            jax.ShapeDtypeStruct((2, 4), jnp.int32),
        )
        there = jnp.ones(count, bool) if there is None else there
        voters = jnp.ones(settings.members, bool) if voters is None else voters
        losses, states, votes, chance, sizes = jax.ffi.ffi_call("intlm_evaluate_tokens", shapes)(
            self._flat(parameters), tokens, targets, states, means, update, first, there, voters,
            **self._attributes(count), texts=np.int64(settings.texts), noisy=np.int32(settings.members),
            credit=np.int32(settings.credit),
            **{f"sigma_{kind}": np.int32(sigma) for kind, sigma in zip(KINDS, settings.sigmas, strict=True)},
        )  # fmt: skip
        by_name = self._by_name(votes, [s.shape for s in self.specifications])
        return Evaluation(losses, states, Sums(by_name, self._by_name(chance, chances), sizes))

    def _by_name(self, flat: Array, shapes: list[tuple[int, ...]]) -> Parameters:
        """Cuts flat values into arrays of these shapes, one for each parameter."""
        parts = jax.lax.split(flat, [math.prod(shape) for shape in shapes])
        named = zip(self.specifications, shapes, parts, strict=True)
        return {s.name: part.reshape(shape) for s, shape, part in named}

    def prepare(self, parameters: Parameters) -> Prepared:
        """See `Engine.prepare`."""
        call = jax.ffi.ffi_call("intlm_prepare", jax.ShapeDtypeStruct((self.prepared_size,), jnp.int8))
        return call(self._flat(parameters), **self.attributes)

    def infer(self, prepared: Prepared, tokens: Array, states: Array) -> tuple[Array, Array]:
        """See `Engine.infer`."""
        vocab = self.population.architecture.vocab_size
        shapes = (
            jax.ShapeDtypeStruct((*tokens.shape, vocab), jnp.int16),
            jax.ShapeDtypeStruct(states.shape, jnp.int8),
        )
        call = jax.ffi.ffi_call("intlm_infer", shapes)
        logits, states = call(prepared, tokens.astype(jnp.uint16), states, **self.attributes)
        return logits, states

    def generate(
        self, prepared: Prepared, logits: Array, states: Array, key: Array, position: Array, inverse: Array,
        top_k: int, count: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """See `Engine.generate`."""
        shapes = (
            jax.ShapeDtypeStruct((count,), jnp.int32),
            jax.ShapeDtypeStruct(logits.shape, jnp.int16),
            jax.ShapeDtypeStruct(states.shape, jnp.int8),
        )
        call = jax.ffi.ffi_call("intlm_generate", shapes)
        drawn, logits, states = call(
            prepared, logits, states, key, position, inverse, jnp.int32(top_k), **self.attributes
        )
        return drawn, logits, states
