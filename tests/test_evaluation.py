"""intlm.evaluation: which tokens are counted, and in which context; the result depends on model and text alone."""

import bz2
import gzip
import json
import lzma
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from intlm.cli import main
from intlm.data.sources import Source
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.errors import DataError
from intlm.evaluation import (
    BIN_STARTS,
    FRACTION_BITS,
    SEGMENT,
    WARM_UP,
    Document,
    Evaluation,
    Positions,
    count_words,
    evaluate,
    exact_losses,
    measure,
    split_documents,
    text_documents,
    total,
)
from intlm.language_model import BLOCK, LanguageModel
from intlm.model import SEPARATOR
from intlm.run import load, open_corpus, open_run

LENGTHS = [
    1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 200, SEGMENT - 1, SEGMENT, SEGMENT + 1, SEGMENT + WARM_UP, 2 * SEGMENT,
    2 * SEGMENT + 1, 3 * SEGMENT - 1,
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny.make_model()


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    """Documents of every length that is near an edge."""
    rng = np.random.default_rng(1)
    return [rng.integers(1, 255, length) for length in LENGTHS]


@pytest.fixture(scope="module")
def whole(model: LanguageModel, texts: list[np.ndarray]) -> Evaluation:
    return evaluate(model, texts)


class Unigram(LanguageModel):
    """A model that predicts the same after any token, and records its inputs."""

    def __init__(self, like: LanguageModel) -> None:
        self.architecture, self.tokenizer, self.parameters = like.architecture, like.tokenizer, like.parameters
        self._losses = like._losses
        self.logits_of_all = np.random.default_rng(2).integers(-3000, 3000, 256).astype(np.int16)

    def read(self, tokens: np.ndarray, states: jax.Array) -> tuple[np.ndarray, jax.Array]:
        return np.broadcast_to(self.logits_of_all, (*tokens.shape, 256)), states


def direct(model: LanguageModel, text: np.ndarray) -> int:
    """The evaluation protocol, written directly: one segment after another."""
    total = 0
    for first in range(0, len(text), SEGMENT):
        segment = text[first : first + SEGMENT]
        read = np.concatenate([[SEPARATOR], text[max(0, first - WARM_UP) : first + len(segment) - 1]])
        logits, _ = model.read(read[None], model.start(1))
        total += int(model.integer_losses(logits[0, -len(segment) :], segment).sum())
    return total


def test_every_token_is_counted_once(model: LanguageModel, texts: list[np.ndarray]) -> None:
    unigram = Unigram(model)
    of_each = exact_losses(np.broadcast_to(unigram.logits_of_all, (256, 256)), np.arange(256))
    integer = unigram.integer_losses(np.broadcast_to(unigram.logits_of_all, (256, 256)), np.arange(256))
    for text in texts:
        result = evaluate(unigram, [text], 3)
        assert result.tokens == len(text)
        assert result.integer_loss == integer[text].sum()
        assert math.isclose(result.bits, of_each[text].sum(), rel_tol=1e-12)


def test_the_batch_changes_no_digit(model: LanguageModel, texts: list[np.ndarray], whole: Evaluation) -> None:
    for batch in (1, 3):
        assert evaluate(model, texts, batch) == whole
    assert evaluate(model, reversed(texts), 3) == whole
    # Many sums of sums, where floats would round differently.
    rng = np.random.default_rng(4)
    short = [rng.integers(1, 255, length) for length in rng.integers(1, 9, 600)]
    assert len({evaluate(Unigram(model), short, batch) for batch in (1, 2, 3, 5, 8, 64)}) == 1


def test_the_protocol(model: LanguageModel, texts: list[np.ndarray], whole: Evaluation) -> None:
    assert (whole.tokens, whole.bytes) == (sum(LENGTHS), sum(LENGTHS))
    assert whole.integer_loss == sum(direct(model, text) for text in texts)


def test_a_short_document_is_read_as_the_model_reads_it(model: LanguageModel) -> None:
    """A short document's losses are the model's; bytes are counted in the text, whatever its tokens."""
    for tokenizer in (ByteTokenizer(), AlphabetTokenizer(b" abc")):
        model = tiny.make_model(tokenizer)
        for text in (b"a", b"abc cab\x00\xff", bytes(range(256)) * 2):
            result = evaluate(model, [model.tokens(text)], 1)
            assert result.integer_loss == model.losses(text).sum()
            assert result.tokens == len(model.tokens(text)) == len(model.losses(text))
            assert result.bytes == len(text)
            assert math.isclose(result.bits, exact_losses(model.logits(text), model.tokens(text)).sum(), rel_tol=1e-12)


def test_documents(model: LanguageModel, texts: list[np.ndarray], whole: Evaluation) -> None:
    """Documents are independent: each has the same losses as alone, and their sums are exactly those of the text."""
    alone = [evaluate(model, [text], 3) for text in texts]
    assert total(alone) == whole
    for batch in (1, 3, 64):
        each = list(measure(model, texts, batch))
        assert [one for _, one in each] == alone
        assert all(document.tokens is text for (document, _), text in zip(each, texts, strict=True))
    empty = np.zeros(0, np.int64)
    some = [one for _, one in measure(model, [empty, texts[0], empty, empty, texts[5], empty], 2)]
    nothing = Evaluation(0, 0, 1, 0, 0)
    assert some == [nothing, alone[0], nothing, nothing, alone[5], nothing]
    assert list(measure(model, [])) == [] and [one for _, one in measure(model, [empty])] == [nothing]


def test_sums_are_exact_beyond_64_bits() -> None:
    most = Evaluation(1 << 40, 1 << 40, 1 << 40, (1 << 90) + 1, 1 << 50)
    assert total([most] * 3) == Evaluation(3 << 40, 3 << 40, 3 << 40, 3 * ((1 << 90) + 1), 3 << 50)


def test_what_is_counted_may_be_another_text(model: LanguageModel, texts: list[np.ndarray]) -> None:
    alone = evaluate(model, [texts[5]])
    other = evaluate(model, [Document(texts[5], b"two words")])
    assert other == alone._replace(bytes=9, words=2)


def test_words() -> None:
    counts = {b"": 1, b"a": 1, b"a b": 2, b" a \n\t b ": 4, "é\u3000日本".encode(): 2, b"\xff \xff": 2}
    for text, count in counts.items():
        assert count_words(text) == count, text


def test_positions(model: LanguageModel, texts: list[np.ndarray], whole: Evaluation) -> None:
    """Each token is at its position of its document, whatever segment it is read in."""
    assert BIN_STARTS[:14].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]
    assert (np.diff(BIN_STARTS) > 0).all() and 1024 in BIN_STARTS and BIN_STARTS[-1] > 1 << 50
    expected = np.zeros((2, len(BIN_STARTS)), object)
    for text in texts:
        for first in range(0, len(text), SEGMENT):
            segment = text[first : first + SEGMENT]
            read = np.concatenate([[SEPARATOR], text[max(0, first - WARM_UP) : first + len(segment) - 1]])
            logits, _ = model.read(read[None], model.start(1))
            losses = np.rint(exact_losses(logits[0, -len(segment) :], segment) * 2**FRACTION_BITS)
            for position, loss in enumerate(losses.tolist(), start=first + 1):
                at = max(number for number, start in enumerate(BIN_STARTS) if start <= position)
                expected[0, at] += 1
                expected[1, at] += int(loss)
    for batch in (1, 5, 64):
        positions = Positions()
        assert total(one for _, one in measure(model, texts, batch, positions)) == whole
        assert positions.tokens.tolist() == expected[0].tolist()
        assert positions.loss.tolist() == expected[1].tolist()
    assert sum(expected[1]) == whole.loss


