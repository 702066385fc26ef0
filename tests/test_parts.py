"""Only a part's own file has its name: all other code takes names from the registered parts."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import intlm
from intlm.settings import Family

PACKAGE = Path(intlm.__file__).parent
DEFAULT, EARLIER = "a default", "how earlier versions called it"
BYTES, COLUMN, LADDER = "a count of bytes", "a column or key of that name", "a reference model of following.py"
PROGRESS = "what a progress bar counts"
FILE = "the name of a file"
# Where a part's name may stand outside its folder: (file, text) -> why.
EXCEPTIONS = {
    ("config.py", "bytes"): DEFAULT,
    ("config.py", "member"): DEFAULT,
    ("config.py", "mgu"): DEFAULT,
    ("model/parameters.py", "mgu"): DEFAULT,
    ("config.py", "next_token"): DEFAULT,
    ("config.py", "threshold"): DEFAULT,
    ("population/engine.py", "member"): DEFAULT,
    ("population/engine.py", "next_token"): DEFAULT,
    ("estimators/member.py", "sign"): DEFAULT,
    ("config.py", "momentum"): EARLIER,
    ("config.py", "sgd"): EARLIER,
    **{(f"{file}.py", "bytes"): BYTES for file in ("evaluation", "data/report", "data/sources", "data/shards")},
    ("data/references.py", "unigram"): LADDER,
    ("following.py", "model"): COLUMN,
    ("data/tokenizers/pieces.py", "model"): COLUMN,
    ("export/c.py", "model"): FILE,
    ("data/report.py", "token"): COLUMN,
    ("simulate/accumulator.py", "token"): PROGRESS,
    ("simulate/comparison.py", "token"): PROGRESS,
    **{(f"{file}.py", "token"): "the model's input" for file in ("export/onnx", "simulate/targets/onnxruntime")},
    ("simulate/build.py", "wasm"): "a kind of machine code, as its file",
    ("simulate/build.py", "model.wasm"): FILE,
    ("simulate/wasm.py", "model.wasm: floating point: a local variable at "): FILE,
    ("simulate/wasm.py", "model.wasm: floating point: opcode "): FILE,
    ("simulate/wasm.py", "model.wasm: opcode "): FILE,
}


def families() -> Iterator[Family]:
    """Every family of the package."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "intlm."):
        if module.ispkg:
            for value in list(vars(importlib.import_module(module.name)).values()):
                if isinstance(value, Family) and value.package == module.name:
                    yield value


def texts(path: Path) -> Iterator[str]:
    """The strings of a Python file, f-strings' included, its docstrings excepted."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_nothing_else_names_a_part() -> None:
    """No text is a part's name, and none lists two parts of a family."""
    named = set()
    for family in families():
        parts = [name for name, part in family.parts().items() if part.__module__.startswith("intlm.")]
        assert parts
        for path in PACKAGE.rglob("*.py"):
            if path.is_relative_to(PACKAGE.parent / family.package.replace(".", "/")):
                continue
            for text in texts(path):
                words = set(re.split(r"[^a-z0-9_-]+", text))
                if text in parts or len(words.intersection(parts)) > 1:
                    named.add((str(path.relative_to(PACKAGE)), text))
    assert named - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - named == set()  # none that is no longer needed
