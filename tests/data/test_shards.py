"""Shards: tokens are read as they were written, and no damage goes unnoticed."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from intlm import checksums
from intlm import config as configuration
from intlm.cli import main
from intlm.data import shards
from intlm.data.shards import Corpus, CorpusWriter
from intlm.data.tokenizers import Tokenizer
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.errors import DataError

MakeCorpus = Callable[..., Corpus]

DOCUMENTS = [b"abc", b"\x00\xff", b"x", b"a longer document"]


def expected_tokens(tokenizer: Tokenizer, documents: list[bytes]) -> list[int]:
    return [token for document in documents for token in (0, *tokenizer.encode(document).tolist())]


@pytest.mark.parametrize("shard_tokens", [1, 5, 1000])
@pytest.mark.parametrize("wide", [False, True])
def test_round_trip(make_corpus: MakeCorpus, wide_tokenizer: Tokenizer, shard_tokens: int, wide: bool) -> None:
    tokenizer = wide_tokenizer if wide else ByteTokenizer()
    corpus = make_corpus(DOCUMENTS, tokenizer, shard_tokens)
    split, tokens = corpus.split("train"), expected_tokens(tokenizer, DOCUMENTS)
    assert corpus.tokenizer == tokenizer and corpus.request == {"by": "hand"}
    assert (split.tokens, split.documents, split.bytes) == (len(tokens), 4, sum(map(len, DOCUMENTS)))
    assert split.read(0, len(tokens)).tolist() == tokens
    assert split.read(0, 1).dtype == tokenizer.dtype
    assert len(list(corpus.directory.glob("train-*.bin"))) == -(-len(tokens) // shard_tokens)
    spans = [split.read(start, end - start) for start, end in split.document_spans()]
    assert [tokenizer.decode(span) for span in spans] == DOCUMENTS
    whole = b"".join(DOCUMENTS)
    assert split.to_bytes() == whole
    assert [split.to_bytes(limit) for limit in (0, 4, 999)] == [b"", whole[:4], whole]


@pytest.mark.parametrize("shard_tokens", [1, 4, 1000])
def test_reads_go_round(make_corpus: MakeCorpus, shard_tokens: int) -> None:
    split = make_corpus(DOCUMENTS, shard_tokens=shard_tokens).split("train")
    tokens = expected_tokens(ByteTokenizer(), DOCUMENTS)
    for start in (-1, 0, 3, len(tokens) - 1, 10**20):
        for count in (0, 1, 7, 3 * len(tokens) + 1):
            expected = [tokens[(start + i) % len(tokens)] for i in range(count)]
            assert split.read(start, count).tolist() == expected
    positions = np.arange(2 * len(tokens)).reshape(2, -1) * 7 % len(tokens)
    np.testing.assert_array_equal(split.gather(positions), np.array(tokens)[positions])


def test_spans_across_chunks(make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 3)
    split = make_corpus(DOCUMENTS).split("train")
    assert [end - start for start, end in split.document_spans()] == [3, 4, 1, 17]
    assert split.to_bytes(5) == b"".join(DOCUMENTS)[:5]


def test_identity_is_that_of_the_tokens(make_corpus: MakeCorpus, wide_tokenizer: Tokenizer) -> None:
    first = make_corpus(DOCUMENTS, name="a").identity
    assert make_corpus(DOCUMENTS, name="b").identity == first
    assert make_corpus([*DOCUMENTS, b"y"], name="c").identity != first
    assert make_corpus(DOCUMENTS, wide_tokenizer, name="d").identity != first


def test_a_split_that_is_not_there(make_corpus: MakeCorpus) -> None:
    with pytest.raises(DataError, match=r"valid.*only train.*data\.valid_bytes"):
        make_corpus(DOCUMENTS).split("valid")


def test_an_unfinished_corpus_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), CorpusWriter(tmp_path / "corpus", ByteTokenizer()) as writer:
        writer.write("train", b"text", True)
        assert not (tmp_path / "corpus").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_replaced_whole(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    old = make_corpus(DOCUMENTS, shard_tokens=1).split("train")
    assert make_corpus([b"new"]).split("train").to_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert old.to_bytes() == b"".join(DOCUMENTS)  # whoever was reading goes on


def rewrite(directory: Path, changes: dict[str, object]) -> None:
    """Changes keys of the index, and its checksum with them."""
    index = json.loads((directory / "index.json").read_text()) | changes
    index.pop("checksum")
    (directory / "index.json").write_text(json.dumps(index | {"checksum": shards._digest(index)}))


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "null", "{}", '{"format": "other"}', "\xff"])
def test_an_index_of_another_kind(make_corpus: MakeCorpus, content: str) -> None:
    directory = make_corpus(DOCUMENTS).directory
    (directory / "index.json").write_text(content, "latin-1")
    with pytest.raises(DataError, match=r"index\.json"):
        Corpus.open(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"dtype": "uint16"},
        {"tokenizer": {"name": "alphabet", "alphabet": "61"}},
        {"tokenizer": "bytes"},
        {"tokenizer_identity": "0"},
        {"splits": []},
        {"splits": {"train": {}}},
        {"splits": {"train": {"documents": 1, "tokens": 9, "bytes": 1, "shards": []}}},
        {"splits": {"train": {"documents": 1, "tokens": 9, "bytes": 8, "shards": [{"tokens": 8}]}}},
    ],
)
def test_an_index_that_contradicts_itself(make_corpus: MakeCorpus, changes: dict[str, object]) -> None:
    directory = make_corpus(DOCUMENTS).directory
    rewrite(directory, changes)
    with pytest.raises(DataError, match=r"index\.json"):
        Corpus.open(directory)


def test_an_index_that_was_edited(make_corpus: MakeCorpus) -> None:
    path = make_corpus(DOCUMENTS).directory / "index.json"
    text = path.read_text()
    rewrite(path.parent, {})
    Corpus.open(path.parent)
    path.write_text(text.replace('"bytes": 23', '"bytes": 32'))
    assert path.read_text() != text
    with pytest.raises(DataError, match=r"index\.json: damaged: .*checksum"):
        Corpus.open(path.parent)


def test_damaged_shards(make_corpus: MakeCorpus) -> None:
    directory = make_corpus(DOCUMENTS).directory
    shard = directory / "train-00001.bin"
    good = shard.read_bytes()
    for bad in (good[:-1], good + b"a", b""):
        shard.write_bytes(bad)
        with pytest.raises(DataError, match=r"train-00001\.bin: damaged"):
            Corpus.open(directory)
    shard.write_bytes(good[:2] + bytes([good[2] ^ 1]) + good[3:])
    Corpus.open(directory)
    with pytest.raises(DataError, match=r"train-00001\.bin: damaged: its sha256"):
        Corpus.open(directory).verify()
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00001\.bin: cannot be read"):
        Corpus.open(directory)


@pytest.mark.parametrize("left", [0, 1, 5000])
def test_a_shard_cut_while_it_is_read(make_corpus: MakeCorpus, left: int) -> None:
    """Reading past the end of the file would end the process (SIGBUS)."""
    corpus = make_corpus([b"a" * 9000, b"b" * 9000], shard_tokens=10000)
    split = corpus.split("train")
    assert len(split.to_bytes()) == 18000
    os.truncate(corpus.directory / "train-00001.bin", left)
    reads: list[Callable[[], object]] = [lambda: split.read(9990, 20), lambda: split.gather(np.arange(10000, 18000))]
    for read in (*reads, split.to_bytes, lambda: list(split.document_spans()), corpus.verify):
        with pytest.raises(DataError, match=r"train-00001\.bin: damaged: "):
            read()


@pytest.mark.parametrize(("wide", "token"), [(False, 4), (False, 255), (True, 258), (True, 65535)])
def test_tokens_that_the_vocabulary_has_not(make_corpus: MakeCorpus, wide: bool, token: int) -> None:
    """Tokens outside the vocabulary are refused even where the checksum is right."""
    tokenizer = AlphabetTokenizer(bytes(range(256)) if wide else b"ab")
    directory = make_corpus([b"abba", b"bab"], tokenizer, shard_tokens=100).directory
    plant(directory, "train-00000.bin", token)
    corpus = Corpus.open(directory)
    split = corpus.split("train")
    reads: list[Callable[[], object]] = [lambda: split.read(0, 9), lambda: split.gather(np.arange(9)), split.to_bytes]
    for read in (*reads, corpus.verify, lambda: corpus.verify("train")):
        with pytest.raises(
            DataError, match=rf"train-00000\.bin: holds {token}: expected 0 to {tokenizer.vocab_size - 1}"
        ):
            read()


def plant(directory: Path, name: str, token: int) -> None:
    """Write a token over a shard's last, the checksums with it."""
    index = json.loads((directory / "index.json").read_text())
    tokens = np.fromfile(directory / name, np.dtype(index["dtype"]))
    tokens[-1] = token
    tokens.tofile(directory / name)
    for split in index["splits"].values():
        for shard in split["shards"]:
            shard["sha256"] = hashlib.sha256((directory / shard["file"]).read_bytes()).hexdigest()
    rewrite(directory, index)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_command_takes_a_token_that_the_vocabulary_has_not(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.trained().directory
    config = configuration.load(run / "config.toml")
    prepared = Path(shutil.copytree(config.data.prepared, tmp_path / "prepared"))
    plant(prepared, f"{split}-00000.bin", 200)
    run = tiny.copied(tmp_path / "run")
    step = run / "checkpoints" / str(tiny.UPDATES)
    meta = step / "meta" / "metadata"  # the run's own text is to be that
    was, now = (Corpus.open(place).identity for place in (Path(config.data.prepared), prepared))
    meta.write_text(meta.read_text().replace(was, now))
    (step / checksums.CHECKSUMS).unlink()
    checksums.write(step)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(prepared)))
    (run / "config.toml").write_text(configuration.dumps(moved))
    commands = [["train", str(run / "config.toml"), "--run-dir", str(tmp_path / "new"), "--engine", "xla"]]
    commands += [["evaluate", str(run), "--split", split]]
    if split == "valid":
        commands += [["simulate", str(run), "--on", "host", "--tokens", "9999"]]
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.out == "" and f"{prepared / split}-00000.bin: holds 200: expected 0 to " in said.err
    assert not (tmp_path / "new").exists()


