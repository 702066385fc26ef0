"""Sources give the documents they should, in order, however the text is cut into chunks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.data import files, sources
from intlm.data.sources import Reader, Source
from intlm.errors import DataError

REPOSITORY = Path(__file__).parents[2]


def read(source: Path, separator: str = "") -> list[bytes]:
    return [b"".join(document) for document in Reader(Source(str(source), separator))]


@given(st.text("ab|", max_size=40), st.text("ab|", min_size=1, max_size=3), st.integers(1, 5))
def test_splitting_does_not_depend_on_chunks(text: str, separator: str, size: int) -> None:
    data, mark = text.encode(), separator.encode()
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    parts = [b""]
    for piece in sources._split(chunks, mark):
        if piece is None:
            parts.append(b"")
        else:
            parts[-1] += piece
    assert parts == data.split(mark)


def test_a_file_is_a_document_of_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 3)
    (tmp_path / "a.txt").write_bytes(b"one\r\n\x00\xff two")
    assert read(tmp_path / "a.txt") == [b"one\r\n\x00\xff two"]


def test_separators_are_removed_and_empty_documents_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"<|>one<|><|>two<|>")
    assert read(tmp_path / "a.txt", "<|>") == [b"one", b"two"]


def test_a_directory_is_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden", "b/.cache/x.txt", "code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").touch()
    assert read(tmp_path) == [b"a.txt", b"b/1.txt", b"b/2.txt", b"code.py"]


def test_a_document_may_be_left_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 2)
    (tmp_path / "a.txt").write_bytes(b"first|second|third")
    reader = Reader(Source(str(tmp_path / "a.txt"), "|"))
    assert [next(document)[:1] for document in reader] == [b"f", b"s", b"t"]


def test_a_recipe_is_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("def documents():\n    yield b'a|b'\n    yield b''\n    yield b'c'\n")
    assert read(recipe) == [b"a|b", b"c"]
    assert read(recipe, "|") == [b"a", b"b", b"c"]
    assert list(tmp_path.iterdir()) == [recipe]  # and leaves nothing


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def documents(:", "SyntaxError"),
        ("", "has no attribute 'documents'"),
        ("def documents():\n    yield 'text'", "yielded str, expected bytes"),
        ("def documents():\n    yield b'fine'\n    raise OSError('no network')", "OSError: no network"),
        ("def documents():\n    yield b''", "no text"),
    ],
)
def test_a_recipe_that_fails_is_named(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "recipe.py").write_text(code)
    with pytest.raises(DataError, match=f"recipe.py.*{message}"):
        read(tmp_path / "recipe.py")


@pytest.mark.parametrize("name", ["absent.txt", "absent.py", "empty", "empty.txt"])
def test_nothing_to_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_the_quickstart_recipe() -> None:
    texts = read(REPOSITORY / "data" / "python_stdlib.py")
    whole = b"".join(texts)
    assert len(texts) > 100 and 1_000_000 < len(whole) <= 4_000_000
    assert whole.isascii() and len(set(whole)) < 100
    lines = whole.splitlines()
    assert len(lines) == len(set(lines))
