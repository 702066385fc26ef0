"""intlm.data.wikitext gives the text of lm-evaluation-harness, by which published results are measured."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from intlm.data.sources import run_recipe
from intlm.data.wikitext import detokenised, is_title, pages

RECIPE = Path(__file__).parents[2] / "data" / "wikitext.py"

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


def test_the_recipe(tmp_path: Path) -> None:
    """data/wikitext.py reads a directory in the hub's layout."""
    texts = {"train": [" = A = \n b , c \n", " = D = \n é \n"], "test": [" = E = \n f . \n ", " = G = \n h \n "]}
    name = "wikitext-103-raw-v1"
    (tmp_path / "set" / name).mkdir(parents=True)
    for split, page in texts.items():
        pq.write_table(pa.table({"page": page}), tmp_path / "set" / name / f"{split}-00000-of-00001.parquet")
    described = f"configs:\n- config_name: {name}\n  data_files:\n"
    described += "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in texts)
    (tmp_path / "set" / "README.md").write_text(f"---\n{described}---\n")
    recipe, place = tmp_path / "wikitext.py", '"EleutherAI/wikitext_document_level"'
    assert place in RECIPE.read_text()
    recipe.write_text(RECIPE.read_text().replace(place, repr(str(tmp_path / "set"))))
    assert list(run_recipe(recipe)) == [b" = A =\nb, c\n", " = D =\né\n".encode()]
    done = subprocess.run([sys.executable, str(recipe)], capture_output=True, check=True)
    assert list(pages(done.stdout.decode())) == texts["test"]
