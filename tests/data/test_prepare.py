"""Preparing loses no text, holds out the text that it should, and changes no files but its own."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intlm.data import files, sources
from intlm.data import prepare as module
from intlm.data.prepare import prepare, train_tokenizer
from intlm.data.shards import PROGRESS, Corpus, scratch
from intlm.data.sources import Mark, Reader, Source
from intlm.data.tokenizers import load_tokenizer
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.errors import DataError


def run(tmp_path: Path, source: str = "text", **changes: Any) -> Corpus:
    return prepare(tiny.data_of(train=str(tmp_path / source), prepared=str(tmp_path / "corpus"), **changes))


def documents(corpus: Corpus, name: str) -> list[bytes]:
    split = corpus.split(name)
    return [corpus.tokenizer.decode(split.read(a, b - a)) for a, b in split.document_spans()]


@pytest.mark.parametrize("tokenizer", ["bytes", "alphabet"])
@pytest.mark.parametrize(("valid_bytes", "held"), [(1, 1), (4, 4), (5, 5), (9, 5), (10**9, 5)])
def test_the_tail_of_a_single_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str, valid_bytes: int, held: int
) -> None:
    """The held-out tail of a single document is never more than half of its ten bytes."""
    monkeypatch.setattr(files, "CHUNK", 4)
    text = b"aab\r\n\x00aaz!"
    (tmp_path / "text").write_bytes(text)
    corpus = run(tmp_path, tokenizer=tokenizer, valid_bytes=valid_bytes)
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
    corpus = run(tmp_path, valid=str(tmp_path / "other"), tokenizer="alphabet")
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
    assert run(tmp_path, tokenizer="alphabet").tokenizer.vocab_size == 8
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
        corpus = run(tmp_path, "text.py", tokenizer="alphabet", valid_bytes=4)
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
        ({"source": "absent"}, "absent"),
        ({"source": "empty", "tokenizer": "alphabet"}, "empty: no text"),
        ({"source": "."}, "lies inside"),
        ({"valid": "/nowhere"}, "/nowhere"),
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


WORDS = ["the ", "integer", "s of ", "a ", "long", "er ", "text\n", "\n\n", "über", "0123 ", "x"]


def text_of(number: int, length: int = 60) -> str:
    return f"{number}: " + "".join(random.Random(number).choices(WORDS, k=length))


def write_data_set(
    directory: Path, form: str, texts: Iterable[str | None], shards: int = 3, split: str = "train"
) -> None:
    """Writes rows in the layout of the hub, with several files per split."""
    (directory / "data").mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "title": f"title {i}", "score": i / 10} for i, text in enumerate(texts)]
    for shard, some in enumerate(np.array_split(np.arange(len(rows)), shards)):
        path = directory / "data" / f"{split}-{shard:05}-of-{shards:05}.{form}"
        chosen = [rows[i] for i in some]
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(chosen), path, row_group_size=2)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in chosen))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_data_set_with_splits_columns_and_a_filter(tmp_path: Path, form: str) -> None:
    texts = [text_of(number) for number in range(20)]
    write_data_set(tmp_path / "set", form, texts)
    write_data_set(tmp_path / "set", form, ["held", "out"], 1, "validation")
    corpus = run(tmp_path, "set", valid_split="validation")
    assert documents(corpus, "train") == [text.encode() for text in texts]
    assert documents(corpus, "valid") == [b"held", b"out"]
    corpus = run(tmp_path, "set", columns="title, text", filter='score > 0.25 and score <= 0.4 and title != "title 3"')
    assert documents(corpus, "train") == [f"title 4\n\n{texts[4]}".encode()]
    assert corpus.found["train"]["filtered"] == 19
    corpus = run(tmp_path, "set", split="validation", max_bytes=1)
    assert documents(corpus, "train") == [b"held"]
    (path,) = (tmp_path / "set" / "data").glob("validation-*")
    assert documents(run(tmp_path, f"set/data/{path.name}"), "train") == [b"held", b"out"]


@pytest.mark.parametrize(("form", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_compressed_rows(tmp_path: Path, form: str, compress: Callable[[bytes], bytes]) -> None:
    """Rows are read from a compressed file, and from a directory of several."""
    texts = [text_of(number, 4000) for number in range(20)]
    write_data_set(tmp_path / "set", "jsonl", texts)
    for path in (tmp_path / "set" / "data").iterdir():
        path.with_name(f"{path.name}.{form}").write_bytes(compress(path.read_bytes()))
        path.unlink()
    assert documents(run(tmp_path, "set"), "train") == [text.encode() for text in texts]
    first = min((tmp_path / "set" / "data").iterdir())
    assert documents(run(tmp_path, f"set/data/{first.name}"), "train") == [text.encode() for text in texts[:7]]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{first.name}: cannot be read: Truncated"):
        run(tmp_path, f"set/data/{first.name}")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("skip", [0, 1, 7, 18])
def test_a_data_set_is_read_on_from_a_mark(
    tmp_path: Path, form: str, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark can be stored as JSON, and is a place before the document that is being read."""
    monkeypatch.setattr(sources, "MARK", 1)
    texts = [None if number == 9 else text_of(number) for number in range(20)]
    write_data_set(tmp_path / "set", form, texts)
    reader = Reader(Source(str(tmp_path / "set")))
    whole, marks = [], []
    for document in reader:
        marks.append(reader.mark)
        whole.append(b"".join(document))
    assert whole == [text.encode() for text in texts if text]
    mark = Mark(*json.loads(json.dumps(marks[skip])))
    again = Reader(Source(str(tmp_path / "set")), mark)
    assert [b"".join(document) for document in again] == whole[skip:]
    assert again.counts == reader.counts and reader.counts["empty"] == 1


