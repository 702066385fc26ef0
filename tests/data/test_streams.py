"""Streams are a ring read as the definition says, and skip nothing."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intlm.data.shards import Corpus
from intlm.data.streams import TokenStreams
from intlm.data.targets import AlikeContexts

MakeCorpus = Callable[..., Corpus]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=40), st.data())
def test_batches_are_as_defined(make_corpus: MakeCorpus, text: bytes, data: st.DataObject) -> None:
    split = make_corpus([text], shard_tokens=data.draw(st.sampled_from([7, 1000]))).split("train")
    ring = split.read(0, split.tokens).tolist()
    n, s = len(ring), data.draw(st.integers(1, 2 * len(ring)))  # of more streams than tokens some are the same
    t, u = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 100) | st.integers(0, 2**62))
    batch = TokenStreams(split, s, t).batch(u)
    assert batch.tokens.shape == (s, t) and batch.targets.shape == (s, t, 1)
    assert batch.tokens.dtype == batch.targets.dtype == np.uint16
    expected = [[ring[(k * n // s + u * t + i) % n] for i in range(t + 1)] for k in range(s)]
    assert batch.tokens.tolist() == [row[:-1] for row in expected]
    assert batch.targets[..., 0].tolist() == [row[1:] for row in expected]


@pytest.mark.parametrize("count", [2, 8])
def test_several_targets_are_those_of_the_positions_read(make_corpus: MakeCorpus, count: int) -> None:
    """The same tokens are read, and what follows the most alike contexts is predicted, past the end of the ring too."""
    split = make_corpus([b"abracadabra", b"barbarian"]).split("train")
    alike, n, read = AlikeContexts(split, count), split.tokens, set()
    for update in range(5):
        batch = TokenStreams(split, 3, 5, count).batch(update)
        positions = (np.arange(3)[:, None] * n // 3 + update * 5 + np.arange(5)) % n
        np.testing.assert_array_equal(batch.tokens, TokenStreams(split, 3, 5).batch(update).tokens)
        np.testing.assert_array_equal(batch.targets, alike.after(positions))
        assert batch.targets.dtype == np.uint16
        read |= set(positions.ravel().tolist())
    assert read == set(range(n))


def test_no_token_is_skipped_and_all_are_read(make_corpus: MakeCorpus) -> None:
    split = make_corpus([bytes(range(1, 24))]).split("train")  # with the separator, 24 different tokens
    streams = TokenStreams(split, 3, 5)
    updates = [streams.batch(update) for update in range(5)]  # ceil(24 / 5)
    for before, after in itertools.pairwise(updates):
        np.testing.assert_array_equal(before.targets[:, -1, 0], after.tokens[:, 0])
    read = np.concatenate([update.tokens for update in updates], axis=1)
    assert all(set(stream) == set(range(24)) for stream in read.tolist())
    assert any(set(stream) != set(range(24)) for stream in read[:, :20].tolist())
