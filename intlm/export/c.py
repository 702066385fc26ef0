"""A model as self-contained C99: `kernels/portable`, the kernels' own fixed-point header, and the weights as arrays."""

from __future__ import annotations  # NumPy is imported when it is used

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from intlm.arithmetic.fixed_point import STATE_SHIFT, Rescale, activation_rescale, logit_rescale, mean_scale
from intlm.arithmetic.tables import tables
from intlm.cells.nonlinearity import from_state
from intlm.data.tokenizers import Tokenizer
from intlm.data.tokenizers.coded import CodedTokenizer
from intlm.errors import RunError
from intlm.export import FORMATS, Format
from intlm.lazy import np
from intlm.model.parameters import Architecture, local_parameters, specifications

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel

SOURCES = ("intlm.h", "intlm.c", "main.c", "fixed_point.h", "Makefile", "README.md")
ROWS = 8  # that intlm.c computes at a time: the head is padded to a multiple of it


def write(model: LanguageModel, out: Path) -> None:
    """Write the sources to a directory. Raises RunError where the program has no encoder for the model's text."""
    write_library(model, out)
    (out / "tokenizer.h").write_text(_tokenizer(model.tokenizer), "utf-8")


def write_library(model: LanguageModel, out: Path) -> None:
    """Write the model itself, which works on token ids: all files but those of the tokenizer."""
    cell, source = model.architecture.cell.name, files("intlm.export") / "c"
    if not (step := source / "cells" / f"{cell}.h").is_file():
        raise RunError(
            f"cell {cell!r}: it has no step in C: expected kernels/portable/cells/{cell}.h; --to onnx supports it"
        )
    for name, part in (*((name, source / name) for name in SOURCES), ("cell.h", step)):
        with as_file(part) as path:
            shutil.copyfile(path, out / name)
    (out / "weights.h").write_text(_header(model.architecture), "utf-8")
    (out / "weights.c").write_text(_weights(model), "utf-8")


def _table_names(architecture: Architecture) -> list[str]:
    return ["reciprocal", "exp2", "log2"] + (["sigmoid", "tanh"] if architecture.nonlinearity == "table" else [])


def _header(a: Architecture) -> str:
    table = a.nonlinearity == "table"

    def scale(rescale: Rescale) -> str:
        return f"{{{rescale.shift}, {rescale.multiplier}}}"

    defined = {
        "ROWS": ROWS,
        "VOCAB": a.vocab_size,
        "HIDDEN": a.hidden_size,
        "LAYERS": a.num_layers,
        "FEED_FORWARD": a.feed_forward_size,
        "STATE": a.state_size,
        "SCRATCH": a.cell.scratch_size(a.hidden_size),
        "INPUT_RESCALE": scale(activation_rescale(a.hidden_size)),
        "STATE_RESCALE": scale(from_state(a)),
        "WIDE_RESCALE": scale(activation_rescale(a.feed_forward_size)),
        "LOGIT_RESCALE": scale(logit_rescale(a.hidden_size)),
        "MEAN_MULTIPLIER": mean_scale(a.hidden_size).multiplier,
        "OUTPUT_SHIFT": STATE_SHIFT if table else 0,
        "GATE_TABLE": "intlm_sigmoid" if table else "NULL",
        "CANDIDATE_TABLE": "intlm_tanh" if table else "NULL",
    }
    lines = ["/* Made by `intlm export`: the model's sizes and scales, and where its weights are. */"]
    lines += ["#ifndef INTLM_WEIGHTS_H", "#define INTLM_WEIGHTS_H", "", "#include <stdint.h>", ""]
    lines += [f"#define INTLM_{name} {value}" for name, value in defined.items()]
    pointers = ", ".join("*" + local.name for local in local_parameters(a))
    lines += ["", "typedef struct {", f"  const int8_t {pointers};", "} intlm_layer_t;"]
    lines += [
        "",
        "/* Matrices: [outputs][inputs]; the embedding and the head: [vocabulary][hidden],",
        " * the head with rows of zeros up to a multiple of INTLM_ROWS. */",
    ]
    lines += [
        "extern const intlm_layer_t intlm_layers[INTLM_LAYERS];",
        "extern const int8_t intlm_embedding[], intlm_head[];",
    ]
    for name in _table_names(a):
        lines.append(f"extern const {_ctype(getattr(tables(), name))} intlm_{name}[];")
    return "\n".join([*lines, "", "#endif", ""])


def _weights(model: LanguageModel) -> str:
    a = model.architecture
    lines = ["/* Made by `intlm export`. */", '#include "weights.h"', ""]
    for name in _table_names(a):
        lines.append(_array(f"intlm_{name}", getattr(tables(), name)))
    lines.append(f"const int8_t {_c_name('embedding')}[] = {{{_values(model.parameters['embedding'])}}};")
    head = np.asarray(model.parameters["head"])
    padded = np.concatenate([head, np.zeros((-len(head) % ROWS, a.hidden_size), np.int8)])
    lines.append(f"const int8_t {_c_name('head')}[] = {{{_values(padded)}}};")
    for name, _, _ in specifications(a):
        if name.startswith("layers."):
            lines.append(f"static const int8_t {_c_name(name)}[] = {{{_values(model.parameters[name])}}};")
    rows = [
        ", ".join(_c_name(f"layers.{layer}.{local.name}") for local in local_parameters(a))
        for layer in range(a.num_layers)
    ]
    lines.append("const intlm_layer_t intlm_layers[INTLM_LAYERS] = {")
    lines += [f"  {{{row}}}," for row in rows]
    return "\n".join([*lines, "};", ""])


def _tokenizer(tokenizer: Tokenizer) -> str:
    if not isinstance(tokenizer, CodedTokenizer):
        raise RunError(
            f"tokenizer {tokenizer.name!r}: the C program encodes text by a table of each byte's tokens, which this "
            "tokenizer does not have: expected a model with another, or another --to"
        )
    longest = max(map(len, tokenizer.codes))
    rows = [", ".join(map(str, (*code, 0)[:longest])) for code in tokenizer.codes]
    return "\n".join(
        [
            "/* Made by `intlm export`: the tokens of each byte, a shorter code ended by 0. */",
            f"#define INTLM_ESCAPE {tokenizer.escape}",
            f"#define INTLM_CODE {longest}",
            "static const uint16_t intlm_codes[256][INTLM_CODE] = {",
            *(f"  {{{row}}}," for row in rows),
            "};",
            "",
        ]
    )


def _c_name(name: str) -> str:
    return "intlm_" + name.replace(".", "_")


def _ctype(array: np.ndarray) -> str:
    return f"{array.dtype.name}_t"


def _array(name: str, values: np.ndarray) -> str:
    return f"const {_ctype(values)} {name}[] = {{{_values(values)}}};"


def _values(array: object) -> str:
    flat = np.asarray(array).reshape(-1).tolist()
    return "".join("\n  " + ", ".join(map(str, flat[i : i + 24])) + "," for i in range(0, len(flat), 24)) + "\n"


@FORMATS.register("c")
@dataclass(frozen=True, kw_only=True)
class C(Format):
    """Self-contained C99 in integers, with a program that writes and scores text."""

    built: ClassVar[tuple[str, ...]] = ("model",)  # by the Makefile

    def write(self, model: LanguageModel, out: Path) -> None:
        """See `Format.write`."""
        write(model, out)
