"""intlm.tracking.table: columns line up, numbers are short."""

import pytest

from intlm.tracking.table import duration, format_table, human


def test_columns_line_up() -> None:
    rows = [("unigram", 4.5, 12), ("gzip -9", None, 3456)]
    assert format_table(["model", "bits/byte", "n"], rows).split("\n") == [
        "model    bits/byte     n",
        "-------  ---------  ----",
        "unigram        4.5    12",
        "gzip -9             3456",
    ]
    assert format_table(["model", "bits/byte", "n"], rows, align="rll").split("\n") == [
        "  model  bits/byte  n",
        "-------  ---------  ----",
        "unigram  4.5        12",
        "gzip -9             3456",
    ]
    assert format_table(["a", "b"], []) == "a  b\n-  -"


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 columns"):
        format_table(["a", "b"], [("x",)])
    with pytest.raises(ValueError, match="expected 2 columns"):
        format_table(["a", "b"], [("x", 1)], align="lrr")


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (-1200, "-1.2k"), (12.345, "12.3"),
        (999_499, "999k"), (999_500, "1M"), (3.4e6, "3.4M"), (1.2e9, "1.2B"), (5e12, "5T"),
        (2.5e16, "25000T"),
    ],
)  # fmt: skip
def test_numbers_are_short(n: float, text: str) -> None:
    assert human(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.25 s"), (59, "59 s"), (59.9, "1 min"), (308, "5.1 min"), (5400, "1.5 h"), (864000, "10 d")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
