"""intlm.simulate.accumulator: sequential sums in Python's integers, and the model itself where nothing overflows."""

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from intlm.evaluation import evaluate
from intlm.language_model import LanguageModel
from intlm.model.parameters import stack_layers
from intlm.simulate.accumulator import OVERFLOWS, measure, proved_bits, read, saturating_product, wrap

SHAPES = {kind: oracle.Shape(11, 16, 24, 2, kind) for kind in ("clip", "table")}
TOKENS = np.array([0, 3, 7, 7, 1, 10, 2, 0, 5, 4, 9, 9], np.int32)
WIDTHS = [8, 11, 13, 14, 15, 16, 17, 20]


def accumulate(terms: list[int], bits: int, overflow: str) -> int:
    """The sum of the terms, added one after another in an accumulator of `bits` bits."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    total = 0
    for term in terms:
        total += term
        total = min(max(total, low), high) if overflow == "saturate" else (total - low) % 2**bits + low
    return total


class Narrow(oracle.Plain):
    """The oracle's model with sums in narrow accumulators."""

    def __init__(self, parameters: oracle.Parameters, bits: int, overflow: str) -> None:
        super().__init__(parameters)
        self.bits, self.overflow = bits, overflow

    def product(self, n: int, x: oracle.Array) -> oracle.Array:
        rows = self.parameters[n].tolist()
        terms = ([w * v for w, v in zip(row, x.tolist(), strict=True)] for row in rows)
        return np.array([accumulate(term, self.bits, self.overflow) for term in terms])


@settings(max_examples=60)
@given(
    st.integers(2, 31),
    st.lists(st.tuples(st.integers(-127, 127), st.integers(-127, 127)), min_size=1, max_size=40),
    st.integers(1, 128),
)
def test_sums_one_after_another(bits: int, pairs: list[tuple[int, int]], scale: int) -> None:
    """Narrow sums of any products. `scale` copies the pairs, so that wide accumulators overflow too; zeros change
    nothing."""
    x, w = np.zeros((2, 1024), np.int8)
    x[: 8 * scale], w[: 8 * scale] = (np.resize(np.array(side), 8 * scale) for side in zip(*pairs, strict=True))
    terms = [int(a) * int(b) for a, b in zip(x, w, strict=True)]
    result = jax.jit(saturating_product)(x[None], np.array([w, -w]), np.array([[bits]], np.int32))
    negative = [-term for term in terms]
    assert result.dtype == jnp.int32
    assert result.tolist() == [[accumulate(terms, bits, "saturate"), accumulate(negative, bits, "saturate")]]
    assert int(wrap(jnp.int32(sum(terms)), jnp.int32(bits))) == accumulate(terms, bits, "wrap")


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("kind", SHAPES)
def test_the_model_with_such_sums(bridge: Any, kind: str, overflow: str) -> None:
    """The model with narrow sums: logits and states after every token, for several widths at once; some lose bits and
    some none."""
    shape = SHAPES[kind]
    values = bridge.random_parameters(shape, np.random.default_rng(1))
    states = jnp.zeros((shape.layers, len(WIDTHS), 1, shape.hidden), jnp.int8)
    logits, after = read(
        stack_layers(bridge.parameters(shape, values)), jnp.array(WIDTHS), TOKENS[None], states, overflow,
        bridge.architecture(shape),
    )  # fmt: skip
    exact = run_oracle(shape, oracle.Plain(values))
    changed = []
    for i, bits in enumerate(WIDTHS):
        expected, state = run_oracle(shape, Narrow(values, bits, overflow))
        np.testing.assert_array_equal(logits[i, 0], expected)
        np.testing.assert_array_equal(after[:, i, 0], state)
        changed.append(not np.array_equal(expected, exact[0]))
    assert changed[0] and not changed[-1]


def run_oracle(shape: oracle.Shape, weights: oracle.Plain) -> tuple[np.ndarray, np.ndarray]:
    """The logits of TOKENS, and the states after them."""
    state, rows = oracle.no_state(shape), []
    for token in TOKENS.tolist():
        logits, state = oracle.step(weights, shape, state, token)
        rows.append(logits)
    return np.array(rows), state


