"""The native engine on each of this processor's instruction sets, against the reference engine, bit for bit."""

import ctypes
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import clang_format
import jax
import jax.numpy as jnp
import make_headers
import numpy as np
import pytest
import targets
import tiny
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from intlm.cli import main
from intlm.estimators.member import Member
from intlm.fitness import FITNESS
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.population import native
from intlm.population.engine import Population
from intlm.population.xla import XlaEngine

pytestmark = pytest.mark.skipif(not native.available(), reason="installed without a C++ compiler")
ROOT = Path(__file__).resolve().parents[2]
DIGEST = "7e426a0cba36c96f-161e194caa8a2194-341f1965bd8fcd8c"  # the last is the estimator `token`'s
INSTRUCTION_SETS = {name for machine in targets.TARGETS.values() for name in machine}


@cache
def here() -> list[str]:
    """Returns the instruction sets that this processor has."""
    library = ctypes.CDLL(str(native._LIBRARY))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        library.intlm_isa.restype = ctypes.c_char_p
        for name in INSTRUCTION_SETS:
            patch.setenv("INTLM_ISA", name)
            found += [name] if library.intlm_isa().decode() == name else []
    return found


def parameters_of(architecture: Architecture, rng: np.random.Generator, kind: str) -> Parameters:
    """Random weights: over the whole range, all at its ends, or as a model has them."""
    made = {}
    for name, shape, _ in specifications(architecture):
        if kind == "ends":
            values = rng.choice([-127, 127], shape)
        else:
            values = rng.integers(-127, 128, shape) if kind == "any" else np.clip(rng.normal(0, 16, shape), -127, 127)
        made[name] = jnp.asarray(values.astype(np.int8))
    return made


POPULATIONS = st.builds(
    Population,
    st.builds(
        Architecture,
        st.integers(2, 300) | st.sampled_from([16, 96, 256, 4100]),
        st.integers(1, 11).map(lambda n: 8 * n),
        st.integers(1, 3),
        st.integers(1, 20).map(lambda n: 8 * n),
        st.sampled_from(["clip", "table"]),
    ),
    st.builds(
        Member,
        rank=st.integers(1, 5),
        sigma_shift=st.integers(0, 12),
        noise_reuse=st.sampled_from([0, 1, 3]),
        fitness=st.just(FITNESS["normalised"]()),
    ),
    st.integers(1, 31).map(lambda pairs: 2 * pairs),
    st.integers(0, 2**64 - 1),
    threads=st.integers(1, 3),
)


