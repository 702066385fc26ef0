"""intlm.data.wikitext, held to lm-evaluation-harness, whose numbers the field's tables hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from intlm.data.wikitext import detokenised, is_title, pages

# No slash: the harness has a rule for one beside an apostrophe, which writes a pattern into the text.
PARTS = [
    "s", "'", '"', "N", " ", "  ", "\n", "@", "@-@", "@,@", "@.@", "-", ",", ".", ":", ";", "!", "?", "(", ")", "[",
    "]", "{", "}", "=", "= =", "°", "'s", "word", "2", "é",
]  # fmt: skip


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PARTS), max_size=40), st.sampled_from(["", " "]))
def test_detokenised_as_the_harness_does(parts: list[str], between: str) -> None:
    page = between.join(parts)
    assert detokenised(page) == wikitext_detokenizer({"page": page})


def test_detokenised() -> None:
    page = ' = The @-@ title = \n \n It \'s 1 @,@ 000 ° C ( or so ) , he said : " yes " . \n = = = Part = = = \n'
    text = ' = The-title =\n\nIt\'s 1,000°C (or so), he said: "yes".\n=== Part ===\n'
    assert detokenised(page) == text


@pytest.mark.parametrize("line", [" = Title = ", "= T =", " = A = = b = "])
def test_titles(line: str) -> None:
    assert is_title(line)


@pytest.mark.parametrize("line", ["", " = = Part = = ", " = = = Part = = = ", "= x", " a = b ", "=", " = = ", "a ="])
def test_other_lines(line: str) -> None:
    assert not is_title(line)


def test_pages() -> None:
    first, second = " = One = \n \n text \n = = Part = = \n more \n ", " = Two = \n end \n"
    for before in ("", " \n", " \n\n"):
        assert list(pages(f"{before}{first}\n{second}")) == [first, second]
    assert list(pages(f"loose \n{second}")) == ["loose ", second]
    assert list(pages("")) == list(pages(" \n \n")) == []
