"""Vocabularies of pieces reproduce any bytes, and are the same for the same sample."""

import base64
import hashlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tiny
from hypothesis import given
from hypothesis import strategies as st

from intlm.cli import main
from intlm.data import shards
from intlm.data.tokenizers import identity, pieces, tokenizer_from_json
from intlm.data.tokenizers.pieces import LETTERS, PieceTokenizer
from intlm.errors import DataError
from intlm.model import SEPARATOR

_PARTS = (
    "Zwölf",
    "Box",
    "kämpf",
    "er",
    "jag",
    "en",
    "Викт",
    "ора",
    "über",
    "d",
    "gro",
    "ß",
    "1",
    "23",
    ".",
    "\t#",
    "\r\n",
)
SAMPLE = "".join(random.Random(1).choices([*_PARTS, " ", " ", "\n\n", "    "], k=3000))
KINDS = ("unigram", "bpe")


@cache
def trained(kind: str) -> PieceTokenizer:
    return PieceTokenizer.train(kind, [SAMPLE.encode()], 300)


texts = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(str.encode),
    st.text("ab \n\t\r\0\u2581\ufffd\ue000é12,", max_size=100).map(str.encode),
    st.lists(st.sampled_from([b" ", b"Boxk", b"\xc3", b"\xa4mpfer", b"x" * 70, b" " * 20, b"\n\n"])).map(b"".join),
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_any_bytes_come_back(kind: str, text: bytes) -> None:
    tokenizer = trained(kind)
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.uint16 and SEPARATOR not in tokens
    assert not len(tokens) or tokens.max() < tokenizer.vocab_size
    assert tokenizer.decode(tokens) == tokenizer.decode(tokens.tolist()) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["a\n\nb  c\t d", " ", "  ", " a ", "\u2581", "\u2581a \u2581", "<unk>", "<s></s>", "<0x41>", "\0", "\r\n",
     "\ufeff", "ﬁ", "e\u0301", "\ue000", "\ufffd", "\U0010ffff", LETTERS],
)  # fmt: skip
def test_what_sentencepiece_would_change(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    assert tokenizer.decode(tokenizer.encode(text.encode())).decode() == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, other=texts)
def test_text_may_be_cut_every_so_many_bytes(kind: str, text: bytes, other: bytes) -> None:
    tokenizer = trained(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PART", 7)
        head = text[: len(text) // 7 * 7]
        joined = np.concatenate([tokenizer.encode(head), tokenizer.encode(other)])
        np.testing.assert_array_equal(tokenizer.encode(head + other), joined)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_tokens_decode_whole_or_in_parts(kind: str, data: st.DataObject) -> None:
    tokenizer = trained(kind)
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    text = b"".join(tokenizer.pieces[token] for token in tokens)
    decoder, cut = tokenizer.stream_decoder(), data.draw(st.integers(0, len(tokens)))
    assert tokenizer.decode(tokens) == decoder.feed(tokens[:cut]) + decoder.feed(tokens[cut:]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary(kind: str) -> None:
    """The separator, all bytes, and pieces within the bounds of words; what is frequent is short."""
    tokenizer = trained(kind)
    assert tokenizer.vocab_size == len(tokenizer.pieces) == len(set(tokenizer.pieces)) == 300
    assert tokenizer.pieces[SEPARATOR] == b"" and {bytes([byte]) for byte in range(256)} < set(tokenizer.pieces)
    assert all(b" " not in piece[1:] or piece.isspace() for piece in tokenizer.pieces)
    assert max(map(len, tokenizer.pieces)) <= pieces.LONGEST_PIECE
    assert len(tokenizer.encode(SAMPLE.encode())) < len(SAMPLE.encode()) / 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(kind).encode(SAMPLE.encode()).tolist()
    monkeypatch.setattr(pieces, "CACHED", 2)
    assert PieceTokenizer(kind, trained(kind).model).encode(SAMPLE.encode()).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_in_another_process(kind: str) -> None:
    """A vocabulary depends only on the sample and the settings: another process makes the same."""
    script = """
import json, sys
from intlm.data.tokenizers.pieces import PieceTokenizer
kind, sample = json.load(sys.stdin)
print(json.dumps(PieceTokenizer.train(kind, [sample[:99].encode(), sample[99:].encode()], 300).to_json()))
"""
    given = json.dumps([kind, SAMPLE.replace("Box", "box")])
    done = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, text=True, check=True)
    here = PieceTokenizer.train(kind, [json.loads(given)[1][:99].encode(), json.loads(given)[1][99:].encode()], 300)
    assert json.loads(done.stdout) == here.to_json() and here != trained(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(kind: str) -> None:
    again = tokenizer_from_json(json.loads(json.dumps(trained(kind).to_json())))
    assert again == trained(kind) and identity(again) == identity(trained(kind))
    assert identity(trained("bpe")) != identity(trained("unigram"))


@pytest.mark.parametrize(("kind", "size"), [("bpe", 100), ("unigram", 100), ("bpe", 60_000)])
def test_a_vocabulary_that_cannot_be(kind: str, size: int) -> None:
    with pytest.raises(DataError, match=rf"data\.{kind}\.vocab_size = {size}: SentencePiece .* from 11 bytes: Vocab"):
        PieceTokenizer.train(kind, [b"some ", b"sample"], size)


def test_a_unigram_vocabulary_is_as_large_as_the_sample_allows() -> None:
    found = PieceTokenizer.train("unigram", [b"some ", b"sample"], 60_000)
    assert 257 <= found.vocab_size < 270 and found.decode(found.encode(b"some \xff")) == b"some \xff"


def test_a_sample_that_cannot_be_read() -> None:
    def texts() -> Iterator[bytes]:
        yield b"some text"
        raise DataError("the file is gone")

    with pytest.raises(DataError, match=r"^the file is gone$"):
        PieceTokenizer.train("bpe", texts(), 300)


@pytest.mark.parametrize("model", ["", "%", "AAAA"])
def test_what_is_no_model(model: str) -> None:
    with pytest.raises(DataError, match="tokenizer 'bpe'"):
        tokenizer_from_json({"name": "bpe", "model": model})


def hostile(**options: Any) -> str:
    """A model of all the byte letters that SentencePiece makes with other options, in base64."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(**{
        "sentence_iterator": iter([*LETTERS, "ab", "abba"]), "model_writer": model, "vocab_size": 300,
        "character_coverage": 1.0, "normalization_rule_name": "identity", "add_dummy_prefix": False, "unk_id": 0,
        "bos_id": -1, "eos_id": -1, "hard_vocab_limit": False, "minloglevel": 2, **options,
    })  # fmt: skip
    return base64.b64encode(model.getvalue()).decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model_type": "word"}, "loses text"), ({"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"}, "")],
)
def test_a_model_that_loses_text_passes_no_door(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], message: str
) -> None:
    """A tokenizer that loses text is refused everywhere: as data.tokenizer_file, in a run, an export, and a corpus."""
    tokenizer = {"name": "bpe", "model": hostile(**options)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text.txt").write_text("some text")
    config = tmp_path / "config.toml"
    config.write_text("[data]\ntrain = 'text.txt'\nprepared = 'corpus'\n")
    given = ["--data.tokenizer_file", str(tmp_path / "tokenizer.json")]
    run, export = tiny.copied(tmp_path / "run"), tmp_path / "export"
    assert main(["export", str(run), "--to", "safetensors", "--out", str(export)]) == 0
    assert main(["prepare", str(config)]) == 0
    index = json.loads((tmp_path / "corpus" / "index.json").read_bytes())
    del index["checksum"]
    index |= {"tokenizer": tokenizer, "dtype": "uint16"}
    index["tokenizer_identity"] = hashlib.sha256(
        json.dumps(tokenizer, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    (tmp_path / "corpus" / "index.json").write_text(json.dumps(index | {"checksum": shards._digest(index)}))
    for directory in (run, export):
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    capsys.readouterr()
    for arguments, place in (
        (["prepare", config, "--data.prepared", tmp_path / "other", *given], "tokenizer.json"),
        (["prepare", config], "index.json"),
        (["generate", run], "run/tokenizer.json"),
        (["evaluate", export, "--text", tmp_path / "text.txt"], "export/tokenizer.json"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert place in said and "tokenizer 'bpe'" in said and message in said and said.count("\n") == 1


def test_a_word_that_does_not_come_back_is_refused() -> None:
    """Even where a model passes the test at its loading: this one, of whole words, knows the word that is tried."""
    words = iter([*LETTERS, "ab", LETTERS])
    model = hostile(sentence_iterator=words, model_type="word", max_sentencepiece_length=512)
    tokenizer = PieceTokenizer.from_base64("bpe", model)
    assert tokenizer.decode(tokenizer.encode(b"ab")) == b"ab"
    with pytest.raises(DataError, match=r"loses text: b'Boxes' does not come back"):
        tokenizer.encode(b"Boxes")


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(DataError, match="expected 0 to 299"):
        trained("bpe").decode([300])
