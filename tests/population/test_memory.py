"""A population far larger than memory would allow at once is evaluated in chunks."""

import jax
import jax.numpy as jnp
import pytest

from intlm.eggroll.perturbation import Perturbation
from intlm.model.parameters import Architecture, specifications
from intlm.population.engine import Problem
from intlm.population.xla import XlaEngine

GIB = 1 << 30


def held(engine: XlaEngine, tokens: int) -> int:
    """Bytes that the compiled evaluation needs beside its arguments and results."""
    problem = engine.problem
    architecture = problem.architecture
    parameters = {s.name: jax.ShapeDtypeStruct(s.shape, jnp.int8) for s in specifications(architecture)}
    text, targets = (jax.ShapeDtypeStruct((problem.pairs, tokens, *k), jnp.uint16) for k in ((), (8,)))
    states = jax.ShapeDtypeStruct((problem.pairs, 2, architecture.num_layers, architecture.hidden_size), jnp.int8)
    compiled = jax.jit(engine.evaluate).lower(parameters, text, targets, states, jnp.uint32(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("chunk_size", [0, 256])
def test_the_reference_model_with_2_to_the_17_members_needs_little_memory(chunk_size: int) -> None:
    """Compiled, not run: hidden 256, 6 layers, 4 tokens, 8 targets. Its states alone are 0.19 GiB, its noise would be
    1.8 GiB."""
    problem = Problem(Architecture(256, 256, 6, 1024, "clip"), Perturbation(0, 1, 4, 1), 1 << 16, 1, 1, chunk_size)
    assert held(XlaEngine(problem), 4) < GIB