def test_what_is_counted(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("|é|a\0b|||".encode() + b"\xff\0|\xc3")
    corpus = run(tmp_path, document_separator="|")
    assert documents(corpus, "train") == ["é".encode(), b"a\0b", b"\xff\0", b"\xc3"]
    counts = {"documents": 4, "bytes": 8, "empty": 0, "filtered": 0, "separators": 6}
    counts |= {"not_utf8": 2, "with_nul": 2, "longest": 3}
    assert corpus.found == {"train": counts}
    (tmp_path / "text.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "\\u0000"}\n{"text": ""}\n{"text": null}\n')
    corpus = run(tmp_path, "text.jsonl")
    assert documents(corpus, "train") == ["\ufffd".encode(), b"\0"]
    changed = {"documents": 2, "bytes": 4, "empty": 2, "separators": 0, "not_utf8": 0, "with_nul": 1}
    assert corpus.found["train"] == counts | changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "none"}, "set: no split 'none', only 'train'"),
        ({"columns": "body"}, "data.columns: no column 'body', only text, title, score"),
        ({"columns": "score"}, "data.columns: column 'score' holds float, expected text"),
        ({"filter": "lang == 1"}, "data.filter: no column 'lang'"),
        ({"filter": "score = 1"}, "data.filter = 'score = 1': not understood from 'score = 1' on"),
        ({"filter": "score > 1 or"}, "data.filter = .* expected COLUMN OP VALUE"),
        ({"filter": "score > 99"}, "set: no text in it"),
        (
            {"filter": 'score > "a"'},
            r"""row 1: data\.filter: score > "a": compares a number, '0\.0', with a string""",
        ),
        ({"filter": "title == 1"}, "compares a string, 'title 0', with a number"),
        ({"filter": "title == [1]"}, "data.filter = .* expected COLUMN OP VALUE"),
        ({"filter": "title == " + "[" * 9999}, "data.filter = .* expected COLUMN OP VALUE"),
        ({"filter": "score > " + "9" * 9999}, "data.filter = .* expected COLUMN OP VALUE"),
        ({"valid_split": "none"}, "set: no split 'none'"),
        ({"tokenizer": "bpe", "bpe.vocab_size": 9999}, "data.bpe.vocab_size = 9999: SentencePiece makes no such"),
        ({"tokenizer_file": "/nowhere"}, "/nowhere: cannot be read"),
    ],
)
def test_impossible_requests_of_a_data_set(tmp_path: Path, changes: dict, message: str) -> None:
    write_data_set(tmp_path / "set", "parquet", [text_of(1)], 1)
    with pytest.raises(DataError, match=message):
        run(tmp_path, "set", **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_text_has_no_splits(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"data\.valid_split = 'test': .* is a text"):
        run(tmp_path, valid_split="test")


def shards_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "index.json"}


