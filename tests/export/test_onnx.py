"""The ONNX graph: standard operators on integers alone."""

import onnx
import pytest
import tiny

from intlm.cli import main
from intlm.model.parameters import Architecture
from intlm.run import load

_FLOATS = {"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16", "COMPLEX64", "COMPLEX128"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    out = tmp_path_factory.mktemp("onnx") / "model"
    assert main(["export", str(tiny.trained().directory), "--to", "onnx", "--out", str(out)]) == 0
    return onnx.load(out / "model.onnx")


def test_no_tensor_is_of_floating_point(graph: onnx.ModelProto) -> None:
    onnx.checker.check_model(graph, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    kinds = {v.name: onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in values}
    kinds |= {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in inferred.initializer}
    assert kinds.keys() >= {name for node in inferred.node for name in node.output}  # nothing was left out
    assert not set(kinds.values()) & _FLOATS
    assert not any(node.domain for node in inferred.node)
    assert {entry.domain for entry in graph.opset_import} == {""}


def test_what_goes_in_and_comes_out(graph: onnx.ModelProto) -> None:
    a: Architecture = load(tiny.trained().directory).architecture

    def described(values: object) -> dict[str, tuple[str, list[int]]]:
        return {
            v.name: (
                onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type),
                [d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values  # type: ignore[attr-defined]
        }

    assert described(graph.graph.input) == {"token": ("INT32", [1]), "state": ("INT8", [a.num_layers, a.hidden_size])}
    assert described(graph.graph.output) == {
        "logits": ("INT16", [1, a.vocab_size]),
        "log_sum_exp2": ("INT32", [1]),
        "next_state": ("INT8", [a.num_layers, a.hidden_size]),
    }
