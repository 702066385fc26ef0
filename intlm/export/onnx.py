"""A model as an ONNX graph of one step: token, states in, logits, log-sum-exp2, states out; no float tensor in it.

Matrix products are MatMulInteger of int8 by int8: ONNX Runtime's kernel for uint8 by int8 saturates pairs of products
in int16 on processors that have AVX2 and not VNNI. BitShift is for unsigned values, so what may be negative is raised
by 2^30 before a shift and lowered after it. Everything else is int32, but for the sum of exponentials, which is int64.
"""

from __future__ import annotations  # NumPy is imported when it is used

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intlm.arithmetic.fixed_point import (
    GATE_MULTIPLIER,
    GATE_ONE,
    MAX8,
    MAX16,
    ONE,
    STATE_SHIFT,
    Rescale,
    activation_rescale,
    logit_rescale,
    mean_scale,
)
from intlm.arithmetic.tables import EXP2_ONE, LOG2_INDEX_BITS, LOGIT_FRACTION_BITS, tables
from intlm.errors import MissingPackage
from intlm.export import FORMATS, Format
from intlm.lazy import np
from intlm.model import SEPARATOR
from intlm.version import INFERENCE_VERSION

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel

OPSET = 21
_RAISED = 30


def write(model: LanguageModel, out: Path) -> None:
    """Write model.onnx to a directory, checked by onnx.checker."""
    try:
        import onnx
    except ImportError:
        raise MissingPackage("onnx", "an ONNX export") from None
    graph = _Graph()
    a, weights = model.architecture, {name: np.asarray(value) for name, value in model.parameters.items()}
    table = a.nonlinearity == "table"
    hidden, wide = activation_rescale(a.hidden_size), activation_rescale(a.feed_forward_size)
    from_state = activation_rescale(a.hidden_size, STATE_SHIFT if table else 0)

    def drive(layer: int, kind: str, x: str, state: str, lookup: np.ndarray) -> str:
        total = graph.add(
            graph.product(x, weights[f"layers.{layer}.{kind}_input"], hidden),
            graph.product(state, weights[f"layers.{layer}.{kind}_state"], from_state),
        )
        found = graph.clamp(graph.add(total, weights[f"layers.{layer}.{kind}_bias"].astype(np.int32)), MAX8)
        return graph("Gather", lookup.astype(np.int32), graph.add(found, 128)) if table else found

    x = graph.wide(graph("Gather", weights["embedding"], "token"))  # [1, hidden]
    kept = graph.wide(graph("Not", graph("Equal", "token", np.array([SEPARATOR], np.int32))))
    states = []
    for layer in range(a.num_layers):
        at = graph("Gather", "state", np.array([layer], np.int64))  # [1, hidden]
        old = graph.multiply(graph.wide(at), kept)
        normed = graph.norm(x, a.hidden_size)
        gate = graph.add(drive(layer, "gate", normed, graph.narrow(old), tables().sigmoid), GATE_ONE)
        reset = graph.narrow(graph.q15(graph.multiply(gate, old), GATE_MULTIPLIER))
        candidate = drive(layer, "candidate", normed, reset, tables().tanh)
        closed = graph("Sub", np.array(2 * GATE_ONE, np.int32), gate)
        mixed = graph.add(graph.multiply(closed, old), graph.multiply(gate, candidate))
        state = graph.q15(mixed, GATE_MULTIPLIER)
        states.append(graph.narrow(state))
        output = graph.rounding_shift(state, STATE_SHIFT) if table else state
        x = graph.clamp(graph.add(x, output), MAX8)
        up = graph("Abs", graph.product(graph.norm(x, a.hidden_size), weights[f"layers.{layer}.up"], hidden))
        down = graph.product(graph.narrow(graph.clamp(up, MAX8)), weights[f"layers.{layer}.down"], wide)
        x = graph.clamp(graph.add(x, down), MAX8)
    logits = graph.product(graph.norm(x, a.hidden_size), weights["head"], logit_rescale(a.hidden_size))
    graph.give("logits", "Cast", logits, to=onnx.TensorProto.INT16)
    graph.log_sum_exp2(logits)
    graph.give("next_state", "Concat", *states, axis=0)

    def tensor(name: str, kind: int, *shape: int) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, shape)

    proto = onnx.TensorProto
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "intlm",
            [tensor("token", proto.INT32, 1), tensor("state", proto.INT8, a.num_layers, a.hidden_size)],
            [
                tensor("logits", proto.INT16, 1, a.vocab_size),
                tensor("log_sum_exp2", proto.INT32, 1),
                tensor("next_state", proto.INT8, a.num_layers, a.hidden_size),
            ],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="intlm",
        ir_version=10,
    )
    onnx.helper.set_model_props(made, {"inference_version": str(INFERENCE_VERSION)})
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, out / "model.onnx")


