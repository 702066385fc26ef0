"""The lookup tables are pinned, equal the oracle's, and are within half a unit of the real functions."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intlm.arithmetic import tables as module
from intlm.arithmetic.tables import SHA256, digest, tables, threshold_quantile

PUBLISHED = "9d9d4514015a9c0d57b9bbd46d6807c62841642340777f4e43fdbafb1c99ade7"  # docs/numerics.md, section 3


def test_hash_and_size() -> None:
    assert hashlib.sha256(oracle.table_bytes()).hexdigest() == PUBLISHED
    assert SHA256 == digest(tables()) == PUBLISHED
    assert sum(table.nbytes for table in tables()) == 7936


@pytest.mark.parametrize("name", [name.lower() for name in oracle.TABLES])
def test_equal_to_the_oracle(name: str) -> None:
    expected, dtype = oracle.TABLES[name.upper()]
    table = getattr(tables(), name)
    assert table.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(table, expected)


def test_order_is_the_published_one() -> None:
    assert [name.upper() for name in tables()._fields] == list(oracle.TABLES)


def test_a_changed_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tables()
    tanh = made.tanh.copy()
    tanh[3] += 1
    monkeypatch.setattr(module, "_make", lambda: made._replace(tanh=tanh))
    with pytest.raises(ArithmeticError, match=PUBLISHED):
        tables.__wrapped__()


def test_symmetries_and_edges() -> None:
    t = tables()
    np.testing.assert_array_equal(t.quantile[128:], -t.quantile[:128])
    assert t.quantile[0] == 0 and t.quantile.max() == 46 and t.quantile.sum() == 0
    for odd in (t.sigmoid, t.tanh):
        np.testing.assert_array_equal(odd[129:], -odd[127:0:-1])
        assert odd[128] == 0 and odd[0] == odd[1] == -127
    assert t.exp2[0] == 2**24 and t.log2[0] == 0 and t.log2[-1] == 256
    assert t.reciprocal[0] == t.reciprocal[16] == 32767 and (t.reciprocal % 2 == 1).all()


def test_within_half_of_the_real_function() -> None:
    """Floats are a third way to the same numbers, so that the oracle and the package cannot share a mistake."""
    t = tables()
    i = np.arange(256)
    normal = [16 * NormalDist().inv_cdf((j + 128.5) / 256) for j in range(128)]
    assert np.abs(t.quantile[:128] - normal).max() < 0.5001
    assert np.abs(t.exp2 - 2.0 ** (24 - i / 256)).max() < 0.5001
    assert np.abs(t.log2 - 256 * np.log2(1 + (np.arange(1024) + 0.5) / 1024)).max() < 0.5001
    x = np.maximum(i - 128, -127) / 16
    assert np.abs(t.sigmoid - (254 / (1 + np.exp(-x)) - 127)).max() < 0.5001
    assert np.abs(t.tanh - 127 * np.tanh(x)).max() < 0.5001
    mean = np.arange(17, 2048)
    assert np.abs(t.reciprocal[17:] - 2.0**19 / mean).max() <= 1  # the nearest odd number


@given(st.integers(0, 16), st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_threshold_quantile(alpha: int, decay: int, update: int) -> None:
    result = threshold_quantile(decay, decay + (2**alpha - 1) * update)
    assert result == oracle.threshold_quantile(oracle.Threshold(alpha, decay), update)


def test_threshold_quantile_at_its_ends() -> None:
    assert threshold_quantile(1, 1) == 0
    furthest = threshold_quantile(1, 1 + (2**16 - 1) * (2**31 - 1))  # the most that a configuration can ask for
    assert furthest == oracle.threshold_quantile(oracle.Threshold(16, 1), 2**31 - 1)
    assert furthest < 2100  # docs/numerics.md, section 11
    assert threshold_quantile(5, 100) == math.floor(256 * 1.959963985 + 0.5)
