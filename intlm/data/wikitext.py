"""WikiText: turns its articles, whose tokens have spaces around them, into ordinary text again.

Published results follow one convention (EleutherAI's lm-evaluation-harness, task `wikitext`): a page is
a document; its likelihood is that of the text that `detokenised` makes of it; the words and bytes that the likelihood
is divided by are those of the page as it stands in the file. tests/data/test_wikitext.py holds this to that harness.
"""

import re
from collections.abc import Iterator

_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))


def is_title(line: str) -> bool:
    """Whether a line begins a page: ` = Title = `, where ` = = Section = = ` does not."""
    line = line.strip()
    return line.startswith("= ") and line.endswith(" =") and not (line.startswith("= =") or line.endswith("= ="))


def pages(text: str) -> Iterator[str]:
    """Yields the pages of a file, each up to the next title, and the text before the first title unless it is blank."""
    page: list[str] = []
    for line in text.split("\n"):
        if is_title(line):
            if any(map(str.strip, page)):
                yield "\n".join(page)
            page = []
        page.append(line)
    if any(map(str.strip, page)):
        yield "\n".join(page)


def detokenised(page: str) -> str:
    """Returns the text of a page without the spaces and signs of tokenization. The order of the rules matters."""
    text = page.replace("s '", "s'")
    for sign in "-,.":  # within a word or a number
        text = text.replace(f" @{sign}@ ", sign)
    for sign in ":;.!?,":
        text = text.replace(f" {sign} ", f"{sign} ")
    for left, right in (map(re.escape, pair) for pair in _BRACKETS):
        text = re.sub(rf"({left})\s*([^{right}]*?)\s*({right})", r"\1\2\3", text)
    for level in (4, 3, 2):
        text = text.replace(" ".join("=" * level), "=" * level)
    text = text.replace(" ° ", "°").replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")
