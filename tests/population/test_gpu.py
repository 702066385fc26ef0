"""The gpu engine where no GPU is: its kernels lowered for one, what it leaves to XLA, the memory it asks for.

That its bits are those of the other engines is tests/conformance's, which runs its kernels in Pallas's interpreter.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import oracle
import pytest
import tiny
from jax.extend.core import ClosedJaxpr, Jaxpr

from intlm.arithmetic.fixed_point import activation_rescale, saturate8
from intlm.errors import ConfigError
from intlm.estimators.member import Member
from intlm.fitness import FITNESS
from intlm.model.parameters import Architecture, specifications
from intlm.population import Population, _say_once, gpu, make_engine, native, xla
from intlm.population.kernels import recurrence as cells
from intlm.population.kernels import rescale_to_int8

LARGE = Architecture(256, 256, 6, 1024, "clip")


def arguments(population: Population, tokens: int, targets: int = 1) -> tuple[Any, ...]:
    """The shapes and dtypes of the arguments of `evaluate`."""
    texts, architecture = population.units // population.group_size, population.architecture
    return (
        {s.name: jax.ShapeDtypeStruct(s.shape, jnp.int8) for s in specifications(architecture)},
        jax.ShapeDtypeStruct((texts, tokens), jnp.uint16),
        jax.ShapeDtypeStruct((texts, tokens, targets), jnp.uint16),
        jax.ShapeDtypeStruct((population.units, 2, architecture.num_layers, architecture.hidden_size), jnp.int8),
        jax.ShapeDtypeStruct((), jnp.uint32),
    )


@pytest.mark.skipif(
    tuple(map(int, jaxlib.__version__.split(".")[:3])) > (0, 10, 2), reason="this jaxlib compiles as it lowers"
)
@pytest.mark.parametrize(
    ("architecture", "rank", "fitness"),
    [
        (replace(LARGE, num_layers=1), 1, "sign"),
        (Architecture(300, 264, 1, 40, "table"), 3, "normalised"),
    ],
)
def test_the_kernels_lower_for_a_gpu(
    architecture: Architecture, rank: int, fitness: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INTLM_INTERPRET", raising=False)
    shaping = FITNESS[fitness]()
    population = Population(architecture, Member(rank=rank, fitness=shaping), 128 if fitness == "sign" else 1 << 16, 1)
    engine = gpu.GpuEngine(population)
    lowered = jax.jit(engine.evaluate).trace(*arguments(population, 40, 4)).lower(lowering_platforms=("cuda",))
    # The inputs' product, the recurrence, the feed-forward in one kernel or two, the head.
    expected = 4 if engine.fuses_feed_forward else 5
    assert lowered.as_text().count("@__gpu$xla.gpu.triton") == expected
    scores = jax.ShapeDtypeStruct((64,), jnp.int8)
    votes = jax.jit(engine.accumulate).trace(scores, jax.ShapeDtypeStruct((), jnp.uint32))
    text = votes.lower(lowering_platforms=("cuda",)).as_text()
    matrices = {s.name.split(".")[-1] for s in specifications(architecture) if len(s.shape) == 2}
    assert text.count("@__gpu$xla.gpu.triton") == len(matrices)


def test_wide(bridge: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Fan-ins and states of several parts, two blocks of tokens of which the second is not full; and the same with the
    recurrence left to XLA, which one line says."""
    shape, noise = oracle.Shape(5, 264, 264, 1, "table"), oracle.Noise(11, 2, 3, 1)
    population = bridge.population(shape, noise, 3, 3, chunk_size=64)
    rng = np.random.default_rng(3)
    states = jnp.asarray(rng.integers(-127, 127, (3, 2, 1, 264), endpoint=True), jnp.int8)
    tokens = jnp.asarray([[1, 0, 3]], jnp.uint16)
    targets = jnp.asarray([[[0, 4], [3, 3], [2, 1]]], jnp.uint16)
    given = (bridge.parameters(shape, bridge.random_parameters(shape, rng)), tokens, targets, states, jnp.uint32(5))
    _say_once.cache_clear()
    monkeypatch.setattr(gpu, "TOKENS", 2)
    found = []
    for name, largest in (("xla", 0), ("gpu", 512), ("gpu", 256)):
        monkeypatch.setattr(cells, "LARGEST", largest)
        engine = make_engine(name, population)
        found.append(jax.jit(engine.evaluate, compiler_options=tiny.quick_options())(*given))
    for other in found[1:]:
        for expected, leaf in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(leaf, expected)
    assert "the gpu engine leaves to XLA: recurrence (hidden 264 is above 256)" in capfd.readouterr().err


