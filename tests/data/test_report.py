"""The report on a corpus describes its contents."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intlm.data import report as module
from intlm.data.report import length_counts, report, summary, token_counts
from intlm.data.shards import Corpus
from intlm.data.tokenizers.alphabet import AlphabetTokenizer

MakeCorpus = Callable[..., Corpus]
DOCUMENTS = [b"a", b"abc", b"aabb", b"abababa\x1bzz"]


def test_it_says_what_is_there(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(DOCUMENTS, AlphabetTokenizer(b"abcz"))
    text = report(corpus, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "'a'", "9", "40.91%"] in lines and ["5", "'z'", "2", "9.09%"] in lines
    assert ["1", "(escape)", "3", "13.64%"] in lines  # two of them digits, as one of the a
    assert "train: 5 of 5 tokens occur" in text
    assert "train, from token 1 on:\na\n" in text and "abababa\u241bzz" in text  # nothing moves the cursor
    assert [line.split() for line in summary(corpus).splitlines()][2] == ["train", "4", "26", "18", "0.818"]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_counts(make_corpus: MakeCorpus, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    split = make_corpus(DOCUMENTS).split("train")
    tokens = split.read(0, split.tokens)
    assert token_counts(split).tolist() == np.bincount(tokens, minlength=256).tolist()
    assert length_counts(split).tolist() == [1, 1, 1, 1]  # of 1, 2-3, 4-7 and 8-15 tokens
