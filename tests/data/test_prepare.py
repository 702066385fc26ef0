"""Preparing loses no text, holds out what it says, and touches nothing that is not its own."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intlm.data import prepare as module
from intlm.data import sources
from intlm.data.prepare import prepare
from intlm.data.shards import Corpus
from intlm.data.tokenizers import AlphabetTokenizer
from intlm.errors import DataError


def run(tmp_path: Path, source: str = "text", **changes: object) -> Corpus:
    options: dict = {"valid": None, "valid_bytes": 0, "tokenizer_name": "bytes", "document_separator": None}
    return prepare(tmp_path / source, directory=tmp_path / "corpus", **(options | changes))


def documents(corpus: Corpus, name: str) -> list[bytes]:
    split = corpus.split(name)
    return [corpus.tokenizer.decode(split.read(a, b - a)) for a, b in split.document_spans()]


@pytest.mark.parametrize("tokenizer_name", ["bytes", "alphabet"])
@pytest.mark.parametrize(("valid_bytes", "held"), [(1, 1), (4, 4), (5, 5), (9, 5), (10**9, 5)])
def test_the_tail_of_a_single_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_name: str, valid_bytes: int, held: int
) -> None:
    """Never more than half of the ten bytes."""
    monkeypatch.setattr(sources, "CHUNK", 4)
    text = b"aab\r\n\x00aaz!"
    (tmp_path / "text").write_bytes(text)
    corpus = run(tmp_path, tokenizer_name=tokenizer_name, valid_bytes=valid_bytes)
    assert documents(corpus, "train") == [text[:-held]]
    assert documents(corpus, "valid") == [text[-held:]]
    assert corpus.split("valid").bytes == held
    if isinstance(corpus.tokenizer, AlphabetTokenizer):
        assert set(corpus.tokenizer.alphabet) == set(text[:-held])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20), min_size=2, max_size=30), st.data())
def test_whole_documents_are_held_out(tmp_path: Path, texts: list[bytes], data: st.DataObject) -> None:
    texts = [bytes([ordinal]) + text for ordinal, text in enumerate(texts)]  # all different
    code = f"def documents():\n    yield from {texts!r}\n"
    (tmp_path / "text.py").write_text(code)
    total = sum(map(len, texts))
    valid_bytes = data.draw(st.integers(1, 2 * total))
    corpus = run(tmp_path, "text.py", valid_bytes=valid_bytes)
    train, valid = documents(corpus, "train"), documents(corpus, "valid")
    assert train and valid
    assert sorted(train + valid) == sorted(texts)
    assert train == [text for text in texts if text in train]  # in their order
    assert valid == [text for text in texts if text in valid]
    # Near what was asked for, or half of the text: half a document of the largest size away, or all but one document.
    largest = max(map(len, texts))
    assert abs(sum(map(len, valid)) - min(valid_bytes, total // 2)) <= largest


def test_about_so_many_bytes_spread_over_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("|".join(f"document {number:04}" for number in range(4000)))
    corpus = run(tmp_path, valid_bytes=13 * 400, document_separator="|")
    numbers = np.array([int(text[-4:]) for text in documents(corpus, "valid")])
    assert len(numbers) == 400
    assert np.bincount(numbers // 1000).min() > 70
    assert np.count_nonzero(np.diff(numbers) > 1) > 300


def test_documents_far_larger_than_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a" * 100 + "|" + "b" * 50 + "|" + "c" * 90)
    corpus = run(tmp_path, valid_bytes=1, document_separator="|")
    assert documents(corpus, "valid") == [b"b" * 50]


def test_the_split_is_the_same_everywhere() -> None:
    cuts = module._cuts(np.arange(10, 40), 100)
    assert np.flatnonzero(cuts == 0).tolist() == [2, 4, 5, 6, 8, 18]


def test_a_source_of_its_own_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"aab")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1").write_bytes(b"xyz")
    (tmp_path / "other" / "2").write_bytes(b"\x00")
    corpus = run(tmp_path, valid=tmp_path / "other", valid_bytes=99, tokenizer_name="alphabet")
    assert documents(corpus, "train") == [b"aab"]
    assert documents(corpus, "valid") == [b"xyz", b"\x00"]
    assert corpus.tokenizer == AlphabetTokenizer(b"ab")


def test_nothing_held_out(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abc")
    assert list(run(tmp_path).splits) == ["train"]


def test_it_is_prepared_once_for_a_request(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one|two")
    made = (run(tmp_path).directory / "index.json").stat().st_ino
    assert (run(tmp_path).directory / "index.json").stat().st_ino == made
    assert documents(run(tmp_path, document_separator="|"), "train") == [b"one", b"two"]
    assert run(tmp_path, tokenizer_name="alphabet").tokenizer.vocab_size == 8
    (tmp_path / "text").write_bytes(b"new text")
    assert documents(run(tmp_path), "train") == [b"new text"]
    (tmp_path / "text").write_bytes(b"old text")
    os.utime(tmp_path / "text", (1, 1))
    assert documents(run(tmp_path), "train") == [b"old text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "text"]


def test_a_recipe_is_run_once_and_again_when_it_changes(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    code = f"def documents():\n    open({str(ran)!r}, 'a').write('.')\n    yield b'some text'\n"
    (tmp_path / "text.py").write_text(code)
    for _ in range(2):
        corpus = run(tmp_path, "text.py", tokenizer_name="alphabet", valid_bytes=4)
        assert ran.read_text() == "." and documents(corpus, "valid") == [b"text"]
    (tmp_path / "text.py").write_text(code.replace("text'", "more'"))
    assert documents(run(tmp_path, "text.py"), "train") == [b"some more"] and ran.read_text() == ".."


def test_a_damaged_corpus_is_not_silently_replaced(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abc")
    run(tmp_path)
    (tmp_path / "corpus" / "train-00000.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-00000\.bin"):
        run(tmp_path)


def test_what_is_not_a_corpus_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abc")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a prepared corpus"):
        run(tmp_path)
    (tmp_path / "corpus" / "index.json").write_text('{"mine": "too"}')
    with pytest.raises(DataError, match="not the index of a prepared corpus"):
        run(tmp_path)
    assert (tmp_path / "corpus" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid_bytes": -1}, r"data\.valid_bytes = -1"),
        ({"tokenizer_name": "words"}, r"data\.tokenizer = 'words': expected one of bytes, alphabet"),
        ({"source": "absent"}, "absent"),
        ({"source": "empty", "tokenizer_name": "alphabet"}, "empty: no text"),
        ({"source": "."}, "lies within"),
        ({"valid": Path("/nowhere")}, "/nowhere"),
    ],
)
def test_impossible_requests(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "text").write_bytes(b"abc")
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match=message):
        run(tmp_path, **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text"]


def test_text_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_bytes(b"abc")

    def cuts_and_change(*arguments: object) -> list[int]:
        (tmp_path / "text").write_bytes(b"abcd")
        return [2]

    monkeypatch.setattr(module, "_cuts", cuts_and_change)
    with pytest.raises(DataError, match="changed while"):
        run(tmp_path, valid_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
