"""The targets of alike contexts are what the definition says, on texts small enough to sort in Python."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intlm.data import targets
from intlm.data.shards import Corpus
from intlm.data.targets import AlikeContexts
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer

MakeCorpus = Callable[..., Corpus]
FEW = st.lists(st.sampled_from(b"ab"), max_size=40).map(bytes)
REPEATED = st.builds(lambda unit, times: unit * times, st.binary(max_size=3), st.integers(1, 12))
ANY = st.binary(max_size=30)


def defined(ring: list[int], vocabulary: int, count: int, segment: int) -> list[list[int]]:
    """The targets after each token of a ring: its contexts sorted by their last token, the one before it, and so on."""
    n, depth = len(ring), 64 // max(1, (vocabulary - 1).bit_length())
    targets = []
    for position in range(n):
        start = position // segment * segment
        order = sorted(
            range(start, min(start + segment, n)), key=lambda last: [ring[(last - back) % n] for back in range(depth)]
        )
        first = max(0, min(order.index(position) - count // 2, len(order) - count))
        nearest = order[first : first + count]
        nearest += nearest[-1:] * (count - len(nearest))  # fewer contexts than targets: the last again
        targets.append([ring[(last + 1) % n] for last in nearest])
    return targets


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    st.lists(FEW | REPEATED | ANY, min_size=1, max_size=3).filter(any),  # a text of no bytes is refused
    st.sampled_from([ByteTokenizer(), AlphabetTokenizer(b"ab"), AlphabetTokenizer(bytes(range(256)))]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([3, 8, targets.SEGMENT]),
)
def test_targets_are_as_defined(
    make_corpus: MakeCorpus, documents: list[bytes], tokenizer: ByteTokenizer, count: int, segment: int
) -> None:
    split = make_corpus(documents, tokenizer, shard_tokens=7).split("train")
    ring = split.read(0, split.tokens).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "SEGMENT", segment)
        result = AlikeContexts(split, count).after(np.arange(split.tokens))
    assert result.dtype == np.uint16
    assert result.tolist() == defined(ring, split.vocab_size, count, segment)
    assert all(ring[(i + 1) % len(ring)] in row for i, row in enumerate(result.tolist()))


def test_by_hand(make_corpus: MakeCorpus) -> None:
    """Targets in the middle of the order, at its ends, and more of them than there are contexts."""
    split = make_corpus([b"abacab"]).split("train")  # 0 a b a c a b
    targets = AlikeContexts(split, 2).after(np.array([[1, 5], [3, 0]]))
    a, b, c, end = (split.read(i, 1)[0] for i in (1, 2, 4, 0))
    # In order: b·0 -> a; 0·a -> b, b·a -> c, c·a -> b; a·b (of 0·a·b, then of c·a·b) -> a, 0; a·c -> a.
    assert targets.tolist() == [[[a, b], [c, b]], [[b, c], [a, b]]]
    assert AlikeContexts(split, 8).after(np.array(6)).tolist() == [a, b, c, b, a, end, a, a]
