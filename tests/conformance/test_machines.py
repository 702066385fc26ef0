"""Exported models on every machine of `intlm simulate`: the logits, losses and states of the JAX reference."""

import functools
from itertools import product
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intlm.cells import CELLS
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.language_model import LanguageModel
from intlm.model.parameters import Architecture, specifications
from intlm.population import Population, make_engine
from intlm.simulate.comparison import compare
from intlm.simulate.machine import Machine
from intlm.simulate.targets import TARGETS, MachineTarget

CASES = {
    "clip": Architecture(256, 16, 2, 24, "clip"),
    "table": Architecture(256, 16, 2, 24, "table"),
    "smallest": Architecture(2, 8, 1, 8, "clip"),
    "large vocabulary": Architecture(3000, 24, 1, 8, "table"),
    "shifted sums": Architecture(40, 264, 1, 272, "table"),
}
OF_CELLS = {  # the other cells, in C99 and as an ONNX graph
    f"{cell} {kind}": Architecture(256, 16, 2, 24, kind, CELLS[cell]())
    for cell in CELLS.parts()
    if cell != "mgu"
    for kind in ("clip", "table")
}
TOKENS = 24


MACHINES = {name: part for name, part in TARGETS.parts().items() if issubclass(part, MachineTarget)}


def model_of(architecture: Architecture, widest: int, seed: int = 0) -> LanguageModel:
    """A model. widest: 0 for weights as at the start of training, else all weights are `widest` or -`widest`."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        normal = np.clip(rng.normal(0, 16, shape).round(), -127, 127)
        return rng.choice([-widest, widest], shape) if widest else normal

    parameters = {s.name: jnp.asarray(draw(s.shape), jnp.int8) for s in specifications(architecture)}
    engine = make_engine("xla", Population(architecture))
    return LanguageModel(architecture, parameters, ByteTokenizer(), engine)


@functools.cache
def shared(case: str, widest: int) -> LanguageModel:
    return model_of({**CASES, **OF_CELLS}[case], widest)


def tokens_of(model: LanguageModel, seed: int) -> np.ndarray:
    """Any tokens, separators among them."""
    tokens = np.random.default_rng(seed).integers(0, model.architecture.vocab_size, TOKENS).astype(np.int32)
    tokens[0] = tokens[TOKENS // 2] = 0
    return tokens


@pytest.mark.parametrize("widest", [0, 127])
@pytest.mark.parametrize(("case", "target"), [*product(CASES, MACHINES), *product(OF_CELLS, ("host", "onnxruntime"))])
def test_same_bits(case: str, widest: int, target: str, tmp_path: Path) -> None:
    model = shared(case, widest)
    machine: Machine = MACHINES[target].machine(model, tmp_path)
    for seed in range(2):
        difference = compare(model, machine, tokens_of(model, seed)).difference
        assert difference is None, str(difference)


@pytest.mark.parametrize("target", MACHINES)
def test_same_bits_for_any_weights(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Logits, losses and states are the reference's, for weights, sizes and texts drawn at random."""

    @settings(max_examples=4, deadline=None)
    @given(
        st.builds(
            Architecture,
            st.integers(2, 300),
            st.sampled_from([8, 16, 40]),
            st.just(1),
            st.sampled_from([8, 48]),
            st.sampled_from(["clip", "table"]),
        ),
        st.sampled_from([0, 1, 60, 127]),
        st.integers(0, 2**32),
    )
    def check(architecture: Architecture, widest: int, seed: int) -> None:
        model = model_of(architecture, widest, seed)
        machine: Machine = MACHINES[target].machine(model, tmp_path_factory.mktemp("built"))
        difference = compare(model, machine, tokens_of(model, seed)).difference
        assert difference is None, str(difference)

    check()


@pytest.mark.parametrize("target", MACHINES)
def test_one_wrong_weight_is_found(target: str, tmp_path: Path) -> None:
    """A machine with another weight differs where that weight is first used: the comparison can fail."""
    model = shared("clip", 0)
    name = "layers.1.candidate_input"
    other = model.parameters[name].at[5, 3].add(64)
    wrong = model_of(CASES["clip"], 0)
    wrong.parameters = {**model.parameters, name: other}
    machine: Machine = MACHINES[target].machine(wrong, tmp_path)
    difference = compare(model, machine, tokens_of(model, 0)).difference
    assert difference is not None
    assert (difference.what, difference.layer, difference.index) == ("state", 1, 5)