def test_progress(model: LanguageModel, texts: list[np.ndarray]) -> None:
    steps: list[float] = []
    list(measure(model, texts, 3, advance=steps.append))
    assert math.isclose(sum(steps), sum(LENGTHS)) and len(steps) > 50


def test_the_integer_loss_is_near_the_exact_one(whole: Evaluation) -> None:
    """Its tables are within 2/256 of a bit for each token; here their errors nearly cancel."""
    assert abs(whole.integer_loss / 256 - whole.bits) < whole.tokens * 2 / 256
    assert abs(whole.integer_loss / 256 - whole.bits) < whole.tokens * 0.002


def test_exact_losses() -> None:
    rng = np.random.default_rng(3)
    for scale in (0, 1, 300, 2**14):
        logits = rng.integers(-scale, scale, (40, 100), endpoint=True).astype(np.int16)
        targets = rng.integers(0, 100, 40)
        in_bits = logits.astype(np.float64) / 256
        likely = np.exp2(in_bits - in_bits.max(axis=1, keepdims=True))
        expected = -np.log2(likely / likely.sum(axis=1, keepdims=True) + 1e-300)[np.arange(40), targets]
        np.testing.assert_allclose(exact_losses(logits, targets), expected, rtol=1e-12)
    assert exact_losses(np.zeros((1, 8), np.int16), np.array([5])).tolist() == [3.0]
    furthest = np.array([[-(2**15), 2**15 - 1]], np.int16)
    np.testing.assert_allclose(exact_losses(furthest, np.array([0])), (2**16 - 1) / 256)


