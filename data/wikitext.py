"""WikiText-103: articles of Wikipedia (28 thousand, 0.5 GB), as plain text again. Needs the network, once. UNMEASURED.

In a configuration: `data.train = "data/wikitext.py"`. The file to evaluate on (docs/evaluating.md), which has the test
articles as they are distributed:

    python data/wikitext.py > wiki.test.raw
"""

import sys
from collections.abc import Iterator

import datasets

from intlm.data.wikitext import detokenised

PLACE = "EleutherAI/wikitext_document_level"  # a data set whose rows are whole articles


def documents() -> Iterator[bytes]:
    """The training articles."""
    for page in pages("train"):
        yield detokenised(page).encode()


def pages(split: str) -> Iterator[str]:
    """The articles of a split as they are distributed."""
    for row in datasets.load_dataset(PLACE, "wikitext-103-raw-v1", split=split, streaming=True):
        yield row["page"]


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    print("\n".join(pages("test")), end="")
