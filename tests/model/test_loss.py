"""The integer loss against the oracle and against float64, at every kind of vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intlm.model.loss import exp2_terms, log_sum_exp2, loss

LARGEST = 2**14 - 1  # the largest logit
VOCABULARIES = [2, 257, 4096, 65536]
compiled_loss = jax.jit(loss)
compiled_log_sum_exp2 = jax.jit(log_sum_exp2)


def rows(vocabulary: int) -> np.ndarray:
    """Logits of many kinds: [rows, vocabulary]."""
    rng = np.random.default_rng(vocabulary)
    made = [np.full(vocabulary, value) for value in (0, LARGEST, -LARGEST)]
    made += [rng.integers(-m, m, vocabulary, endpoint=True) for m in (1, 100, 2000, LARGEST)]
    # One big logit and a tail far below it. Past 25 bits the tail adds nothing (at 25, a half still rounds up to one);
    # at 31 bits and beyond the shift is at its limit.
    for below in (1, 256, 12 * 256, 24 * 256, 25 * 256 - 1, 25 * 256, 25 * 256 + 1, 31 * 256, 32 * 256, 2 * LARGEST):
        row = np.full(vocabulary, LARGEST - below)
        row[vocabulary // 2] = LARGEST
        made.append(row)
    made.append(-np.arange(vocabulary) % LARGEST)
    return np.stack(made)


def exact(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the sum, 256·log2 Σ 2^(l/256), in float64."""
    largest = logits.max(axis=-1, keepdims=True)
    return largest[:, 0] + 256 * np.log2(np.exp2((logits - largest) / 256).sum(axis=-1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_log_sum_exp2(vocabulary: int) -> None:
    logits = rows(vocabulary)
    result = np.asarray(compiled_log_sum_exp2(jnp.asarray(logits, jnp.int32)))
    assert result.tolist() == [oracle.log_sum_exp2(row) for row in logits]
    bound = 0.8 if vocabulary <= 4096 else 2.0  # in 1/256 of a bit: docs/numerics.md, section 6
    assert np.abs(result - exact(logits)).max() <= bound
    assert (result >= logits.max(axis=-1)).all()  # so that no loss is negative


@given(
    st.sampled_from([3, 257]).flatmap(
        lambda v: st.lists(st.integers(-LARGEST, LARGEST), min_size=v, max_size=v).map(np.array)
    )
)
@settings(max_examples=80)
def test_any_logits(logits: np.ndarray) -> None:
    result = int(compiled_log_sum_exp2(jnp.asarray(logits, jnp.int32)))
    assert result == oracle.log_sum_exp2(logits)
    assert abs(result - exact(logits[None])[0]) <= 0.8


@pytest.mark.parametrize("vocabulary", [2, 257, 65536])
def test_the_order_of_tokens_is_nothing(vocabulary: int) -> None:
    logits = rows(vocabulary)
    shuffled = logits[:, np.random.default_rng(7).permutation(vocabulary)]
    result = compiled_log_sum_exp2(jnp.asarray(logits, jnp.int32))
    np.testing.assert_array_equal(result, compiled_log_sum_exp2(jnp.asarray(shuffled, jnp.int32)))


def assert_losses(logits: np.ndarray, targets: np.ndarray) -> None:
    """Asserts that the losses are the oracle's. logits: [rows, vocabulary]; targets: [rows, K]."""
    losses = np.asarray(compiled_loss(jnp.asarray(logits, jnp.int32), jnp.asarray(targets, jnp.int32)))
    assert losses.dtype == np.int32
    assert losses.tolist() == [oracle.token_loss(row, some) for row, some in zip(logits, targets.tolist(), strict=True)]


@pytest.mark.parametrize("vocabulary", [2, 257, 65536])
def test_loss(vocabulary: int) -> None:
    logits = rows(vocabulary)
    for targets in (logits.argmax(axis=-1), logits.argmin(axis=-1), np.full(len(logits), vocabulary - 1)):
        assert_losses(logits, targets[:, None])


@pytest.mark.parametrize("count", [2, 4, 8, 1024])
def test_several_targets(count: int) -> None:
    """Several targets: any tokens, only the likeliest, only the least likely, whose sums are nearest to the bounds."""
    logits = rows(257)
    assert_losses(logits, np.random.default_rng(count).integers(0, 257, (len(logits), count)))
    for target in (logits.argmax(axis=-1), logits.argmin(axis=-1)):
        assert_losses(logits, np.repeat(target[:, None], count, axis=1))


@pytest.mark.parametrize("values", [(0, 1), (0, -1), (-3, -2), (7, 8)])
def test_a_mean_between_two_integers_is_rounded_up(values: tuple[int, int]) -> None:
    """The mean over targets is rounded up, by hand: two targets whose logits are far below the largest."""
    logits = np.array([LARGEST, *values], np.int32)
    assert int(compiled_loss(logits, np.array([1, 2], np.int32))) == LARGEST - max(values)
    assert int(compiled_loss(logits, np.array([1, 1], np.int32))) == LARGEST - values[0]


def test_the_largest_losses() -> None:
    """The largest losses: a wrong token predicted with certainty, and a uniform guess in the largest vocabulary."""
    wrong = np.array([[LARGEST, -LARGEST]] * 2, np.int32)
    assert compiled_loss(wrong, np.array([[1], [0]], np.int32)).tolist() == [2 * LARGEST, 0]
    rest = np.full((2, 65536), LARGEST, np.int32)
    rest[1, 9] = -LARGEST
    even, largest = compiled_loss(rest, np.array([[9], [9]], np.int32)).tolist()
    assert even == 256 * 16 and 36_850 < largest <= 36_865


def test_exp2_terms() -> None:
    """The terms 2^-d for every distance d that occurs in the loss, and in sampling at the lowest temperature."""
    below = np.concatenate([np.arange(2**15 + 1), np.arange(2**15, 2**22 + 1, 1009)])
    terms = np.asarray(exp2_terms(jnp.asarray(below, jnp.int32)))
    np.testing.assert_array_equal(terms, oracle.exp2_share(below))
    assert terms.min() == 0 and (np.diff(terms) <= 0).all()
    near = below[below < 24 * 256]
    assert np.abs(terms[: len(near)] - np.exp2(24 - near / 256)).max() <= 1.0