def test_a_loss_of_two_halves() -> None:
    """Bits from the integer loss: a token of probability 1/2 costs one bit, which is 256."""
    logits, targets = np.array([[0, 0], [256, 0]], np.int16), np.array([0, 0])
    losses = tiny.make_model(AlphabetTokenizer(b"a")).integer_losses(logits, targets)
    assert losses.tolist() == [256, 150]  # log2(1 + 1/2) = 0.585 bits


def test_summary() -> None:
    evaluation = Evaluation(tokens=4, bytes=8, words=3, loss=12 << FRACTION_BITS, integer_loss=12 * 256 + 64)
    assert evaluation.summary() == {
        "bits_per_byte": 1.5,
        "bits_per_byte_integer": 12.25 / 8,
        "bits_per_token": 3.0,
        "bits_per_token_integer": 12.25 / 4,
        "perplexity_per_token": 8.0,
        "perplexity_per_byte": 2**1.5,
        "perplexity_per_word": 16.0,
        "tokens": 4,
        "bytes": 8,
        "words": 3,
    }
    far = evaluation._replace(words=1, loss=1024 << FRACTION_BITS).summary()
    assert far["perplexity_per_word"] is None  # in JSON there is no infinity


def test_a_split_cut_at_a_number_of_tokens() -> None:
    config, tokenizer = open_run(tiny.trained().directory)
    split = open_corpus(config, tokenizer).split("valid")
    (whole,) = split_documents(split)
    assert len(whole) == split.tokens - 1
    for limit in (1, 700, split.tokens + 5):
        (part,) = split_documents(split, limit)
        assert part.tolist() == whole[:limit].tolist()
    assert list(split_documents(split, 0)) == []