class _Graph:
    """Nodes in order, each named by what it computes; a constant may stand wherever a name may."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        return self.give(f"{operator}_{len(self.nodes)}", operator, *inputs, **attributes)

    def give(self, name: str, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        import onnx

        names = [i if isinstance(i, str) else self._constant(i) for i in inputs]
        self.nodes.append(onnx.helper.make_node(operator, names, [name], name=name, **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        import onnx

        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def cast(self, x: str, dtype: str) -> str:
        import onnx

        return self("Cast", x, to=getattr(onnx.TensorProto, dtype))

    def wide(self, x: str) -> str:
        return self.cast(x, "INT32")

    def narrow(self, x: str) -> str:
        return self.cast(x, "INT8")

    def add(self, x: str, y: str | int | np.ndarray) -> str:
        return self("Add", x, np.array(y, np.int32) if isinstance(y, int) else y)

    def multiply(self, x: str, y: str | int) -> str:
        return self("Mul", x, np.array(y, np.int32) if isinstance(y, int) else y)

    def clamp(self, x: str, limit: int) -> str:
        return self("Max", self("Min", x, np.array(limit, np.int32)), np.array(-limit, np.int32))

    def unsigned_shift(self, x: str, by: str | int, direction: str = "RIGHT") -> str:
        """Of int32 values >= 0."""
        amount = np.array(by, np.uint32) if isinstance(by, int) else self.cast(by, "UINT32")
        return self.wide(self("BitShift", self.cast(x, "UINT32"), amount, direction=direction))

    def rounding_shift(self, x: str, shift: int) -> str:
        """x: below 2^30 in size, the rounding included."""
        if not shift:
            return x
        raised = self.add(x, (1 << _RAISED) + (1 << (shift - 1)))
        return self.add(self.unsigned_shift(raised, shift), -(1 << (_RAISED - shift)))

    def q15(self, x: str, multiplier: int | str) -> str:
        return self.rounding_shift(self.multiply(x, multiplier), 15)

    def product(self, x: str, matrix: np.ndarray, rescale: Rescale) -> str:
        """x: int8 [1, fan-in]; matrix: int8 [fan-out, fan-in]. Returns int32 [1, fan-out]."""
        total = self("MatMulInteger", x, matrix.T)
        return self.q15(self.clamp(self.rounding_shift(total, rescale.shift), MAX16), rescale.multiplier)

    def norm(self, x: str, count: int) -> str:
        """x: int32 [1, hidden]. Returns int8."""
        total = self("ReduceSum", self("Abs", x), np.array([1], np.int64))
        index = self.unsigned_shift(self.add(self.multiply(total, mean_scale(count).multiplier), 1 << 19), 20)
        gain = self("Gather", tables().reciprocal.astype(np.int32), index)
        return self.narrow(self.clamp(self.q15(self.multiply(x, ONE), gain), MAX8))

    def log_sum_exp2(self, logits: str) -> None:
        """logits: int32 [1, vocabulary]. Gives log_sum_exp2, int32 [1]."""
        axis = np.array([1], np.int64)
        top = self("ReduceMax", logits, axis)
        below = self("Sub", top, logits)
        whole = self("Min", self.unsigned_shift(below, LOGIT_FRACTION_BITS), np.array(26, np.int32))
        part = self("BitwiseAnd", below, np.array(2**LOGIT_FRACTION_BITS - 1, np.int32))
        mantissa = self("Gather", tables().exp2, part)
        ones = self.unsigned_shift(self.add(self.multiply(whole, 0), 1), whole, "LEFT")
        terms = self.unsigned_shift(self("Add", mantissa, self.unsigned_shift(ones, 1)), whole)
        total = self("ReduceSum", self.cast(terms, "INT64"), axis)  # [1, 1], 2^24 to 2^40
        powers = 2 ** np.arange(EXP2_ONE + 1, EXP2_ONE + 17, dtype=np.int64)
        reached = self.wide(self("GreaterOrEqual", total, powers[None]))
        above = self("ReduceSum", reached, axis)  # the leading bit's place, less 24
        shift = self.cast(self.add(above, EXP2_ONE - LOG2_INDEX_BITS), "UINT64")
        index = self.cast(self("BitShift", self.cast(total, "UINT64"), shift, direction="RIGHT"), "INT64")
        index = self("BitwiseAnd", index, np.array(2**LOG2_INDEX_BITS - 1, np.int64))
        fraction = self("Gather", tables().log2.astype(np.int32), index)
        whole_bits = self.multiply(above, 2**LOGIT_FRACTION_BITS)
        found = self.add(self.add(top, whole_bits), fraction)
        self.give("log_sum_exp2", "Reshape", found, np.array([1], np.int64))


@FORMATS.register("onnx")
@dataclass(frozen=True, kw_only=True)
class Onnx(Format):
    """An ONNX graph of one step, in integers."""

    def write(self, model: LanguageModel, out: Path) -> None:
        """See `Format.write`."""
        write(model, out)
