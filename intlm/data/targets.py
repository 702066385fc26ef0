"""Several target tokens for each context instead of the one that followed it, which reduces noise in the loss.

Which of the likely tokens comes next is chance, and that chance is most of the difference between the losses on a few
tokens of text. The text has other contexts that end in the same tokens; the tokens that followed them were drawn from
nearly the same distribution, so their mean says more about it than one token does. Contexts are sorted by their last
token, then the one before it, and so on: neighbours in that order are those most alike, as in the Burrows-Wheeler
transform and in the unbounded contexts of PPM* (Cleary and Teahan, 1997).
"""

import numpy as np
from tqdm import tqdm

from intlm.data.shards import Split

SEGMENT = 1 << 26  # tokens that are sorted together, which takes 2 GB of memory


class AlikeContexts:
    """The contexts of a split, in order. Keeps 6 bytes a token in memory.

    Contexts are compared by their last tokens, as many as fit into 64 bits; equal ones stay in the order of the text,
    which is a ring. A split of more than 2^26 tokens is sorted in segments of 2^26 tokens.

    Args:
        split: the text.
        count: K >= 2, even.
    """

    def __init__(self, split: Split, count: int) -> None:
        n, bits = split.tokens, max(1, (split.vocab_size - 1).bit_length())
        self._rank = np.empty(n, np.int32)  # of each context in its segment
        self._next = np.empty(n, np.uint16)  # the tokens that follow a segment's contexts, in their order
        self._count = count
        hidden = n < 1 << 22 or None  # a second; None: unless stderr is a terminal
        for start in tqdm(range(0, n, SEGMENT), "sorting contexts", leave=False, disable=hidden):
            size, depth = min(SEGMENT, n - start), 64 // bits
            ring = split.gather(np.arange(start - depth + 1, start + size + 1) % n)
            key = np.zeros(size, np.uint64)
            for back in range(depth):
                tokens = ring[depth - 1 - back : depth - 1 - back + size].astype(np.uint64)
                key |= tokens << np.uint64(bits * (depth - 1 - back))
            order = np.argsort(key, kind="stable").astype(np.int32)
            self._rank[start : start + size][order] = np.arange(size, dtype=np.int32)
            self._next[start : start + size] = ring[depth:][order]

    def after(self, positions: np.ndarray) -> np.ndarray:
        """Returns the tokens after the K contexts that lie nearest in the order to those ending at these positions.

        positions: integers S, below the number of tokens. Returns uint16 S + [K]: of the contexts in their order, K/2
        before this one, this one, and K/2 - 1 after it; at an end of the order the K nearest the end. Where there are
        fewer than K contexts the last is taken again.
        """
        n = len(self._rank)
        segment = positions // SEGMENT * SEGMENT
        size = np.minimum(SEGMENT, n - segment)
        first = np.clip(self._rank[positions] - self._count // 2, 0, np.maximum(size - self._count, 0))
        index = np.minimum(first[..., None] + np.arange(self._count), size[..., None] - 1)
        return self._next[segment[..., None] + index]