def test_documents_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one##two####three##")
    tokenizer = ByteTokenizer()

    def read(separator: str) -> list[bytes]:
        return [tokenizer.decode(tokens) for tokens in text_documents(Source(str(path), separator), tokenizer)]

    assert read("##") == [b"one", b"two", b"three"]
    assert read("") == [path.read_bytes()]
    path.write_bytes(b"####")
    with pytest.raises(DataError, match=r"a\.txt: no text in it"):
        read("##")


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, float]:
    """Returns what `intlm evaluate --json` prints."""
    capsys.readouterr()
    assert main(["evaluate", str(tiny.trained().directory), "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out split, by name and as a text file, in any batch; the keys that scripts rely on."""
    held_out = (tiny.HOME / "text.txt").read_bytes()[-3000:]
    (tmp_path / "valid.txt").write_bytes(held_out)
    figures = evaluated(capsys)
    assert {"bits_per_byte", "bits_per_byte_integer", "perplexity_per_token", "tokens", "bytes"} <= set(figures)
    assert figures["bytes"] == figures["tokens"] == 3000
    assert abs(figures["bits_per_byte"] - figures["bits_per_byte_integer"]) < 0.01
    for arguments in (
        ["--split", "valid"], ["--batch", 1], ["--batch", 5], ["--text", tmp_path / "valid.txt"],
        ["--text", tmp_path / "valid.txt", "--batch", 2],
    ):  # fmt: skip
        assert evaluated(capsys, *arguments) == figures, arguments
    train = evaluated(capsys, "--split", "train")
    assert train["bytes"] == len((tiny.HOME / "text.txt").read_bytes()) - 3000

    assert main(["evaluate", str(tiny.trained().directory)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("valid split") and f"{figures['bits_per_byte']:.4f}" in table and "3,000" in table


def test_any_bytes_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes outside the alphabet cost what their escapes do. Code is text: it is not run, as a recipe would be."""
    (tmp_path / "raw").write_bytes(bytes(range(256)))
    figures = evaluated(capsys, "--text", tmp_path / "raw")
    assert figures["bytes"] == 256 and figures["tokens"] > 1000
    assert figures["bits_per_byte"] > figures["bits_per_token"]

    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef documents(): yield b'a'\n")
    assert evaluated(capsys, "--text", tmp_path / "code.py")["bytes"] == (tmp_path / "code.py").stat().st_size
    assert not (tmp_path / "ran").exists()


def test_each_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of each document: their sums are the whole; the table shows the best and the worst; a file is replaced
    whole."""
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_bytes(tiny.words(20 * number + 1, number) + b"\n" + b"z" * number)
    (tmp_path / "texts" / "5.txt").write_bytes(b"\x1b[31m\xff\n \t red")
    lines_file, arguments = tmp_path / "a.jsonl", ["--text", tmp_path / "texts"]
    lines_file.write_text("older\n")
    figures = evaluated(capsys, *arguments, "--documents", lines_file)
    assert figures == evaluated(capsys, *arguments)
    lines = [json.loads(line) for line in lines_file.read_text().splitlines()]
    assert [line["document"] for line in lines] == list(range(9))
    assert [line["bytes"] for line in lines] == [(tmp_path / "texts" / f"{n}.txt").stat().st_size for n in range(9)]
    for name in ("bytes", "tokens", "words"):
        assert sum(line[name] for line in lines) == figures[name]
    whole = sum(line["bits_q40"] for line in lines)
    assert whole / 2**FRACTION_BITS / figures["bytes"] == figures["bits_per_byte"]
    for line in lines:
        assert line["bits"] == line["bits_q40"] / 2**FRACTION_BITS
        assert line["bits_per_byte"] == line["bits"] / line["bytes"]
    assert lines[5]["begins"] == "␛[31m\ufffd red"
    assert not list(tmp_path.glob(".*"))

    run = str(tiny.trained().directory)
    assert main(["evaluate", run, *map(str, arguments), "--documents", str(lines_file)]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split("  ")[0] == "of 9 documents" and len(table) == 8
    ranked = sorted(lines, key=lambda line: line["bits_per_byte"])
    assert [int(row.split()[0]) for row in table[2:]] == [line["document"] for line in ranked[:3] + ranked[-3:]]
    assert [float(row.split()[2]) for row in table[2:]] == sorted(float(row.split()[2]) for row in table[2:])


def test_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loss.png"
    assert evaluated(capsys, "--picture", path) == evaluated(capsys)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(tiny.trained().directory), "--picture", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"\npicture: {path}\n")


def test_wikitext(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Detokenised text is measured; words and bytes are the original's (tests/test_harness.py has the harness's)."""
    page, other = " = A b = \n\n a , ab @-@ ba\n", " = B = \n\n ba \n"
    (tmp_path / "wiki").write_text(f" \n{page}{other}")
    figures = evaluated(capsys, "--text", tmp_path / "wiki", "--wikitext")
    model = load(tiny.trained().directory)
    texts = (" = A b =\n\na, ab-ba", " = B =\n\nba\n")
    plain = evaluate(model, [model.tokenizer.encode(text.encode()) for text in texts])
    assert (figures["tokens"], figures["bytes"], figures["words"]) == (plain.tokens, len(page + other) - 1, 10 + 6)
    assert figures["bits_per_byte"] * figures["bytes"] == pytest.approx(plain.bits, rel=1e-12)


def test_wikitext_counts_what_stands_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Carriage returns and bytes that are not UTF-8 are counted too."""
    pages = b" = A = \r\nab\rba \xff\r\n", b" = B = \r\n\x85 \xe2\x82 ba\r\n"
    (tmp_path / "wiki").write_bytes(b"\n".join(pages))
    figures = evaluated(capsys, "--text", tmp_path / "wiki", "--wikitext")
    assert figures["bytes"] == sum(map(len, pages))
    model = load(tiny.trained().directory)
    assert figures["tokens"] == evaluate(model, [model.tokenizer.encode(page) for page in pages]).tokens


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--text", "{0}/empty.txt"], ["{0}/empty.txt", "no text in it"]),
        (["--text", "{0}/absent.txt"], ["{0}/absent.txt", "no such"]),
        (["--text", "{0}/folder"], ["{0}/folder"]),
        (["--wikitext"], ["--wikitext", "--text FILE"]),
        (["--wikitext", "--text", "{0}/plain.txt"], ["{0}/plain.txt", "not WikiText", "' = Title = '"]),
        (["--documents", "{0}/absent/a.jsonl"], ["--documents = {0}/absent/a.jsonl", "an existing directory"]),
        (["--picture", "{0}/folder"], ["--picture = {0}/folder", "expected a file"]),
    ],
)
def test_what_cannot_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], expected: Sequence[str]
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.txt").write_text("a\n = = b = =\n")
    words = [word.format(tmp_path) for word in arguments]
    assert main(["evaluate", str(tiny.trained().directory), *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert all(word.format(tmp_path) in said.err for word in expected), said.err


def test_one_text_has_one_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text has the same figure as text, compressed, as rows of either kind, and as a prepared corpus."""
    texts = ["abba baab bab", "bbb a ab"]
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "folder" / f"{number}.txt").write_text(text)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(rows.encode()))
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows[0].parquet")
    expected = evaluated(capsys, "--text", tmp_path / "folder")
    assert (expected["bytes"], expected["words"]) == (sum(map(len, texts)), 6)
    for name in ("rows.jsonl", "rows.json.gz", "rows[0].parquet"):
        assert evaluated(capsys, "--text", tmp_path / name) == expected
    (tmp_path / "text.txt.xz").write_bytes(lzma.compress(texts[0].encode()))
    (tmp_path / "hub:text").write_text(texts[0])
    assert evaluated(capsys, "--text", tmp_path / "text.txt.xz") == evaluated(capsys, "--text", tmp_path / "hub:text")
    run = str(tiny.trained().directory)
    (tmp_path / "text.zip").write_bytes(b"PK\x03\x04")
    for command in (["evaluate"], ["simulate", "--on", "host"], ["simulate", "--on", "host", "--tokens", "5"]):
        for name, what in (("text.zip", "holds a zip archive"), ("absent", "no such")):
            assert main([command[0], run, *command[1:], "--text", str(tmp_path / name)]) == 2
            assert f"{name}: {what}" in capsys.readouterr().err


def test_compressed_wikitext(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wiki").write_bytes(b" = Title = \n\n a @-@ b \n")
    (tmp_path / "wiki.bz2").write_bytes(bz2.compress((tmp_path / "wiki").read_bytes()))
    figures = [evaluated(capsys, "--wikitext", "--text", tmp_path / name) for name in ("wiki", "wiki.bz2")]
    assert figures[0] == figures[1]
