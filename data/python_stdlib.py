"""The quickstart corpus: English about Python, from the standard library of the Python that runs this.

Nothing is fetched: documentation strings, comments and the topics of `help()` are in every installation. Paragraphs
that read as prose are kept, one per line, with one document per module or topic, about 1.6 MB; examples, tables
and code are left out, and so are paragraphs with unusual characters, so that the alphabet stays small, and
repeated paragraphs (the library repeats itself), so that no held-out paragraph has been trained on.

The text depends on the installed version of Python: the same version always gives the same text.

In a configuration: `data.train = "data/python_stdlib.py"`. It takes some seconds.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 4_000_000
EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
EXCLUDED |= {"site-packages", "dist-packages"}
ALLOWED = re.compile(r"""[A-Z][A-Za-z0-9 .,;:!?'"`()*/=_-]*""")  # a whole paragraph, of a sentence at least
WORD = re.compile(r"""["'(`*]*[A-Za-z][a-z'-]*["')`*]*[.,;:!?)]*""")


def documents() -> Iterator[bytes]:
    """The corpus as UTF-8 (ASCII, in fact), one document at a time."""
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    size = 0
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if EXCLUDED.intersection(name.parts):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue
        is_topics = name.name == "topics.py"
        texts = _topics(tree) if is_topics else ["\n\n".join(_docstrings(tree) + _comments(source))]
        for text in texts:
            paragraphs = [line for line in _prose(text) if line not in seen]
            document = "".join(line + "\n" for line in dict.fromkeys(paragraphs)).encode()
            if document and size + len(document) <= MAX_BYTES:
                yield document
                size += len(document)
                seen.update(paragraphs)
    if size < 500_000:
        raise FileNotFoundError(f"{library}: only {size} bytes of prose: is the library's source installed?")


def _docstrings(tree: ast.Module) -> list[str]:
    """The documentation strings of a module and of its classes and functions, from the outside in."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def _comments(source: str) -> list[str]:
    """The comments on lines of their own; consecutive lines are one comment."""
    stripped = "\n".join(line.strip() for line in source.split("\n"))
    return [re.sub(r"(?m)^#+", "", block) for block in re.findall(r"(?m)(?:^#.*\n)+", stripped)]


def _topics(tree: ast.Module) -> list[str]:
    """The texts in the dictionary of pydoc_data/topics.py."""
    values = [value for node in ast.walk(tree) if isinstance(node, ast.Dict) for value in node.values]
    texts = [value.value for value in values if isinstance(value, ast.Constant)]
    return [text for text in texts if isinstance(text, str)]


def _prose(text: str) -> Iterator[str]:
    """The paragraphs that read as prose, each on one line."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        line = " ".join(words)
        ordinary = sum(1 for word in words if WORD.fullmatch(word))
        if len(words) >= 6 and ordinary >= 0.7 * len(words) and ALLOWED.fullmatch(line):
            yield line
