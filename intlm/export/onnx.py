"""A model as an ONNX graph of one step: token, states in, logits, log-sum-exp2, states out; no float tensor in it.

The graph is the forward pass of `intlm.model`, recorded (`intlm.export.recorded`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intlm.arithmetic.fixed_point import MAX8
from intlm.errors import MissingPackage
from intlm.export import FORMATS, Format
from intlm.export.recorded import Input, record
from intlm.lazy import Array
from intlm.model.forward import PlainWeights, step
from intlm.model.loss import log_sum_exp2
from intlm.model.parameters import stack_layers
from intlm.version import INFERENCE_VERSION

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel

OPSET = 21


def write(model: LanguageModel, out: Path) -> None:
    """Write model.onnx to a directory, checked by onnx.checker."""
    try:
        import onnx
    except ImportError:
        raise MissingPackage("onnx", "an ONNX export") from None
    a, weights = model.architecture, PlainWeights(stack_layers(model.parameters))

    def read(token: Array, states: Array) -> tuple[Array, Array, Array]:
        logits, states = step(weights, token, states, a)
        return logits, log_sum_exp2(logits), states

    states = (a.num_layers, a.state_size)
    graph = record(
        read,
        {
            "token": Input("int32", (1,), (), 0, a.vocab_size - 1),
            "state": Input("int8", states, states, -MAX8, MAX8),
        },
        {"logits": ("int16", (1, a.vocab_size)), "log_sum_exp2": ("int32", (1,)), "next_state": ("int8", states)},
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="intlm", ir_version=10
    )
    onnx.helper.set_model_props(made, {"inference_version": str(INFERENCE_VERSION)})
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, out / "model.onnx")


@FORMATS.register("onnx")
@dataclass(frozen=True, kw_only=True)
class Onnx(Format):
    """An ONNX graph of one step, in integers."""

    def write(self, model: LanguageModel, out: Path) -> None:
        """See `Format.write`."""
        write(model, out)
