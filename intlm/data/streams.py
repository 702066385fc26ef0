"""Training text as parallel streams: which tokens each stream reads at which update, without any state.

The split is a ring of N tokens. Stream s of S starts at token floor(s·N / S), and at update u reads the T
tokens from start + u·T on, and one more, which is only a target: it is the first that update u + 1 reads.
So a stream skips nothing. At the end of its share of the ring it goes on into its neighbour's, past the last
token it goes on at the first, and after ceil(N / T) updates every stream has read every token.

What is read is a function of the update alone, so to resume needs no more than its number.
"""

import numpy as np

from intlm.data.shards import Split
from intlm.errors import DataError


class TokenStreams:
    """The streams of a split.

    Args:
        split: what is read.
        num_streams: S, from 1 to the number of tokens; DataError where there are more streams than tokens.
        tokens_per_update: T, at least 1.
    """

    def __init__(self, split: Split, num_streams: int, tokens_per_update: int) -> None:
        if num_streams > split.tokens:
            raise DataError(
                f"{num_streams} streams of {split.tokens} tokens of text: expected at most one for each."
                " Lower eggroll.population, let more pairs share a text, or use more text for data.train"
            )
        self._split = split
        self._tokens_per_update = tokens_per_update
        starts = [stream * split.tokens // num_streams for stream in range(num_streams)]
        self._positions = np.array(starts)[:, None] + np.arange(tokens_per_update + 1)  # [S, T + 1] int64

    def batch(self, update: int) -> np.ndarray:
        """What each stream reads at `update` (0 or more), targets included: [S, T + 1] int32.

        Inputs are [:, :-1] and targets [:, 1:]. A separator is a token like any other.
        """
        offset = update * self._tokens_per_update % self._split.tokens
        return self._split.gather((self._positions + offset) % self._split.tokens).astype(np.int32)
