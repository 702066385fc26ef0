"""The exported C: no compiler warns about it, it needs no library, and its numbers are the package's."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from intlm.data.tokenizers import Tokenizer
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.export import c
from intlm.generation import generate
from intlm.language_model import LanguageModel
from intlm.model import SEPARATOR
from intlm.simulate.build import WARNINGS

GCC, CLANG = ("gcc",), (sys.executable, "-P", "-m", "ziglang", "cc")
TEXT = b"It is a truth \x00\xff universally\nacknowledged" * 3
MODELS = {
    "bytes": ByteTokenizer(),
    "alphabet": AlphabetTokenizer(bytes(sorted(set(TEXT[:14])))),  # what is not in it is escaped
}


def exported(tokenizer: Tokenizer, out: Path) -> LanguageModel:
    model = tiny.make_model(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    c.write(model, out)
    return model


def build(source: Path, compiler: tuple[str, ...], *flags: str) -> Path:
    made = source / "model"
    files = [str(source / name) for name in ("main.c", "intlm.c", "weights.c")]
    done = subprocess.run([*compiler, *WARNINGS, *flags, *files, "-o", str(made)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return made


def run(program: Path, *arguments: object, text: bytes = b"") -> bytes:
    done = subprocess.run([program, *map(str, arguments)], input=text, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        (GCC, ("-O3", "-march=native")),
        (GCC, ("-O0",)),
        (GCC, ("-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")),
        (CLANG, ("-O2",)),
        (CLANG, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")),
    ],
    ids=["gcc", "gcc-O0", "gcc-sanitized", "clang", "clang-sanitized"],
)
def test_the_program_says_what_the_package_says(
    kind: str, compiler: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path
) -> None:
    model = exported(MODELS[kind], tmp_path)
    program = build(tmp_path, compiler, *flags)
    tokens = model.tokens(TEXT)
    logits = np.array([row.split() for row in run(program, "logits", text=TEXT).splitlines()], int)
    np.testing.assert_array_equal(logits[:-1], model.logits(TEXT))
    assert run(program, "tokens", text=TEXT).split() == [str(token).encode() for token in tokens.tolist()]
    a = model.architecture
    states = np.array([row.split() for row in run(program, "states", text=TEXT).splitlines()], int)
    _, last = model.read(np.concatenate([[SEPARATOR], tokens])[None], model.start(1))
    np.testing.assert_array_equal(states.reshape(-1, a.num_layers, a.hidden_size)[-1], np.asarray(last)[0])
    assert len(states) == a.num_layers * (len(tokens) + 1)
    assert run(program, "loss", text=TEXT).split() == [
        str(n).encode() for n in (model.losses(TEXT).sum(), len(tokens), len(TEXT))
    ]
    for temperature, inverse, top_k, seed in (("1", 256, 0, 0), ("0.5", 512, 7, 2**63 + 5), ("3", 85, 3, 12)):
        expected = b"It " + b"".join(generate(model, b"It ", 300, temperature, top_k, seed))
        assert run(program, "write", 300, seed, inverse, top_k or model.tokenizer.vocab_size, text=b"It ") == expected


@pytest.mark.parametrize("arguments", ["", "write", "write abc", "write 5 0 0", "write 5 0 256 999"])
def test_the_program_refuses(arguments: str, tmp_path: Path) -> None:
    exported(MODELS["bytes"], tmp_path)
    done = subprocess.run([build(tmp_path, GCC), *arguments.split()], input="a text", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_a_text_loss(tmp_path: Path) -> None:
    """`intlm_text_loss`, which the exported program itself does not call."""
    model = exported(MODELS["alphabet"], tmp_path)
    made = tmp_path / "model.so"
    files = [str(tmp_path / name) for name in ("intlm.c", "weights.c")]
    subprocess.run(["gcc", *WARNINGS, "-shared", "-fPIC", *files, "-o", str(made)], check=True)
    loss = ctypes.CDLL(str(made)).intlm_text_loss
    loss.restype = ctypes.c_int64
    tokens = model.tokens(TEXT).astype(np.uint16)
    memory = (ctypes.c_int16 * 10_000)()
    for _ in range(2):  # from its beginning, whatever was read before
        result = loss(memory, tokens.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(tokens)))
        assert result == model.losses(TEXT).sum()


def test_it_needs_nothing(tmp_path: Path) -> None:
    """It uses two standard headers, no external name, no floating-point type and no division."""
    exported(MODELS["bytes"], tmp_path)
    library = [tmp_path / name for name in ("intlm.h", "intlm.c", "fixed_point.h", "weights.h", "weights.c")]
    text = re.sub(r"/\*.*?\*/", "", "".join(path.read_text() for path in library), flags=re.DOTALL)
    assert set(re.findall(r"#include <(.*)>", text)) == {"stdint.h", "stddef.h"}
    assert not re.search(r"\b(float|double|malloc|printf|memcpy|memset)\b", text)
    divided = [line for line in text.splitlines() if "/" in line]
    assert divided and all("round / 4" in line for line in divided)  # of the loop's counter, by a power of two
    names = set()
    for name in ("intlm", "weights"):
        made = tmp_path / f"{name}.o"
        subprocess.run(["gcc", *WARNINGS, "-O3", "-c", str(tmp_path / f"{name}.c"), "-o", str(made)], check=True)
        listed = subprocess.run(["nm", str(made)], capture_output=True, text=True, check=True).stdout.splitlines()
        names |= {(line.split()[-1], line.split()[-2]) for line in listed}
    needed = {name for name, kind in names if kind == "U"}
    assert needed <= {name for name, kind in names if kind != "U"}
    changing = {name for name, kind in names if kind in "bBdDC"}
    assert changing <= {"intlm_layers"}  # pointers, which a loader of shared code fills in