@pytest.mark.parametrize("tokenizer", ["bytes", "alphabet", "unigram", "bpe"])
def test_neither_processes_nor_blocks_change_a_bit(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("|".join(text_of(number) for number in range(200)))
    options = {"document_separator": "|", "tokenizer": tokenizer, "valid_bytes": 5000}
    options |= {f"{tokenizer}.vocab_size": 280} if tokenizer in ("unigram", "bpe") else {}
    expected = run(tmp_path, processes=1, **options)
    assert b"".join(sorted(documents(expected, "train") + documents(expected, "valid"))) == b"".join(
        sorted(text_of(number).encode() for number in range(200))
    )
    for processes, block in ((1, 1), (2, 3000), (3, 20_000)):
        monkeypatch.setattr(module, "BLOCK", block)
        made = prepare(
            tiny.data_of(train=str(tmp_path / "text"), prepared=str(tmp_path / "other"), processes=processes, **options)
        )
        assert shards_of(made.directory) == shards_of(expected.directory)
        assert made.identity == expected.identity and made.found == expected.found
        (tmp_path / "other" / "index.json").unlink()
        for path in (tmp_path / "other").iterdir():
            path.unlink()


def test_a_document_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document longer than a block is encoded in parts, to the tokenizer's own tokens."""
    for name in ("intlm.data.prepare.PART", "intlm.data.tokenizers.pieces.PART"):
        monkeypatch.setattr(name, 16)
    monkeypatch.setattr(module, "BLOCK", 50)
    (tmp_path / "text").write_text(text_of(1) + "|" + text_of(2))
    corpus = run(tmp_path, document_separator="|", tokenizer="bpe", processes=1, **{"bpe.vocab_size": 270})
    split = corpus.split("train")
    for (start, end), number in zip(split.document_spans(), (1, 2), strict=True):
        np.testing.assert_array_equal(split.read(start, end - start), corpus.tokenizer.encode(text_of(number).encode()))


def test_a_tokenizer_of_another_corpus(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(map(text_of, range(50))))
    settings: dict[str, Any] = {"tokenizer": "unigram", "unigram.vocab_size": 290, "unigram.sample_bytes": 4000}
    tokenizer = train_tokenizer(tiny.data_of(train=str(tmp_path / "text"), prepared="", **settings))
    assert tokenizer.vocab_size == 290 and tokenizer == run(tmp_path, **settings).tokenizer
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    (tmp_path / "other").write_text("something else")
    given = {"tokenizer_file": str(tmp_path / "tokenizer.json")}
    corpus = run(tmp_path, "other", **given)
    assert corpus.tokenizer == tokenizer == load_tokenizer(tmp_path / "tokenizer.json")
    assert documents(corpus, "train") == [b"something else"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(ByteTokenizer().to_json()))
    assert run(tmp_path, "other", **given).tokenizer == ByteTokenizer()
    (tmp_path / "tokenizer.json").write_text('{"name": "unigram"}')
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer: "):
        run(tmp_path, "other", **given)


KILLED = """
import json, os, signal, sys
from intlm.config import DataConfig
from intlm.settings import build
from intlm.data import prepare as module, shards, sources

settings, saves = json.loads(sys.argv[1]), int(sys.argv[2])
module.SAVE_SECONDS, module.BLOCK, sources.MARK = 0, 500, 300
seen = []
save = shards.CorpusWriter.save

def save_and_die(writer, progress):
    save(writer, progress)
    seen.append(sum(split["tokens"] for split in writer._splits.values()))
    if len(seen) == saves:
        writer.append("train", module.np.ones(99, writer._tokenizer.dtype), 0, 99)  # never noted: to be dropped
        for file in writer._files.values():
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

shards.CorpusWriter.save = save_and_die
if __name__ == "__main__":
    module.prepare(build(DataConfig, settings))
    print(json.dumps(seen))
"""


@pytest.mark.parametrize("source", ["text", "parquet", "jsonl", "recipe"])
@pytest.mark.parametrize("tokenizer", ["alphabet", "bpe"])
def test_it_goes_on_after_a_kill(tmp_path: Path, source: str, tokenizer: str) -> None:
    """SIGKILL after every few saves, until it ends: the corpus is that of an undisturbed run; no work is repeated."""
    texts = [text_of(number) for number in range(40)]
    options: dict[str, Any] = {"tokenizer": tokenizer, "document_separator": "|", "processes": 1}
    options |= {"bpe.vocab_size": 270} if tokenizer == "bpe" else {}
    options["train"] = str(tmp_path / "in" / {"text": "text", "recipe": "text.py"}.get(source, "set"))
    (tmp_path / "in").mkdir()
    if source == "text":
        (tmp_path / "in" / "text").write_text("|".join(texts))
    elif source == "recipe":
        (tmp_path / "in" / "text.py").write_text(f"def documents():\n    yield {'|'.join(texts).encode()!r}\n")
    else:
        write_data_set(tmp_path / "in" / "set", source, texts)
        write_data_set(tmp_path / "in" / "set", source, ["held", "out" * 300], 1, "validation")
    options |= {"valid_split": "validation"} if source in ("parquet", "jsonl") else {"valid_bytes": 2000}
    expected = prepare(tiny.data_of(prepared=str(tmp_path / "expected"), **options))
    (tmp_path / "killed.py").write_text(KILLED)
    directory, before = tmp_path / "corpus", 0
    command = [sys.executable, str(tmp_path / "killed.py"), json.dumps(options | {"prepared": str(directory)}), "4"]
    kills = 0
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL and not directory.exists(), done.stderr
        noted = json.loads((scratch(directory) / PROGRESS).read_text())["splits"]
        now = sum(split["tokens"] for split in noted.values())
        assert now > before
        before, kills = now, kills + 1
    assert kills >= 3 and all(tokens >= before for tokens in json.loads(done.stdout))
    made = Corpus.open(directory)
    made.verify()
    assert shards_of(directory) == shards_of(expected.directory)
    assert (made.found, made.identity) == (expected.found, expected.identity)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "expected", "in", "killed.py"]