@hypothesis_settings(max_examples=4)  # compiling the reference is most of what an example costs
@given(POPULATIONS, st.sampled_from(["any", "ends", "normal"]), st.sampled_from([1, 2, 8]), st.integers(0, 2**31))
def test_every_shape(population: Population, kind: str, count: int, seed: int) -> None:
    """Random shapes, odd remainders of tiles and lanes, extreme weights and states; all calls."""
    rng = np.random.default_rng(seed)
    architecture, pairs = population.architecture, population.units
    group_size = int(rng.choice([g for g in range(1, pairs + 1) if pairs % g == 0]))
    population = replace(population, estimator=replace(population.estimator, group_size=group_size))
    parameters = parameters_of(architecture, rng, kind)
    size = (pairs // population.group_size, 4)
    tokens, targets = (
        jnp.asarray(rng.integers(0, architecture.vocab_size, s), jnp.uint16) for s in (size, (*size, count))
    )
    shape = (pairs, 2, architecture.num_layers, architecture.hidden_size)
    states = jnp.asarray(rng.integers(-127, 128, shape), jnp.int8)
    most = population.largest_fitness
    fitness = jnp.asarray(rng.integers(-most, most + 1, pairs), jnp.int8)
    update = jnp.uint32(rng.integers(0, 2**32))
    reference, engine = XlaEngine(population), native.NativeEngine(population)
    jit = jax.jit
    texts = tokens.repeat(population.group_size, axis=0)
    logits = jnp.asarray(rng.integers(-16000, 16000, architecture.vocab_size), jnp.int16)
    key = jnp.asarray(rng.integers(0, 2**32, 4), jnp.uint32)
    inverse, top_k = jnp.int32(rng.integers(1, 1024)), int(rng.integers(1, architecture.vocab_size, endpoint=True))

    def all_of(which: XlaEngine | native.NativeEngine) -> list[np.ndarray]:
        found = (
            jit(which.evaluate)(parameters, tokens, targets, states, update),
            jit(which.accumulate)(fitness, update),
            jit(which.infer)(prepared := jit(which.prepare)(parameters), texts, states[:, 0]),
            jit(partial(which.generate, top_k=top_k, count=3))(prepared, logits, states[0, 0], key, update, inverse),
        )
        return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]

    expected = all_of(reference)
    with pytest.MonkeyPatch.context() as patch:
        for name in here():
            patch.setenv("INTLM_ISA", name)
            assert native.instruction_set() == name
            for found, wanted in zip(all_of(engine), expected, strict=True):
                np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_hostile_shapes_are_refused() -> None:
    """Wrong shapes are refused at the boundary, before a kernel reads anything."""
    population = Population(Architecture(16, 8, 1, 8, "clip"), members=4)
    engine = native.NativeEngine(population)
    parameters = parameters_of(population.architecture, np.random.default_rng(0), "any")
    states = jnp.zeros((2, 2, 1, 8), jnp.int8)

    good, follow = jnp.zeros((2, 3), jnp.uint16), jnp.zeros((2, 3, 4), jnp.uint16)

    def evaluate(tokens: jax.Array = good, targets: jax.Array = follow, states: jax.Array = states) -> None:
        jax.block_until_ready(engine.evaluate(parameters, tokens, targets, states, jnp.uint32(0)))

    evaluate()
    for wrong in ({"tokens": good.at[1, 2].set(16)}, {"targets": follow.at[1, 2, 3].set(16)}):
        with pytest.raises(Exception, match="a token is outside the vocabulary"):
            evaluate(**wrong)
    targets = (follow[:1], follow[:, :2], follow[..., :3], follow[..., :0], follow[..., 0])
    for wrong in ({"tokens": good[:1]}, {"states": states[:1]}, *({"targets": some} for some in targets)):
        with pytest.raises(Exception, match="shape does not fit"):
            evaluate(**wrong)
    prepared, logits, one = engine.prepare(parameters), jnp.zeros(16, jnp.int16), states[0, 0]
    key = jnp.zeros(4, jnp.uint32)

    def write(prepared: jax.Array = prepared, inverse: int = 256, top_k: int = 16) -> None:
        arguments = (prepared, logits, one, key, jnp.uint32(0), jnp.int32(inverse), top_k, 3)
        jax.block_until_ready(engine.generate(*arguments))

    write()
    with pytest.raises(Exception, match="shape does not fit"):
        write(prepared[:-1])
    with pytest.raises(Exception, match="temperature or top_k"):
        write(inverse=0)
    with pytest.raises(Exception, match="temperature or top_k"):
        write(top_k=17)
    with pytest.raises(Exception, match="shape does not fit"):
        jax.block_until_ready(engine.infer(prepared[1:], good, states[:, 0]))
    with pytest.raises(Exception, match="a token is outside the vocabulary"):
        jax.block_until_ready(engine.infer(prepared, good.at[0, 0].set(16), states[:, 0]))
    right = engine.attributes
    for wrong, said in (
        ({"hidden": np.int32(12)}, "hidden = 12: expected 8 to 65536, a multiple of 8"),
        ({"vocab": np.int32(1)}, "vocab = 1: expected 2 to 65536$"),
        ({"rank": np.int32(257)}, "rank = 257: expected 1 to 256"),
        ({"threads": np.int32(-1)}, "threads = -1: expected 0 to 1024"),
        ({"group": np.int64(3)}, "group = 3: expected to divide pairs"),
        ({"hidden": np.int64(16)}, "Wrong scalar data type"),
        ({"more": np.int32(1)}, "Wrong number of attributes"),
    ):
        engine.attributes = {**right, **wrong}
        with pytest.raises(Exception, match=re.compile(said, re.MULTILINE)):
            jax.block_until_ready(engine.infer(prepared, good, states[:, 0]))