def test_what_is_proved_is_reached() -> None:
    """The proved width is the narrowest: an input brings the worst row to the bound, and one bit fewer overflows."""
    model = tiny.make_model()
    matrices = {n: np.asarray(v, np.int64) for n, v in model.parameters.items() if v.ndim == 2 and n != "embedding"}
    bits = proved_bits(model.parameters, model.architecture)
    worst = max((row for m in matrices.values() for row in m), key=lambda row: np.abs(row).sum())
    x = jnp.asarray(127 * np.sign(worst), jnp.int8)
    exact = 127 * int(np.abs(worst).sum())
    assert 2 ** (bits - 2) - 1 < exact <= 2 ** (bits - 1) - 1
    for width, same in ((bits, True), (bits - 1, False)):
        product = saturating_product(x[None], jnp.asarray(worst[None], jnp.int8), jnp.array([[width]]))
        assert (product.item() == exact) is same
        assert (int(wrap(jnp.int32(exact), jnp.int32(width))) == exact) is same


@cache
def measured() -> tuple[LanguageModel, list[np.ndarray], float, Any]:
    """A model and texts, one longer than a segment, with the measurement of every width."""
    model = tiny.make_model()
    rng = np.random.default_rng(3)
    texts = [rng.integers(1, 256, size) for size in (1, 70, 1100)]
    return model, texts, *measure(model, texts, proved_bits(model.parameters, model.architecture))


def test_a_wide_accumulator_is_the_model() -> None:
    model, texts, exact, curves = measured()
    proved = proved_bits(model.parameters, model.architecture)
    assert exact == evaluate(model, texts).summary()["bits_per_byte"]
    for curve in curves.values():
        assert list(curve.bits_per_byte) == list(range(8, proved + 1))
        assert curve.bits_per_byte[proved] == exact
        assert curve.bits_per_byte[8] != exact
        assert 8 < curve.narrowest <= proved


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_each_width_as_if_it_were_the_model(overflow: str) -> None:
    """Each width's bits per byte are those of `evaluate` on a model of that width. The narrowest width reported
    changes no logit; one bit fewer changes some."""
    model, texts, _, curves = measured()
    curve, a = curves[overflow], model.architecture

    class OneWidth(LanguageModel):
        def __init__(self, bits: int) -> None:
            self.architecture, self.tokenizer, self._losses = a, model.tokenizer, model._losses
            self.weights, self.bits = stack_layers(model.parameters), jnp.array([bits])

        def read(self, tokens: np.ndarray, states: jax.Array) -> tuple[np.ndarray, jax.Array]:
            inner = jnp.moveaxis(states, 0, 1)[:, None]
            logits, inner = read(self.weights, self.bits, jnp.asarray(tokens, jnp.int32), inner, overflow, a)
            return np.asarray(logits[0]), jnp.moveaxis(inner[:, 0], 0, 1)

    for bits in (10, curve.narrowest - 1, curve.narrowest):
        result = evaluate(OneWidth(bits), texts, batch=4).summary()["bits_per_byte"]
        assert result == curve.bits_per_byte[bits]
    tokens = np.concatenate([[0], texts[2]])[None]
    exact, _ = model.read(tokens, model.start(1))
    for bits, same in ((curve.narrowest, True), (curve.narrowest - 1, False)):
        logits, _ = OneWidth(bits).read(tokens, model.start(1))
        assert np.array_equal(logits, exact) is same


@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_only_integers_compute_it(overflow: str) -> None:
    model = tiny.make_model()
    a = model.architecture
    states = jnp.zeros((a.num_layers, 2, 1, a.hidden_size), jnp.int8)
    program = jax.make_jaxpr(read, static_argnums=(4, 5))(
        stack_layers(model.parameters), jnp.array([8, 9]), jnp.zeros((1, 4), jnp.int32), states, overflow, a
    )
    types = set(re.findall(r":(\w+)\[", str(program)))
    assert {"i8", "i16", "i32"} <= types <= {"bool", "i8", "i16", "i32"}
