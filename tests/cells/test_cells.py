"""The cells: a run of the plain one by whole commands, the engines that refuse it, and a cell with a wider state."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from intlm.arithmetic.fixed_point import rounding_shift, saturate8
from intlm.cells import CELLS, Cell
from intlm.cells.rnn import Rnn
from intlm.cli import main
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.errors import RunError
from intlm.export import c
from intlm.language_model import LanguageModel
from intlm.model.forward import PlainWeights, Weights, read_layer
from intlm.model.parameters import Architecture, Kind, Local, local_parameters, specifications, stack_layers
from intlm.population import Population, gpu, make_engine, native
from intlm.run import load
from intlm.simulate.comparison import compare
from intlm.simulate.targets.onnxruntime import OnnxRuntimeMachine

RNN = Architecture(5, 8, 1, 8, "clip", Rnn())


@dataclass(frozen=True)
class Slow(Cell):
    """A state of two halves: the second follows the first slowly, and enters the candidate with it."""

    name = "slow"
    future = ("candidate",)

    def parameters(self, hidden_size: int) -> tuple[Local, ...]:
        return (Local("candidate_state", (hidden_size, 2 * hidden_size), Kind.MATRIX),)

    def state_size(self, hidden_size: int) -> int:
        return 2 * hidden_size

    def step(self, weights: Weights, x: jax.Array, state: jax.Array, architecture: Architecture) -> jax.Array:
        new = saturate8(x + rounding_shift(weights.multiply("candidate_state", state), 8))
        slow = state[..., architecture.hidden_size :]
        halves = rounding_shift(3 * slow.astype(jnp.int32) + new.astype(jnp.int32), 2)
        return jnp.concatenate([new, saturate8(halves)], axis=-1)


SLOW = Architecture(256, 16, 2, 24, "clip", Slow())


@pytest.fixture(scope="module")
def slow() -> LanguageModel:
    rng = np.random.default_rng(3)
    parameters = {s.name: jnp.asarray(rng.integers(-60, 61, s.shape), jnp.int8) for s in specifications(SLOW)}
    return LanguageModel(SLOW, parameters, ByteTokenizer(), make_engine("xla", Population(SLOW)))


def test_a_run_of_the_plain_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is trained, evaluated and exported twice; the exports are read and simulated; the output names the cell."""
    run = tmp_path / "run"
    flags = ["--model.cell", "rnn", "--model.nonlinearity", "table", "--train.updates", "2"]
    assert main(["train", str(tiny.CONFIG), "--run-dir", str(run), *flags]) == 0
    assert "native: it does not serve the cell rnn" in capsys.readouterr().err or not native.available()
    assert 'cell = "rnn"' in (run / "config.toml").read_text()
    assert load(run).architecture.cell == Rnn()
    for form, machine in (("c", "host"), ("onnx", "onnxruntime")):
        out = tmp_path / form
        assert main(["export", str(run), "--to", form, "--out", str(out)]) == 0
        assert json.loads((out / "config.json").read_text())["cell"] == "rnn"
        assert main(["simulate", str(out), "--on", machine, "--tokens", "20"]) == 0
    assert {s.name for s in specifications(load(out).architecture)} == {
        "embedding", "head", *(f"layers.0.{name}" for name in (
            "candidate_input", "candidate_state", "candidate_bias", "up", "down"
        )),
    }  # fmt: skip


def test_a_configuration_without_the_key_is_of_the_gated_cell(tmp_path: Path) -> None:
    """Older runs and exports have such a configuration."""
    run = tiny.copied(tmp_path / "run")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('cell = "mgu"\n', ""))
    assert text.count('cell = "mgu"\n') == 1
    assert load(run).architecture == load(tiny.trained().directory).architecture
    assert load(run).architecture.cell == CELLS["mgu"]()


def test_engines_decline_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTLM_INTERPRET", "1")
    assert gpu.GpuEngine.serves(Population(RNN)) == "it does not serve the cell rnn"
    if native.available():
        assert native.NativeEngine.serves(Population(RNN)) == "it does not serve the cell rnn"
    assert make_engine("auto", Population(RNN)).name == "xla"


def test_an_engine_that_declines_it_is_refused(tmp_path: Path) -> None:
    out = tiny.intlm("train", tiny.CONFIG, "--run-dir", tmp_path / "run", "--model.cell", "rnn", "--engine", "native")
    assert out.returncode == 2 and out.stderr.count("\n") == 1
    assert 'engine = "native": it does not serve the cell rnn' in out.stderr or not native.available()


@pytest.mark.parametrize("name", CELLS.parts())
def test_what_a_cell_says_of_itself(name: str) -> None:
    """Every parameter belongs to a unit, every unit reads the state, and `reads` names matrices of the cell."""
    cell = CELLS[name]()
    parameters = cell.parameters(16)
    assert len({p.name for p in parameters} | {"up", "down"}) == len(parameters) + 2
    assert set(cell.reads) <= {p.name for p in parameters if p.kind is Kind.MATRIX}
    assert {f"{unit}_state" for unit in cell.future} <= {p.name for p in parameters}
    assert {p.name.rpartition("_")[0] for p in parameters} >= set(cell.future)
    assert cell.state_size(16) >= 16


@pytest.mark.parametrize("name", CELLS.parts())
@pytest.mark.parametrize("nonlinearity", ["clip", "table"])
def test_the_future_is_what_it_says(name: str, nonlinearity: str) -> None:
    """Noise on the pre-activation of each unit in `future`, by its bias, changes the state; the list is complete."""
    cell, rng = CELLS[name](), np.random.default_rng(1)
    architecture = Architecture(2, 16, 1, 16, nonlinearity, cell)
    entry = {p.name: jnp.asarray(rng.integers(-20, 21, p.shape), jnp.int8) for p in local_parameters(architecture)}
    x, state = (jnp.asarray(rng.integers(-60, 61, 16), jnp.int8) for _ in range(2))

    def after(entry: dict[str, jax.Array]) -> jax.Array:
        weights = PlainWeights(stack_layers({f"layers.0.{name}": value for name, value in entry.items()}))
        own = weights.layer({name: value[0] for name, value in weights.layers.items()})
        return read_layer(own, x, state, architecture)[1]

    before = after(entry)
    for name, value in entry.items():
        changed = bool((after({**entry, name: value + 20}) != before).any())
        assert changed == (name.rpartition("_")[0] in cell.future), name


def test_a_wider_state(slow: LanguageModel, tmp_path: Path) -> None:
    """Inference, the ONNX graph and the members of `member` work with a state wider than the cell's output."""
    tokens = np.random.default_rng(1).integers(0, 256, 20).astype(np.int32)
    assert slow.start(3).shape == (3, 2, 32)
    assert compare(slow, OnnxRuntimeMachine(slow, tmp_path), tokens).difference is None
    population = Population(SLOW, members=4)
    states = jnp.zeros((2, 2, 2, 32), jnp.int8)
    text = jnp.asarray(tokens[None], jnp.uint16)
    texts = jnp.repeat(text, population.texts, axis=0)
    losses, after = jax.jit(make_engine("xla", population).evaluate)(
        slow.parameters, texts, texts[..., None], states, jnp.uint32(0)
    )
    assert losses.shape == (2, 2) and after.shape == states.shape
    assert (np.asarray(after)[..., 16:] != np.asarray(after)[..., :16]).any()


def test_a_cell_without_a_step_in_c(slow: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cell 'slow'.*expected kernels/portable/cells/slow.h"):
        c.write_library(slow, tmp_path)
