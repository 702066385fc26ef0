"""A corpus written by hand, in shards small enough that reads cross them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from intlm.data.shards import Corpus, CorpusWriter
from intlm.data.tokenizers import Tokenizer
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Writes a corpus whose training split is the documents given, and opens it."""

    def make(
        documents: Sequence[bytes],
        tokenizer: Tokenizer = ByteTokenizer(),  # noqa: B008
        shard_tokens: int = 5,
        name: str = "corpus",
    ) -> Corpus:
        with CorpusWriter(tmp_path / name, tokenizer, shard_tokens) as writer:
            for document in documents:
                writer.write("train", document[:2], True)
                writer.write("train", document[2:], False)
            writer.finish({"by": "hand"})
        made = Corpus.open(tmp_path / name)
        made.verify()
        return made

    return make


@pytest.fixture
def wide_tokenizer() -> Tokenizer:
    """A tokenizer whose tokens need uint16."""
    return AlphabetTokenizer(bytes(range(256)))
