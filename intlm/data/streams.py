"""Training text as parallel streams: which tokens each stream reads at which update, without any state.

The split is a ring of N tokens. Stream s of S starts at token floor(s·N / S), and at update u reads the T
tokens from start + u·T on. So a stream skips nothing. At the end of its share of the ring it goes on into its
neighbour's, past the last token it goes on at the first, and after ceil(N / T) updates every stream has read every
token. What is read is a function of the update alone, so to resume needs no more than its number.
"""

from typing import NamedTuple

import numpy as np

from intlm.data.shards import Split
from intlm.data.targets import AlikeContexts


class Batch(NamedTuple):
    """What an update reads."""

    tokens: np.ndarray  # uint16 [S, T]
    targets: np.ndarray  # uint16 [S, T, K], what is to be predicted after each token


class TokenStreams:
    """The streams of a split.

    Args:
        split: what is read.
        num_streams: S, at least 1. Of more streams than tokens some read the same.
        tokens_per_update: T, at least 1.
        targets: K, a power of two. 1: a token's target is the one that follows. More: see `AlikeContexts`.
    """

    def __init__(self, split: Split, num_streams: int, tokens_per_update: int, targets: int = 1) -> None:
        self._split = split
        self._tokens_per_update = tokens_per_update
        starts = [stream * split.tokens // num_streams for stream in range(num_streams)]
        self._positions = np.array(starts)[:, None] + np.arange(tokens_per_update + 1)  # [S, T + 1] int64
        self._alike = AlikeContexts(split, targets) if targets > 1 else None

    def batch(self, update: int) -> Batch:
        """What each stream reads at `update` (0 or more). A separator is a token like any other."""
        offset = update * self._tokens_per_update % self._split.tokens
        positions = (self._positions + offset) % self._split.tokens
        found = self._split.gather(positions).astype(np.uint16)
        follow = self._alike.after(positions[:, :-1]) if self._alike else found[:, 1:, None]
        return Batch(found[:, :-1], follow)