def sizes(program: Any) -> Iterator[int]:
    """Bytes of every value of a program, those inside kernels apart."""
    if isinstance(program, ClosedJaxpr):
        program = program.jaxpr
    if isinstance(program, Jaxpr):
        for equation in program.eqns:
            yield from (v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
            if equation.primitive.name != "pallas_call":
                yield from (size for parameter in equation.params.values() for size in sizes(parameter))
    elif isinstance(program, list | tuple):
        yield from (size for part in program for size in sizes(part))


@pytest.mark.parametrize("members", [1 << 17, 1 << 20])
def test_memory(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is as large as all members' activations, logits or noise; only their states and a chunk's streams are
    kept."""
    monkeypatch.setattr(gpu, "spare_bytes", lambda architecture: 1 << 29)
    population = Population(LARGE, members=members, seed=1)
    engine = gpu.GpuEngine(population)
    assert engine.chunk == 4096
    found = set(sizes(jax.make_jaxpr(engine.evaluate)(*arguments(population, 100))))
    states = members * LARGE.num_layers * LARGE.hidden_size
    stream = 2 * engine.chunk * gpu.TOKENS * LARGE.hidden_size
    assert {states, stream, 4 * stream} <= found  # the last: pre-activations of gate and candidate, int16
    assert max(found - {states}) == 4 * stream == 1 << 28
    votes = jax.make_jaxpr(engine.accumulate)(jnp.zeros(members // 2, jnp.int8), jnp.uint32(0))
    assert max(sizes(votes)) <= 1 << 26


def test_engines_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population(Architecture(5, 8, 1, 8, "clip"), seed=1)
    if gpu.missing():
        assert make_engine("auto", population).name == ("native" if native.available() else "xla")
        monkeypatch.delenv("INTLM_INTERPRET", raising=False)
        with pytest.raises(ConfigError, match='engine = "gpu": JAX finds no GPU'):
            make_engine("gpu", population)
    else:
        assert make_engine("auto", population).name == "gpu"


@pytest.mark.parametrize(
    ("capability", "version", "said"),
    [
        ("9.0", "cuda 12090", ""),
        ("7.5", "cuda 12090", "compute capability 7.5, and the kernels need 8.0"),
        ("gfx90a", "rocm 60000", "the kernels are for NVIDIA's GPUs"),
    ],
)
def test_gpus_that_lack_something(
    capability: str, version: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    device = SimpleNamespace(
        compute_capability=capability, client=SimpleNamespace(platform_version=version), memory_stats=lambda: None
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(gpu, "missing", gpu.missing.__wrapped__)  # without what was found before
    monkeypatch.setattr(native, "missing", lambda: "not here")
    _say_once.cache_clear()
    assert gpu.missing() == said
    population = Population(Architecture(5, 8, 1, 8, "clip"), seed=1)
    assert make_engine("auto", population).name == ("xla" if said else "gpu")
    assert (f"intlm: engine xla (gpu: {said}; native: " in capfd.readouterr().err) == bool(said)


@pytest.mark.parametrize("pairs", [1, 3, 64, 1000, 65536])
@pytest.mark.parametrize(("most", "multiple"), [(1, 1), (100, 1), (100, 32), (5000, 32)])
def test_even_chunks(pairs: int, most: int, multiple: int) -> None:
    found = xla.even_chunk(pairs, most, multiple)
    assert 1 <= found <= max(multiple, most) and (found % multiple == 0 or found == pairs)
    assert xla.even_chunk(65536, 5000, 32) == 4096


@pytest.mark.parametrize("fan_in", [8, 24, 256, 264, 1024, 65536])
def test_one_clamp_does_what_two_do(fan_in: int) -> None:
    """One clamp gives the result of two: around each value near the ends where the result changes, and far beyond."""
    rescale = activation_rescale(fan_in)
    ends = np.arange(-140, 141) * (1 << 15 + rescale.shift) // rescale.multiplier
    x = np.concatenate([ends + i for i in range(-3, 4)] + [[-(2**30), 2**30, 0]]).astype(np.int32)
    expected = np.asarray(saturate8(rescale(jnp.asarray(x))))
    assert {-127, 127, 0} <= set(expected.tolist())
    np.testing.assert_array_equal(rescale_to_int8(rescale, jnp.asarray(x)), expected)