def test_names_out_of_the_directory_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An index whose checksum is right is not read as far as the file that it names."""
    config = configuration.load(tiny.trained().directory / "config.toml")
    prepared = Path(shutil.copytree(config.data.prepared, tmp_path / "prepared"))
    index = json.loads((prepared / "index.json").read_text())
    shard = index["splits"]["train"]["shards"][0]
    (prepared / shard["file"]).rename(tmp_path / "secret.txt")
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "train-00000.bin\n", "a/train-00000.bin", ".", "\0", 3):
        shard["file"] = name
        rewrite(prepared, index)
        assert main(["prepare", str(tiny.CONFIG), "--data.prepared", str(prepared)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and f"{prepared / 'index.json'}: damaged: Expected `str`" in said.err


def test_a_missing_directory_and_a_missing_index(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.index\.json"):
        Corpus.open(tmp_path / "absent")
    directory = make_corpus(DOCUMENTS).directory
    (directory / "index.json").unlink()
    with pytest.raises(DataError, match=r"index\.json"):
        Corpus.open(directory)


def test_documents_that_do_not_agree_with_the_index(make_corpus: MakeCorpus) -> None:
    directory = make_corpus([b"abcdefgh"], shard_tokens=100).directory
    damages = {b"\0ab\0efgh_": "2 documents, expected 1", b"_abcdefgh": "expected a separator"}
    for damage, message in damages.items():
        (directory / "train-00000.bin").write_bytes(damage)
        with pytest.raises(DataError, match=message):
            list(Corpus.open(directory).split("train").document_spans())
