"""Threefry-4x32 against its authors' vectors, an independent package and the oracle; the bytes of a stream."""

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from randomgen import ThreeFry

from intlm.arithmetic.random_bits import ROUNDS, Domain, random_bytes, seed_key, threefry4x32

ONES = "ffffffff ffffffff ffffffff ffffffff"
ZEROS = "0 0 0 0"
PI = "243f6a88 85a308d3 13198a2e 03707344"
PI_KEY = "a4093822 299f31d0 082efa98 ec4e6c89"
# Random123 1.14, tests/kat_vectors: rounds, counter, key, result.
KNOWN_ANSWERS = [
    (13, ZEROS, ZEROS, "531c7e4f 39491ee5 2c855a92 3d6abf9a"),
    (13, ONES, ONES, "c4189358 1c9cc83a d5881c67 6a0a89e0"),
    (13, PI, PI_KEY, "4aa71d8f 734738c2 431fc6a8 ae6debf1"),
    (20, ZEROS, ZEROS, "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
    (20, ONES, ONES, "2a881696 57012287 f6c7446e a16a6732"),
    (20, PI, PI_KEY, "59cd1dbb b8879579 86b5d00c ac8b6d84"),
]
WORD = st.integers(0, 2**32 - 1)
WORDS = st.tuples(WORD, WORD, WORD, WORD)


def words(text: str) -> tuple[int, ...]:
    """Four words in hexadecimal."""
    return tuple(int(word, 16) for word in text.split())


def package(key: tuple[int, ...], counter: tuple[int, ...], rounds: int) -> tuple[int, ...]:
    """The package's generator on numbers."""
    words = threefry4x32(jnp.array(key, jnp.uint32), jnp.array(counter, jnp.uint32), rounds)
    assert all(word.dtype == jnp.uint32 for word in words)
    return tuple(int(word) for word in words)


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(rounds: int, counter: str, key: str, result: str) -> None:
    assert package(words(key), words(counter), rounds) == words(result)
    assert oracle.threefry4x32(words(key), words(counter), rounds) == words(result)


def test_rounds() -> None:
    assert ROUNDS == oracle.ROUNDS == 13
    assert threefry4x32((0,) * 4, (0,) * 4)[0] == 0x531C7E4F


@given(WORDS, WORDS, st.sampled_from([1, 4, 5, 13, 20]))
def test_any_key_and_counter(key: tuple[int, ...], counter: tuple[int, ...], rounds: int) -> None:
    assert package(key, counter, rounds) == oracle.threefry4x32(key, counter, rounds)


@given(WORDS, WORDS)
def test_against_randomgen(key: tuple[int, ...], counter: tuple[int, ...]) -> None:
    """randomgen runs 20 rounds and counts up, over all 128 bits, before each block; the first word is the lowest."""

    def whole(parts: tuple[int, ...]) -> int:
        return sum(word << 32 * j for j, word in enumerate(parts))

    before = (whole(counter) - 1) % 2**128
    other = ThreeFry(key=whole(key), counter=before, number=4, width=32).random_raw(4)
    assert package(key, counter, 20) == tuple(int(word) for word in other)


def test_broadcasts() -> None:
    """A counter whose words are arrays gives the same words as its counters one by one."""
    pairs = jnp.arange(3, dtype=jnp.uint32)[:, None]
    blocks = jnp.array([0, 1, 2**32 - 1, 7], jnp.uint32)
    words = jnp.stack(threefry4x32((1, 2, 3, 4), (9, pairs, 5, blocks)), axis=-1)
    assert words.shape == (3, 4, 4)
    for p in range(3):
        for b, block in enumerate(blocks.tolist()):
            assert tuple(words[p, b].tolist()) == oracle.threefry4x32((1, 2, 3, 4), (9, p, 5, block))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1])
def test_keys(seed: int) -> None:
    assert [d.value for d in Domain] == [oracle.NOISE, oracle.INITIALISATION, oracle.SAMPLING, oracle.TOKEN]
    for domain in Domain:
        assert seed_key(seed, domain) == oracle.key_of(seed, domain.value)


@pytest.mark.parametrize("count", [16, 41])
def test_bytes_are_those_of_the_stream(count: int) -> None:
    key = seed_key(2**40 + 3, Domain.NOISE)
    first = jnp.array([[0], [5]], jnp.uint32)  # blocks
    pairs = jnp.array([3, 0, 2**19 - 1], jnp.uint32)
    drawn = random_bytes(key, (jnp.uint32(7), pairs, 11, first), count)
    assert drawn.shape == (2, 3, count) and drawn.dtype == jnp.uint8
    for i, block in enumerate(first[:, 0].tolist()):
        for j, pair in enumerate(pairs.tolist()):
            expected = oracle.stream_bytes(key, (7, pair, 11), count, 16 * block)
            assert np.asarray(drawn[i, j]).tobytes() == expected


def test_bytes_are_little_endian() -> None:
    """The bytes of a stream are those of the known answer itself, not only of the oracle."""
    expected = b"".join(int(word, 16).to_bytes(4, "little") for word in KNOWN_ANSWERS[0][3].split())
    assert np.asarray(random_bytes((0,) * 4, (0,) * 4, 16)).tobytes() == expected
