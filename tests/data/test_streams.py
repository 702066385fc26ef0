"""Streams are a ring read as the definition says, and skip nothing."""

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intlm.data.shards import Corpus
from intlm.data.streams import Batch, MixedStreams, ReadAhead, TokenStreams
from intlm.data.targets import AlikeContexts
from intlm.errors import ConfigError

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
    """The same tokens are read; targets are the tokens after the most similar contexts, even past the ring's end."""
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.data())
def test_a_mixture_is_the_streams_of_each(make_corpus: MakeCorpus, data: st.DataObject) -> None:
    """A mixture divides streams by integer shares, each corpus at positions of its own."""
    texts = data.draw(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4))
    splits = [make_corpus([text], name=f"corpus{i}").split("train") for i, text in enumerate(texts)]
    shares = data.draw(st.lists(st.integers(1, 9), min_size=len(splits), max_size=len(splits)))
    s, t, k = data.draw(st.integers(9 * 4, 60)), data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2]))
    mixed = MixedStreams(list(zip(shares, splits, strict=True)), s, t, k)
    assert sum(mixed.counts) == s
    assert all(abs(n - s * share / sum(shares)) < 1 for n, share in zip(mixed.counts, shares, strict=True))
    for update in (0, data.draw(st.integers(0, 1000))):
        batch = mixed.batch(update)
        assert batch.tokens.shape == (s, t) and batch.targets.shape == (s, t, k)
        assert batch.tokens.dtype == batch.targets.dtype == np.uint16
        first = 0
        for split, count in zip(splits, mixed.counts, strict=True):
            alone = TokenStreams(split, count, t, k).batch(update)
            np.testing.assert_array_equal(batch.tokens[first : first + count], alone.tokens)
            np.testing.assert_array_equal(batch.targets[first : first + count], alone.targets)
            first += count


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), (0, 2, 5, 6, 7), (0, 0, 7, 7)])
def test_parts_of_the_streams_are_the_whole(make_corpus: MakeCorpus, cuts: tuple[int, ...], targets: int) -> None:
    """The parts of a mixture that several processes read are together what one process reads; a part may be empty."""
    first, second = make_corpus([b"abcdefgh"], name="a"), make_corpus([b"xyz"], name="b")
    mixture = [(4, first.split("train")), (3, second.split("train"))]
    whole = MixedStreams(mixture, 7, 5, targets)
    parts = [MixedStreams(mixture, 7, 5, targets, range(a, b)) for a, b in itertools.pairwise(cuts)]
    assert all(part.counts == whole.counts == [4, 3] for part in parts)
    for update in (0, 3):
        read = zip(*(part.batch(update) for part in parts), strict=True)
        for found, expected in zip(read, whole.batch(update), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)
            assert all(some.dtype == np.uint16 for some in found)


def test_a_share_of_less_than_a_text_is_refused(make_corpus: MakeCorpus) -> None:
    split = make_corpus([b"abc"]).split("train")
    assert MixedStreams([(3, split), (1, split)], 4, 1).counts == [3, 1]
    with pytest.raises(ConfigError, match=r"data\.mixture: a share of 1 is less than one of the 3 texts"):
        MixedStreams([(1, split), (3, split)], 3, 1)


class Slow:
    """Streams whose batches name their update; some updates fail."""

    def __init__(self, seconds: float, fails_at: int = -1) -> None:
        self.seconds, self.fails_at, self.read = seconds, fails_at, 0

    def batch(self, update: int) -> Batch:
        time.sleep(self.seconds)
        if update == self.fails_at:
            raise OSError("the disk is gone")
        self.read += 1
        return Batch(np.array([[update]]), np.array([[[update]]]))


def test_batches_are_read_ahead_in_their_order(make_corpus: MakeCorpus) -> None:
    streams = Slow(0)
    ahead = ReadAhead(streams, 3, 9)
    time.sleep(0.2)
    assert streams.read == ReadAhead.DEPTH + 1  # one is in the hand of the thread
    assert [int(ahead.next().tokens[0, 0]) for _ in range(6)] == [3, 4, 5, 6, 7, 8]
    ahead.close()
    split = make_corpus([bytes(range(1, 24))]).split("train")
    ahead, streams_of_split = ReadAhead(TokenStreams(split, 3, 5), 7, 9), TokenStreams(split, 3, 5)
    for update in (7, 8):
        np.testing.assert_array_equal(ahead.next().tokens, streams_of_split.batch(update).tokens)
    ahead.close()


def test_waiting_is_measured() -> None:
    ahead = ReadAhead(Slow(0.2), 0, 9)
    ahead.next()
    assert ahead.waited >= 0.1
    time.sleep(0.6)
    ahead.next()
    assert ahead.waited < 0.1
    ahead.close()


def test_reading_ahead_fails_where_it_is_asked_for_and_ends_when_told() -> None:
    before = threading.active_count()
    ahead = ReadAhead(Slow(0, fails_at=1), 0, 9)
    ahead.next()
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.next()
    ahead.close()
    ahead = ReadAhead(Slow(0), 0, 10**9)  # whose thread waits for room
    ahead.close()
    assert threading.active_count() == before