def test_what_was_begun_for_another_request_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text(text_of(1))
    partial = scratch(tmp_path / "corpus")
    partial.mkdir()
    (partial / PROGRESS).write_text('{"request": {}, "splits": {}}')
    (partial / "train-00007.bin").write_text("old")
    assert documents(run(tmp_path), "train") == [text_of(1).encode()]
    assert sorted(path.name for path in (tmp_path / "corpus").iterdir()) == ["index.json", "train-00000.bin"]
    assert not partial.exists()


def test_what_a_kill_left_of_a_replaced_corpus_is_deleted(tmp_path: Path) -> None:
    """The kill comes after the new corpus has its name, or just before."""
    (tmp_path / "text").write_text(text_of(1))
    run(tmp_path)
    left = tmp_path / ".corpus.replaced"
    for text in (text_of(1), text_of(2)):
        (tmp_path / "text").write_text(text)
        left.mkdir()
        (left / "index.json").touch()
        assert documents(run(tmp_path), "train") == [text.encode()]
        assert not left.exists()


def test_only_one_process_prepares(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(text_of(1))
    with module._exclusive(scratch(tmp_path / "corpus")), pytest.raises(DataError, match="another `intlm prepare`"):
        run(tmp_path)
    assert documents(run(tmp_path), "train") == [text_of(1).encode()]


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Workers end with their parent, even if it is killed; a worker that dies is an error, and nobody waits for it."""
    script = """
import os, signal, sys, time
from intlm.config import DataConfig
from intlm.data.tokenizers.bpe import Bpe
from intlm.data import prepare as module

module.BLOCK = 1000
if __name__ == "__main__":
    import multiprocessing, threading
    def kill():
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.05)
        children = [child.pid for child in multiprocessing.active_children()]
        print(*children, flush=True)
        os.kill(children[0] if sys.argv[3] == "worker" else os.getpid(), signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()
    try:
        text, prepared = sys.argv[1:3]
        module.prepare(DataConfig(train=text, prepared=prepared, tokenizer=Bpe(vocab_size=270), processes=2))
    except module.DataError as error:
        print(error)
"""
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "text").write_text(text_of(1, 2_000_000))
    for victim in ("worker", "parent"):
        command = [
            sys.executable,
            str(tmp_path / "script.py"),
            str(tmp_path / "text"),
            str(tmp_path / "corpus"),
            victim,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
        children, *said = done.stdout.splitlines()
        assert said == [] if victim == "parent" else "a worker process died" in said[0]
        for child in map(int, children.split()):
            for _ in range(200):
                if not Path(f"/proc/{child}/exe").exists() or "Z" in Path(f"/proc/{child}/stat").read_text():
                    break
                time.sleep(0.05)
            else:
                pytest.fail(f"worker {child} is still there")
