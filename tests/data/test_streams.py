"""Streams are a ring read as the definition says, and skip nothing."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intlm.data.shards import Corpus
from intlm.data.streams import TokenStreams
from intlm.errors import DataError

MakeCorpus = Callable[..., Corpus]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=40), st.data())
def test_batches_are_as_defined(make_corpus: MakeCorpus, text: bytes, data: st.DataObject) -> None:
    split = make_corpus([text], shard_tokens=data.draw(st.sampled_from([7, 1000]))).split("train")
    ring = split.read(0, split.tokens).tolist()
    n, s = len(ring), data.draw(st.integers(1, len(ring)))
    t, u = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 100) | st.integers(0, 2**62))
    batch = TokenStreams(split, s, t).batch(u)
    assert batch.shape == (s, t + 1) and batch.dtype == np.int32
    assert batch.tolist() == [[ring[(k * n // s + u * t + i) % n] for i in range(t + 1)] for k in range(s)]


def test_no_token_is_skipped_and_all_are_read(make_corpus: MakeCorpus) -> None:
    split = make_corpus([bytes(range(1, 24))]).split("train")  # with the separator, 24 different tokens
    streams = TokenStreams(split, 3, 5)
    updates = [streams.batch(update) for update in range(5)]  # ceil(24 / 5)
    for before, after in itertools.pairwise(updates):
        np.testing.assert_array_equal(before[:, -1], after[:, 0])
    read = np.concatenate([update[:, :-1] for update in updates], axis=1)
    assert all(set(stream) == set(range(24)) for stream in read.tolist())
    assert any(set(stream) != set(range(24)) for stream in read[:, :20].tolist())


def test_more_streams_than_tokens(make_corpus: MakeCorpus) -> None:
    split = make_corpus([b"abc"]).split("train")
    TokenStreams(split, 4, 1)
    with pytest.raises(DataError, match=r"5 streams of 4 tokens.*eggroll\.population"):
        TokenStreams(split, 5, 1)
