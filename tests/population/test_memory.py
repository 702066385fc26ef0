"""A population too large for memory is evaluated in chunks, and logits are never kept."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from intlm.model.parameters import Architecture, specifications
from intlm.population import native
from intlm.population.engine import Population
from intlm.population.xla import XlaEngine

GIB = 1 << 30


def held(engine: XlaEngine, tokens: int) -> int:
    """Returns the bytes that the compiled evaluation needs beside its arguments and results."""
    population = engine.population
    architecture = population.architecture
    parameters = {s.name: jax.ShapeDtypeStruct(s.shape, jnp.int8) for s in specifications(architecture)}
    text, targets = (jax.ShapeDtypeStruct((population.units, tokens, *k), jnp.uint16) for k in ((), (8,)))
    states = jax.ShapeDtypeStruct((population.units, 2, architecture.num_layers, architecture.hidden_size), jnp.int8)
    compiled = jax.jit(engine.evaluate).lower(parameters, text, targets, states, jnp.uint32(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("chunk_size", [0, 256])
def test_the_reference_model_with_2_to_the_17_members_needs_little_memory(chunk_size: int) -> None:
    """Compiled, not run: hidden 256, 6 layers, 4 tokens, 8 targets. Its states alone are 0.19 GiB, its noise would be
    1.8 GiB."""
    population = Population(Architecture(256, 256, 6, 1024, "clip"), members=1 << 17, chunk_size=chunk_size)
    assert held(XlaEngine(population), 4) < GIB


@pytest.mark.parametrize("members", [1 << 10, 1 << 17])
def test_a_vocabulary_of_65536_costs_no_logits_of_all_members(members: int) -> None:
    """Compiled, not run: those of 2^10 members alone would be 0.27 GiB, of 2^17 34 GiB."""
    population = Population(Architecture(65536, 64, 1, 64, "clip"), members=members)
    assert held(XlaEngine(population), 4) < GIB / 8


@pytest.mark.skipif(not native.available(), reason="the kernels are not compiled")
def test_nor_in_the_kernels() -> None:
    """A run with 4096 members, whose logits would be 1 GiB, needs at most 64 MiB more than one with 64 members."""
    script = """
import resource
import jax, jax.numpy as jnp
from intlm.estimators.member import Member
from intlm.model.forward import zero_states
from intlm.model.parameters import Architecture, initialise
from intlm.population import Population, make_engine
architecture = Architecture(65536, 8, 1, 8, "clip")
parameters, peaks = initialise(architecture, 0), []
for pairs in (32, 2048):
    engine = make_engine("native", Population(architecture, Member(group_size=pairs), 2 * pairs))
    text = jnp.ones((1, 2), jnp.uint16), jnp.ones((1, 2, 1), jnp.uint16)
    losses, _ = jax.jit(engine.evaluate)(parameters, *text, zero_states((pairs, 2), architecture), jnp.uint32(0))
    engine.accumulate(jnp.ones(pairs, jnp.int8), jnp.uint32(0))["head"].block_until_ready()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10  # KiB
