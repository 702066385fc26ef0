"""Counter-based random bits: Threefry-4x32 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).

It consists of additions, rotations and exclusive-ors of 32-bit words, so it costs the same everywhere and gives the
same bits. 13 rounds is the smallest number that has published known-answer vectors. Nothing is ever stored: any part
of a stream is computed from its counter (docs/numerics.md, section 4).
"""

from collections.abc import Sequence
from enum import IntEnum

from intlm.lazy import Array, jnp

Words = Sequence[Array | int] | Array  # four uint32 words

ROUNDS = 13
_PARITY = 0x1BD11BDA
_ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))


class Domain(IntEnum):
    """The last word of the key. It keeps the random bits of different uses apart."""

    NOISE = 0
    INITIALISATION = 1
    SAMPLING = 2
    TOKEN = 3


def threefry4x32(key: Words, counter: Words, rounds: int = ROUNDS) -> tuple[Array, ...]:
    """Four uint32 words for each counter.

    key, counter: four uint32 scalars or arrays each, broadcast together. Returns four uint32 arrays.
    """
    k = [jnp.asarray(w, jnp.uint32) for w in key]
    k.append(k[0] ^ k[1] ^ k[2] ^ k[3] ^ jnp.uint32(_PARITY))
    x = [jnp.asarray(c, jnp.uint32) + w for c, w in zip(counter, k, strict=False)]

    def mix(a: int, b: int, rotation: int) -> None:
        x[a] = x[a] + x[b]
        x[b] = ((x[b] << rotation) | (x[b] >> (32 - rotation))) ^ x[a]

    for r in range(rounds):
        left, right = _ROTATIONS[r % 8]
        mix(0, 1 if r % 2 == 0 else 3, left)
        mix(2, 3 if r % 2 == 0 else 1, right)
        if r % 4 == 3:
            i = r // 4 + 1
            x = [w + k[(i + j) % 5] for j, w in enumerate(x)]
            x[3] = x[3] + jnp.uint32(i)
    return tuple(jnp.broadcast_arrays(*x))


def seed_key(seed: int, domain: Domain) -> tuple[int, int, int, int]:
    """The key of a stream: the seed's low and high words, zero, the domain. seed: 0 to 2^64 - 1."""
    return seed & 0xFFFFFFFF, seed >> 32, 0, int(domain)


def random_bytes(key: Words, counter: Words, count: int) -> Array:
    """`count` random bytes for every (c0, c1, c2): those of the blocks c3 = first, first + 1, … in order.

    counter: (c0, c1, c2, first), uint32 scalars or arrays broadcast together, of shape S. A block is 16 bytes,
    its four words in order, each least significant byte first. Returns uint8 S + [count].
    """
    *head, first = (jnp.asarray(c, jnp.uint32)[..., None] for c in counter)
    blocks = first + jnp.arange(-(-count // 16), dtype=jnp.uint32)
    words = jnp.stack(threefry4x32(key, (*head, blocks)), axis=-1)  # S + [blocks, 4]
    octets = (words[..., None] >> jnp.arange(0, 32, 8, dtype=jnp.uint32)).astype(jnp.uint8)
    return octets.reshape(*octets.shape[:-3], -1)[..., :count]