def test_no_floating_point_in_the_machine_code() -> None:
    """Disassembles the library: the kernels move data in vector registers, but never compute with floats."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(native._LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    kernels, inside = 0, False
    moves = r"v?p|v?mov|v?(un)?perm|v?shuf|v?unpck|v?blend|v?and|v?x?or|v?broadcast|v?insert|v?extract"
    floats = r"v?\w+(ps|pd|ss|sd)|f\w+|v?cvt\w*(ps|pd|ss|sd)\w*|[su]cvtf|v?u?comis[sd]"
    computes = re.compile(rf"^(?!{moves})({floats})$")
    assert computes.match("vaddps") and computes.match("cvtsi2sd") and computes.match("fmul")
    assert not computes.match("vmovaps") and not computes.match("vpmaxsd")
    for line in listing.splitlines():
        if match := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            inside = any(f"{name}::" in match[1] for name in INSTRUCTION_SETS)
            kernels += inside
        elif inside and (fields := line.split("\t"))[1:]:
            mnemonic = fields[1].split()[0]
            assert not computes.match(mnemonic), line
    assert kernels > 20


@pytest.mark.parametrize("name", make_headers.HEADERS)
def test_the_c_headers_are_made_of_what_python_says(name: str) -> None:
    """The committed C headers are those generated from Python."""
    assert (ROOT / "kernels" / name).read_text("utf-8") == make_headers.HEADERS[name]()


def test_the_c_code_is_formatted() -> None:
    """The C code is formatted as .clang-format says."""
    paths = [p for p in (ROOT / "kernels").rglob("*.*") if p.suffix in (".h", ".c", ".cc")]
    assert len(paths) > 20
    made = [ROOT / "kernels" / name for name in make_headers.HEADERS]
    command = [clang_format.get_executable("clang-format"), "--dry-run", "-Werror"]
    run = subprocess.run([*command, *(p for p in paths if p not in made)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_build_gives_the_same_digest() -> None:
    """Builds with sanitizers, and for Arm if an emulator is installed, run without JAX. The digests are version 3's."""
    run = subprocess.run([sys.executable, ROOT / "kernels" / "check.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {line.split()[0] for line in run.stdout.splitlines()} == {DIGEST}


# The answer of a library that was compiled with the headers of a much newer jaxlib.
NEWER = """
#include "xla/ffi/api/c_api.h"
static XLA_FFI_Error* answer(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)frame->extension_start)->metadata;
  metadata->api_version.major_version = 0;
  metadata->api_version.minor_version = 999;
  return 0;
}
#define CALL(name) XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) { return answer(frame); }
CALL(IntlmEvaluate) CALL(IntlmAccumulate) CALL(IntlmEvaluateTokens)
CALL(IntlmPrepare) CALL(IntlmInfer) CALL(IntlmGenerate)
const char* intlm_isa(void) { return "plain"; }
const char* intlm_phases(void) { return ""; }
long long intlm_multiply(void) { return 0; }
long long intlm_read(void) { return 0; }
long long intlm_prepared_size(void) { return 8; }
void intlm_measured(long long* times) {}
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [(NEWER, "API version (0.999)"), ("int x;", "undefined symbol: intlm_isa")],
)
def test_a_library_that_does_not_run(
    code: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a library of a newer jaxlib or of other sources one line says so, and XLA gives the same bits."""
    library = tmp_path / "library.so"
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    (tmp_path / "library.c").write_text(code)
    flags = ["-shared", "-fPIC", "-w", "-I", jax.ffi.include_dir(), str(tmp_path / "library.c"), "-o", str(library)]
    subprocess.run([compiler, *flags], check=True)
    script = (
        "import sys, pathlib; from intlm.population import native; from intlm.cli import main;"
        "native._LIBRARY = pathlib.Path(sys.argv[1]); sys.exit(main(sys.argv[2:]))"
    )
    run = tiny.trained().directory
    done = tiny.intlm(library, "generate", run, "--tokens", 20, python=("-c", script))
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"intlm: engine xla (native: {library} does not run here: ")
    assert reason in done.stderr and "install intlm again beside this jaxlib" in done.stderr
    assert main(["generate", str(run), "--tokens", "20"]) == 0
    assert done.stdout == capsys.readouterr().out
