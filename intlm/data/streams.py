"""Training text as parallel streams. Which tokens a stream reads at an update depends on the update's number alone.

The split is a ring of N tokens. Stream s of S starts at token floor(s·N / S), and at update u reads the T
tokens from start + u·T on. So a stream skips nothing. At the end of its share of the ring it continues in its
neighbour's, and after the last token with the first. After ceil(N / T) updates every stream has read every
token: no document is lost at the corpus's end. Resuming needs only the number of the update. With more streams than
tokens some streams read the same; a corpus that short is learnt by heart in any case.

In a mixture each corpus has its own streams, in the order of the corpora, and so its own positions: of S streams those
from floor(S·a / w) to floor(S·b / w). Here a is the sum of the shares before the corpus, b the sum up to and with it,
and w the sum of all shares.
"""

import time
from collections.abc import Sequence
from queue import Queue
from threading import Thread
from typing import NamedTuple, Protocol

import numpy as np

from intlm.data.shards import Split
from intlm.data.targets import AlikeContexts
from intlm.errors import ConfigError


class Batch(NamedTuple):
    """The text that one update reads."""

    tokens: np.ndarray  # uint16 [S, T]
    targets: np.ndarray  # uint16 [S, T, K], the tokens to be predicted after each token


class Streams(Protocol):
    """The training text of a run, one batch an update."""

    def batch(self, update: int) -> Batch:
        """Returns the tokens that each stream reads at `update` (0 or more). A separator is a token like any other."""


class TokenStreams:
    """The streams of a split.

    Args:
        split: the split that is read.
        num_streams: S, at least 1. With more streams than tokens some streams read the same.
        tokens_per_update: T, at least 1.
        targets: K, a power of two. 1: a token's target is the token that follows. More: see `AlikeContexts`.
        own: the numbers of the streams that are read; None: all.
    """

    def __init__(
        self, split: Split, num_streams: int, tokens_per_update: int, targets: int = 1, own: range | None = None
    ) -> None:
        self._split = split
        self._tokens_per_update = tokens_per_update
        own = range(num_streams) if own is None else own
        starts = [stream * split.tokens // num_streams for stream in own]
        self._positions = np.array(starts)[:, None] + np.arange(tokens_per_update + 1)  # [S, T + 1] int64
        self._alike = AlikeContexts(split, targets) if targets > 1 else None

    def batch(self, update: int) -> Batch:
        """Returns the tokens that each stream reads at `update` (0 or more). A separator is a token like any other."""
        offset = update * self._tokens_per_update % self._split.tokens
        positions = (self._positions + offset) % self._split.tokens
        tokens = self._split.gather(positions).astype(np.uint16)
        follow = self._alike.after(positions[:, :-1]) if self._alike else tokens[:, 1:, None]
        return Batch(tokens[:, :-1], follow)


class MixedStreams:
    """The streams of several splits, those of the first split first.

    Args:
        splits: each with its share, at least 1. ConfigError where a share is less than one of the streams.
        num_streams, tokens_per_update, targets, own: see `TokenStreams`.

    Attributes:
        counts: the streams of each split.
    """

    def __init__(
        self,
        splits: Sequence[tuple[int, Split]],
        num_streams: int,
        tokens_per_update: int,
        targets: int = 1,
        own: range | None = None,
    ) -> None:
        ends = np.cumsum([share for share, _ in splits]) * num_streams // sum(share for share, _ in splits)
        self.counts: list[int] = np.diff(ends, prepend=0).tolist()
        for (share, _), count in zip(splits, self.counts, strict=True):
            if not count:
                raise ConfigError(
                    f"data.mixture: a share of {share} is less than one of the {num_streams} texts of an update "
                    "(eggroll.population / 2 / eggroll.member.group_size): expected larger shares or more texts"
                )
        own = range(num_streams) if own is None else own
        self._parts = []
        self._nothing = Batch(
            np.empty((0, tokens_per_update), np.uint16), np.empty((0, tokens_per_update, targets), np.uint16)
        )
        for (_, split), count, end in zip(splits, self.counts, ends.tolist(), strict=True):
            first = end - count
            part = range(max(own.start, first) - first, min(own.stop, end) - first)
            if part:
                self._parts.append(TokenStreams(split, count, tokens_per_update, targets, part))

    def batch(self, update: int) -> Batch:
        """Returns the tokens that each stream reads at `update` (0 or more)."""
        parts = [part.batch(update) for part in self._parts] or [self._nothing]
        return Batch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class ReadAhead:
    """The batches of updates from `first` to `last` - 1, read by a thread before they are asked for.

    Attributes:
        waited: seconds that `next` has waited for the last batch.
    """

    DEPTH = 2  # batches that wait to be asked for

    def __init__(self, streams: Streams, first: int, last: int) -> None:
        self.waited = 0.0
        self._queue: Queue[Batch | Exception] = Queue(self.DEPTH)
        self._stopped = False

        def read() -> None:
            try:
                for update in range(first, last):
                    if self._stopped:
                        return
                    self._queue.put(streams.batch(update))
            except Exception as error:  # to be raised where the batch is asked for
                self._queue.put(error)

        self._thread = Thread(target=read, daemon=True)
        self._thread.start()

    def next(self) -> Batch:
        """Returns the batch of the next update. Raises the exception that reading it raised."""
        began = time.monotonic()
        item = self._queue.get()
        self.waited = time.monotonic() - began
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stop reading."""
        self._stopped = True
        while self._thread.is_alive():
            while not self._queue.empty():
                self._queue.get()
            self._thread.join(0.01)
