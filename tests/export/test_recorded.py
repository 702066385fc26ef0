"""Functions of JAX as ONNX graphs: the same integers at every level of optimisation, or an error that says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny

from intlm.export import onnx as exported
from intlm.export.recorded import Input, NotRecorded, record

MATRIX = np.random.default_rng(0).integers(-127, 128, (3, 4)).astype(np.int8)
TABLE = np.arange(-50, 50, dtype=np.int8)


def graph_of(function: Callable[..., Any], inputs: dict[str, Input]) -> onnx.ModelProto:
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs.values()]
    out = jax.eval_shape(function, *like)
    graph = record(lambda *x: (function(*x),), inputs, {"out": ("int32", out.shape)})
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def ran(made: onnx.ModelProto, level: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


LEVELS = [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "shifts of either sign": lambda x, y: (x >> 3) - ((x + 5) >> 1) + (y << 2),
    "shifts by what is read": lambda x, y: (jnp.abs(x) >> (y & 7)) + (1 << (y & 15)),
    "limits that bind and that do not": lambda x, y: jnp.clip(x, -9, 300) + jnp.maximum(y, -5000) + jnp.minimum(x, y),
    "an array that JAX broadcasts from the left": lambda x, y: x * jnp.sum(y, axis=1)[:, None] - jnp.max(x),
    "sums of every axis": lambda x, y: jnp.sum(x, axis=0)[None] + jnp.max(y, axis=1)[:, None] + jnp.sum(y) - jnp.max(x),
    "a column": lambda x, y: jnp.broadcast_to(x[:, :1], (3, 4)) + y[1],
    "a conversion that wraps": lambda x, y: (x * 3).astype(jnp.int8).astype(jnp.int32) + y.astype(jnp.int16),
    "a choice": lambda x, y: jnp.where(x < y, x, jnp.where(y == 3, 7, -y)),
    "a choice that the bounds decide": lambda x, y: jnp.where(x > 1000, x, y) + jnp.where(y >= -100, x, 0),
    "a table": lambda x, y: jnp.asarray(TABLE)[(x & 63) + 1] + y,
    "products": lambda x, y: jax.lax.dot_general(
        x.astype(jnp.int8), jnp.asarray(MATRIX), (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    ),
    "a loop": lambda x, y: jax.lax.scan(lambda c, e: (c + e[0] - e[1], c * 2), x[0], (x, y))[1],
    "leading bits": lambda x, y: jax.lax.clz(jnp.max(jnp.abs(x))) + jax.lax.clz(jnp.max(jnp.abs(y)) + 9) + x,
    "parts put together": lambda x, y: jnp.concatenate([x[1:], y[:, ::1][:2]], axis=0).reshape(4, 4)[:, 1:3],
    "constants added one by one": lambda x, y: x + 1 - 8 + MATRIX.astype(np.int32) + 3 - (4 - y),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_integers(name: str) -> None:
    function, shape = FUNCTIONS[name], (3, 4)
    inputs = {"x": Input("int32", shape, shape, -127, 127), "y": Input("int32", shape, shape, -99, 99)}
    made = graph_of(function, inputs)
    rng = np.random.default_rng(2)
    draws = [(rng.integers(-127, 128, shape), rng.integers(-99, 100, shape)) for _ in range(3)]
    draws += [(np.full(shape, 127), np.full(shape, -99)), (np.zeros(shape), np.zeros(shape))]
    for x, y in draws:
        given = {"x": x.astype(np.int32), "y": y.astype(np.int32)}
        expected = np.asarray(function(*map(jnp.asarray, given.values())))
        for level in LEVELS:
            np.testing.assert_array_equal(ran(made, level, given)[0], expected)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x), "the primitive sort of JAX has no operator here"),
        (lambda x: x.astype(jnp.float32).astype(jnp.int32), "a conversion to float32: expected int8, int16 or int32"),
        (lambda x: x * 2**25, "Mul_0: may be -4261412864 to 4261412864, beyond int32"),
        (lambda x: (x * 2**24) >> 3, "a shift of -2130706432 to 2130706432 by 3 to 3: expected less than 2^30 in size"),
        (lambda x: jnp.asarray(TABLE)[x + 60], "rows -67 to 287: expected those of a constant of (100,)"),
        (lambda x: jnp.cumsum(x), "the primitive cumsum of JAX"),
    ],
)
def test_what_cannot_be_recorded(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(NotRecorded) as caught:
        graph_of(function, {"x": Input("int32", (4,), (4,), -127, 127)})
    assert message in str(caught.value)


def test_a_model_at_every_level_of_optimisation(tmp_path: Path) -> None:
    model = tiny.make_model()
    exported.write(model, tmp_path)
    made = onnx.load(tmp_path / "model.onnx")
    rng = np.random.default_rng(5)
    for token in (0, 1, 255):
        state = rng.integers(-127, 128, (2, 16)).astype(np.int8)
        logits, after = model.read(np.array([[token]]), jnp.asarray(state)[None])
        for name in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
            level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{name}")
            outputs = ran(made, level, {"token": np.array([token], np.int32), "state": state})
            np.testing.assert_array_equal(outputs[0], logits[0])
            np.testing.assert_array_equal(outputs[2], np.asarray(after)[0])


def test_nothing_is_made_twice_or_for_nothing(tmp_path: Path) -> None:
    exported.write(tiny.make_model(), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    used = {name for node in graph.node for name in node.input} | {x.name for x in graph.output}
    assert {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer} <= used
    tensors = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializer]
    assert len(set(tensors)) == len(tensors)
    assert len(graph.node) <= 336, "the graph that was written by hand had as many"
