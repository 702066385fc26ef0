"""The ladder of references against its definition, written out naively."""

import gzip
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.data import references as module
from intlm.data.references import references
from intlm.errors import DataError


def naive(train: bytes, valid: bytes, order: int) -> float:
    grams = Counter(train[i : i + n] for n in range(1, order + 2) for i in range(len(train) - n + 1))
    total: Counter[bytes] = Counter()
    different: Counter[bytes] = Counter()
    for gram, count in grams.items():
        total[gram[:-1]] += count
        different[gram[:-1]] += 1

    def probability(history: bytes, byte: bytes) -> float:
        lower = probability(history[1:], byte) if history else 1 / 256
        if not total[history]:
            return lower
        return (grams[history + byte] + different[history] * lower) / (total[history] + different[history])

    each = [probability(valid[max(0, i - order) : i], valid[i : i + 1]) for i in range(len(valid))]
    return -sum(map(math.log2, each)) / len(each)


@pytest.mark.parametrize(("order", "name"), [(0, "unigram"), (1, "bigram"), (2, "trigram")])
def test_against_the_definition(order: int, name: str) -> None:
    train = b"the cat sat on the mat and the rat sat on the cat. \xff\x00\x00" * 3
    for valid in (b"the bat sat on a hat \x00\xff\xfe", b"a", b"th", b"zzz"):
        assert math.isclose(references(train, valid)[name], naive(train, valid, order), rel_tol=1e-12)


def test_gzip_and_arrays() -> None:
    train, valid = b"some text " * 9, b"some other text"
    result = references(train, valid)
    assert list(result) == ["unigram", "bigram", "trigram", "gzip -9"]
    assert result["gzip -9"] == len(gzip.compress(valid, 9, mtime=0)) * 8 / len(valid)
    assert references(np.frombuffer(train, np.uint8), np.frombuffer(valid, np.uint8)) == result


@pytest.mark.parametrize("length", [1, 2])  # of 3 there are too many to look at for each text
@given(text=st.binary(max_size=30) | st.text("ab c", max_size=200).map(str.encode))
def test_counts(length: int, text: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 7)
        counts = module._counts(np.frombuffer(text, np.uint8), length).reshape(-1)
    grams = Counter(text[i : i + length] for i in range(len(text) - length + 1))
    assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == {
        int.from_bytes(gram, "big"): count for gram, count in grams.items()
    }


def test_only_the_first_of_a_long_text_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAIN_LIMIT", 6)
    assert references(b"abcabcxyz", b"cab") == references(b"abcabc", b"cab")


def test_nothing_to_train_on_is_uniform_and_nothing_held_out_is_refused() -> None:
    assert references(b"", b"abc")["trigram"] == 8
    with pytest.raises(DataError, match="held-out"):
        references(b"abc", b"")
