"""A second implementation of docs/numerics.md, written from that page alone: slow, plain, and independent.

It imports nothing of intlm. Values are Python integers or numpy int64 arrays, and every intermediate is asserted to
stay where the page says that it does: `int32`, `int16` and `int8` check and return their argument. The section
numbers are those of the page. The golden vectors (tests/golden) are made here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache, lru_cache
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

# ---------------------------------------------------------------------------------------------- 1. conventions


def within(x: Any, low: int, high: int) -> Any:
    """`x`, a number or an array, having asserted that it is of integers in [low, high]."""
    if isinstance(x, np.ndarray):
        assert x.dtype == np.int64, x.dtype
        assert x.size == 0 or (int(x.min()) >= low and int(x.max()) <= high), (x.min(), x.max(), low, high)
    else:
        assert isinstance(x, int) and low <= x <= high, (x, low, high)
    return x


def int8(x: Any) -> Any:
    """Asserts the symmetric range: -128 does not occur."""
    return within(x, -127, 127)


def int16(x: Any) -> Any:
    """Asserts the symmetric range: -32768 does not occur."""
    return within(x, -32767, 32767)


def int32(x: Any) -> Any:
    """Asserts the range of int32."""
    return within(x, -(2**31), 2**31 - 1)


def uint32(x: Any) -> Any:
    """Asserts the range of uint32."""
    return within(x, 0, 2**32 - 1)


def dot(w: Array, x: Array) -> Array:
    """`Σ_i w[o, i]·x[i]` for each o; asserts that no order of summation could leave int32."""
    int32(np.abs(w) @ np.abs(x))
    return w @ x


# ----------------------------------------------------------------------------------------------- 2. primitives


def clamp(x: Any, bound: int) -> Any:
    """`x` held to [-bound, bound]."""
    return np.clip(x, -bound, bound) if isinstance(x, np.ndarray) else min(max(x, -bound), bound)


def sat8(x: Any) -> Any:
    """int32 to int8."""
    return clamp(int32(x), 127)


def sat16(x: Any) -> Any:
    """int32 to int16."""
    return clamp(int32(x), 32767)


def rshift(x: Any, s: int) -> Any:
    """The rounding shift: to nearest, ties toward +∞."""
    return int32(x) if s == 0 else int32(int32(x) + (1 << (s - 1))) >> s


def q15(a: Any, b: Any) -> Any:
    """The rounding product of int16 values."""
    return int32(int32(int16(a) * int16(b)) + 2**14) >> 15


@dataclass(frozen=True)
class Rescaling:
    """A shift and a multiplier."""

    s: int
    m: int


def rescale(x: Any, by: Rescaling) -> Any:
    """An accumulator to a value at its scale."""
    return q15(sat16(rshift(x, by.s)), by.m)


def oddroot(a: int, b: int) -> int:
    """The odd integer nearest to sqrt(a/b). A constant of the configuration: `a` may be beyond int32."""
    return 2 * isqrt(a // (4 * b)) + 1


def act(n: int) -> Rescaling:
    """1/(16·sqrt(n))."""
    s = 0
    while 256 * 4**s < n:
        s += 1
    return Rescaling(s, oddroot(4 ** (11 + s), n))


def act3(n: int) -> Rescaling:
    """1/(128·sqrt(n))."""
    return Rescaling(act(n).s + 3, act(n).m)


def logit(n: int) -> Rescaling:
    """1/sqrt(n)."""
    s = 0
    while 16 * 4**s < n:
        s += 1
    return Rescaling(s, oddroot(4 ** (15 + s), n))


# --------------------------------------------------------------------------------------------------- 3. tables

DIGITS = 60  # of the decimal arithmetic below: erf loses 15 of them at worst, exp and ln none


def nearest(x: Decimal) -> int:
    """`x` rounded to nearest; asserts that it is not near a tie."""
    low = int(x.to_integral_value(rounding="ROUND_FLOOR"))
    fraction = x - low
    assert abs(fraction - Decimal("0.5")) > Decimal("1e-9"), x
    return low + (fraction > Decimal("0.5"))


@cache
def _pi() -> Decimal:
    """π, by Machin's formula."""

    def arccot(x: int) -> Decimal:
        total, power, k = Decimal(0), Decimal(1) / x, 0
        while abs(power) > Decimal(10) ** -(DIGITS + 5):
            total += power / (2 * k + 1)
            power /= -x * x
            k += 1
        return total

    return 4 * (4 * arccot(5) - arccot(239))


@cache
def upper_tail(z: Decimal) -> Decimal:
    """The standard normal's 1 - Φ(z) for 0 ≤ z ≤ 12, by the series of erf."""
    with localcontext() as context:
        context.prec = DIGITS + 50  # beyond z = 8 the terms reach 10^31 and the result 10^-33
        term = z
        total, k = Decimal(0), 0
        while term > Decimal(10) ** -(DIGITS + 20):
            total += term  # Φ(z) - 1/2 = φ(z)·(z + z^3/3 + z^5/(3·5) + …): all terms positive
            k += 1
            term *= z * z / (2 * k + 1)
        return +(Decimal("0.5") - total * (-z * z / 2).exp() / (2 * _pi()).sqrt())


def normal_quantile(scale: int, upper: Decimal) -> int:
    """`scale`·Φ⁻¹(1 - upper) rounded to nearest, for 0 < upper ≤ 1/2: where the exact upper tail passes `upper`."""
    low, high = 0, 12 * scale  # the answer is the least q whose upper edge (q + 1/2)/scale leaves a smaller tail
    while low < high:
        middle = (low + high) // 2
        tail = upper_tail((middle + Decimal("0.5")) / scale)
        assert abs(tail - upper) > upper * Decimal("1e-25"), "near a tie"
        if tail < upper:
            high = middle
        else:
            low = middle + 1
    return low


def _table(entries: Iterable[int], bits: int) -> Array:
    table = np.array(list(entries), dtype=np.int64)
    return within(table, -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)


def _quantile() -> Iterable[int]:
    half = [normal_quantile(16, 1 - (i + Decimal("128.5")) / 256) for i in range(128)]
    return half + [-q for q in half]


def _logistic(i: int) -> Decimal:
    x = Decimal(max(i - 128, -127)) / 16
    return 1 / (1 + (-x).exp())


def _tanh(i: int) -> Decimal:
    x = Decimal(max(i - 128, -127)) / 16
    return 1 - 2 / ((2 * x).exp() + 1)


with localcontext() as _context:
    _context.prec = DIGITS
    _LN2 = Decimal(2).ln()
    QUANTILE = _table(_quantile(), 8)
    RECIPROCAL = _table((min(32767, 2 * (2**18 // max(i, 16)) + 1) for i in range(2048)), 16)
    EXP2 = _table((nearest(2**24 * (-_LN2 * i / 256).exp()) for i in range(256)), 32)
    LOG2 = _table((nearest(256 * (1 + (i + Decimal("0.5")) / 1024).ln() / _LN2) for i in range(1024)), 16)
    SIGMOID = _table((nearest(254 * _logistic(i) - 127) for i in range(256)), 8)
    TANH = _table((nearest(127 * _tanh(i)) for i in range(256)), 8)

TABLES = {
    "QUANTILE": (QUANTILE, "<i1"),
    "RECIPROCAL": (RECIPROCAL, "<i2"),
    "EXP2": (EXP2, "<i4"),
    "LOG2": (LOG2, "<i2"),
    "SIGMOID": (SIGMOID, "<i1"),
    "TANH": (TANH, "<i1"),
}


def table_bytes() -> bytes:
    """All tables, little-endian, in the page's order: what its hash is of."""
    return b"".join(table.astype(dtype).tobytes() for table, dtype in TABLES.values())


# ---------------------------------------------------------------------------------------------- 4. random bits

NOISE, INITIALISATION, SAMPLING, TOKEN = 0, 1, 2, 3
ROUNDS = 13
ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))


def threefry4x32(key: Sequence[int], counter: Sequence[int], rounds: int = ROUNDS) -> tuple[int, int, int, int]:
    """Threefry-4x32 in Python integers."""
    mask = 2**32 - 1
    k = [uint32(word) for word in key]
    k.append(k[0] ^ k[1] ^ k[2] ^ k[3] ^ 0x1BD11BDA)
    x = [(uint32(counter[j]) + k[j]) & mask for j in range(4)]

    def mix(a: int, b: int, n: int) -> None:
        x[a] = (x[a] + x[b]) & mask
        x[b] = ((x[b] << n | x[b] >> (32 - n)) & mask) ^ x[a]

    for d in range(rounds):
        first, second = ROTATIONS[d % 8]
        if d % 2 == 0:
            mix(0, 1, first)
            mix(2, 3, second)
        else:
            mix(0, 3, first)
            mix(2, 1, second)
        if d % 4 == 3:
            i = (d + 1) // 4
            for j in range(4):
                x[j] = (x[j] + k[(i + j) % 5]) & mask
            x[3] = (x[3] + i) & mask
    return x[0], x[1], x[2], x[3]


def key_of(seed: int, domain: int) -> tuple[int, int, int, int]:
    """The key of a domain under a seed below 2^64."""
    return seed % 2**32, seed >> 32, 0, domain


@lru_cache(maxsize=1 << 16)
def _block(key: tuple[int, ...], stream: tuple[int, int, int], block: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in threefry4x32(key, (*stream, block)))


def stream_bytes(key: tuple[int, ...], stream: tuple[int, int, int], count: int, start: int = 0) -> bytes:
    """Bytes `start` to `start + count` of a stream."""
    blocks = range(start // 16, -(-(start + count) // 16))
    joined = b"".join(_block(key, stream, block) for block in blocks)
    return joined[start % 16 : start % 16 + count]


def gaussian(key: tuple[int, ...], stream: tuple[int, int, int], count: int, start: int = 0) -> Array:
    """The same bytes through QUANTILE."""
    return QUANTILE[np.frombuffer(stream_bytes(key, stream, count, start), dtype=np.uint8)]


# ---------------------------------------------------------------------------------------------------- 5. model


@dataclass(frozen=True)
class Shape:
    """The sizes and kinds of a model, on which its parameters and arithmetic depend."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    nonlinearity: str  # "clip" or "table"
    cell: str = "mgu"  # or "rnn", section 5.5


Parameters = list[Array]  # in the page's order; a parameter's number is its index

OF_A_LAYER = 8  # numbers inside a layer, the first of which is 1 + 8·l
GATE_INPUT, GATE_STATE, GATE_BIAS, CANDIDATE_INPUT, CANDIDATE_STATE, CANDIDATE_BIAS, UP, DOWN = range(OF_A_LAYER)
OF_THE_GATE = 3  # the first numbers, which the cell without a gate does not have


def of_a_layer(shape: Shape) -> int:
    """The numbers inside a layer."""
    return OF_A_LAYER if shape.cell == "mgu" else OF_A_LAYER - OF_THE_GATE


def parameter_names(shape: Shape) -> list[str]:
    """Names in order; those of a layer are followed by its number."""
    names = ["embedding"]
    for layer in range(shape.layers):
        names += [
            f"{name}.{layer}"
            for name in (
                "gate_input",
                "gate_state",
                "gate_bias",
                "candidate_input",
                "candidate_state",
                "candidate_bias",
                "up",
                "down",
            )[OF_A_LAYER - of_a_layer(shape) :]
        ]
    return [*names, "head"]


def parameter_shapes(shape: Shape) -> list[tuple[int, ...]]:
    """Shapes in order."""
    v, h, f = shape.vocabulary, shape.hidden, shape.feed_forward
    layer: list[tuple[int, ...]] = [(h, h), (h, h), (h,), (h, h), (h, h), (h,), (f, h), (h, f)]
    return [(v, h), *(layer[OF_A_LAYER - of_a_layer(shape) :] * shape.layers), (v, h)]


def first_values(shape: Shape, seed: int) -> Parameters:
    """The parameters before the first update."""
    values = []
    for n, (name, size) in enumerate(zip(parameter_names(shape), parameter_shapes(shape), strict=True)):
        if "bias" in name:
            values.append(np.zeros(size, dtype=np.int64))
        else:
            count = int(np.prod(size))
            values.append(gaussian(key_of(seed, INITIALISATION), (0, 0, n), count).reshape(size))
    return values


def norm(x: Array) -> Array:
    """Section 5.3: by the mean magnitude."""
    int8(x)
    m = (2**25 // x.size + 1) >> 1
    a = int32(int32(int(np.abs(x).sum()) * m) + 2**19) >> 20
    within(a, 0, 2036)
    return sat8(q15(within(16 * x, -2032, 2032), int(RECIPROCAL[a])))


def gate(p: Array, nonlinearity: str) -> Array:
    """In [0, 254]."""
    return within((sat8(p) if nonlinearity == "clip" else SIGMOID[sat8(p) + 128]) + 127, 0, 254)


def candidate(p: Array, nonlinearity: str) -> Array:
    """In [-127, 127]."""
    return int8(sat8(p) if nonlinearity == "clip" else TANH[sat8(p) + 128])


def state_product(nonlinearity: str, n: int) -> Rescaling:
    """S(H): the state entering a product."""
    return act(n) if nonlinearity == "clip" else act3(n)


def state_residual(h: Array, nonlinearity: str) -> Array:
    """R(h): the state entering the residual."""
    return h if nonlinearity == "clip" else rshift(h, 3)


class Plain:
    """Reads parameters as they are."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = [int8(p) for p in parameters]

    def embed(self, token: int) -> Array:
        """The embedding's row."""
        return self.parameters[0][token]

    def vector(self, n: int) -> Array:
        """Parameter n, a vector."""
        return self.parameters[n]

    def product(self, n: int, x: Array) -> Array:
        """The accumulator of x times parameter n, a matrix."""
        return int32(dot(self.parameters[n], int8(x)))


def layer_step(read: Plain, shape: Shape, layer: int, x: Array, h: Array) -> tuple[Array, Array]:
    """One layer of section 5.2: the residual stream and the layer's state, after it."""
    first, kind = 1 + of_a_layer(shape) * (layer + 1) - OF_A_LAYER, shape.nonlinearity  # of a gate, if there were one
    by, by_state, by_down = act(shape.hidden), state_product(kind, shape.hidden), act(shape.feed_forward)

    def pre(input_: int, state: int, bias: int, n: Array, s: Array) -> Array:
        a = within(rescale(read.product(first + input_, n), by), -1023, 1023)
        b = within(rescale(read.product(first + state, s), by_state), -1023, 1023)
        return int32(a + b + read.vector(first + bias))

    n = norm(x)
    if shape.cell == "rnn":
        h = candidate(pre(CANDIDATE_INPUT, CANDIDATE_STATE, CANDIDATE_BIAS, n, h), kind)
    else:
        f = gate(pre(GATE_INPUT, GATE_STATE, GATE_BIAS, n, h), kind)
        g = int8(q15(f * h, 129))
        c = candidate(pre(CANDIDATE_INPUT, CANDIDATE_STATE, CANDIDATE_BIAS, n, g), kind)
        h = int8(q15((254 - f) * h + f * c, 129))
    x = sat8(x + state_residual(h, kind))
    n = norm(x)
    u = sat8(np.abs(rescale(read.product(first + UP, n), by)))
    x = sat8(x + rescale(read.product(first + DOWN, u), by_down))
    return x, h


def step(read: Plain, shape: Shape, state: Array, token: int) -> tuple[Array, Array]:
    """One token: its logits [V] and the new states [L, H]."""
    state = np.zeros_like(state) if token == 0 else int8(state).copy()
    x = read.embed(token)
    for layer in range(shape.layers):
        x, state[layer] = layer_step(read, shape, layer, x, state[layer])
    accumulator = read.product(1 + of_a_layer(shape) * shape.layers, norm(x))
    return within(rescale(accumulator, logit(shape.hidden)), -(2**14) + 1, 2**14 - 1), state


def no_state(shape: Shape) -> Array:
    """States before the first token."""
    return np.zeros((shape.layers, shape.hidden), dtype=np.int64)


# ----------------------------------------------------------------------------------------------------- 6. loss


def exp2_share(d: Array) -> Array:
    """e for a distance d ≥ 0 below the maximum."""
    q = np.minimum(d >> 8, 26)
    return within((EXP2[d & 255] + ((1 << q) >> 1)) >> q, 0, 2**24)


def log_sum_exp2(logits: Array) -> int:
    """lse, in 1/256 of a bit."""
    top = int(within(logits, -(2**15) + 1, 2**15 - 1).max())
    e = exp2_share(top - logits)
    total = within(int(e.sum()), 2**24, 2**40)
    p = total.bit_length() - 1
    i = (total >> (p - 10)) & 1023
    low, high = int32(int((e & 4095).sum())), int32(int((e >> 12).sum()))
    assert total >> 12 == int32(high + (low >> 12))  # the page's two limbs, of which the second holds p and i
    return top + 256 * (p - 24) + int(LOG2[i])


def token_loss(logits: Array, targets: Sequence[int]) -> int:
    """The loss of one prediction. Its targets, a power of two of them, have equal shares; one may occur again."""
    shift = len(targets).bit_length() - 1
    assert len(targets) == 2**shift <= 1024
    total = within(sum(int(logits[target]) for target in targets), -(2**24), 2**24)
    return within(log_sum_exp2(logits) - rshift(total, shift), 0, 36_865)


def slopes(logits: Array, targets: Sequence[int]) -> list[int]:
    """How the loss of one prediction falls with each logit, 127·2^8 = 1."""
    lse, found = log_sum_exp2(logits), []
    for j, logit in enumerate(logits.tolist()):
        wanted = int32(127 * 2**8 * targets.count(j)) >> len(targets).bit_length() - 1
        share = int(exp2_share(np.array([lse - logit]))[0])
        found.append(within(wanted - rshift(int32(127 * share), 16), -127 * 2**8, 127 * 2**8))
    return found


# -------------------------------------------------------------------------------------- 7.1 what an update reads

SEGMENT = 2**26  # tokens whose contexts are sorted together


def mixture_texts(shares: Sequence[int], texts: int) -> list[int]:
    """How many of an update's texts each part of a mixture has."""
    ends = [texts * sum(shares[: i + 1]) // sum(shares) for i in range(len(shares))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def positions(size: int, texts: int, text: int, tokens: int, update: int) -> list[int]:
    """Where in a ring of `size` tokens a text's tokens are that an update reads."""
    return [(text * size // texts + update * tokens + i) % size for i in range(tokens)]


def alike_contexts(ring: Sequence[int], vocabulary: int, position: int, count: int) -> list[int]:
    """The last positions of the `count` contexts most alike to the one that ends at `position`."""
    depth, begin = 64 // (vocabulary - 1).bit_length(), position // SEGMENT * SEGMENT
    others = range(begin, min(begin + SEGMENT, len(ring)))
    order = sorted(others, key=lambda last: ([ring[(last - back) % len(ring)] for back in range(depth)], last))
    first = max(0, min(order.index(position) - count // 2, len(order) - count))
    return [order[min(first + k, len(order) - 1)] for k in range(count)]


def texts_read(
    mixture: Sequence[tuple[int, Sequence[int]]], vocabulary: int, texts: int, tokens: int, count: int, update: int
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The tokens [texts, T] and targets [texts, T, K] of an update. `mixture`: each share with its ring."""
    read, wanted = [], []
    for (_, ring), own in zip(mixture, mixture_texts([share for share, _ in mixture], texts), strict=True):
        for text in range(own):
            places = positions(len(ring), own, text, tokens, update)
            lasts = [alike_contexts(ring, vocabulary, at, count) if count > 1 else [at] for at in places]
            read.append([ring[at] for at in places])
            wanted.append([[ring[(last + 1) % len(ring)] for last in some] for some in lasts])
    return read, wanted


# --------------------------------------------------------------------------------------------- 7. perturbation


@dataclass(frozen=True)
class Noise:
    """The settings on which a population's perturbations depend."""

    seed: int
    rank: int
    sigma_shift: int
    noise_reuse: int = 0


def epoch(noise: Noise, update: int) -> int:
    """The epoch of an update."""
    return update // noise.noise_reuse if noise.noise_reuse else 0


def noise_vector(noise: Noise, stream: tuple[int, int, int], size: int) -> Array:
    """z of a vector."""
    return gaussian(key_of(noise.seed, NOISE), stream, size)


def noise_factors(noise: Noise, stream: tuple[int, int, int], size: tuple[int, ...]) -> tuple[Array, Array]:
    """A [r, O] and B [r, I] of a matrix [O, I]."""
    fan_out, fan_in = size
    blocks_in, blocks_out = -(-fan_in // 16), -(-fan_out // 16)
    key = key_of(noise.seed, NOISE)
    a, b = [], []
    for k in range(noise.rank):
        first = 16 * k * (blocks_in + blocks_out)
        b.append(gaussian(key, stream, fan_in, first))
        a.append(gaussian(key, stream, fan_out, first + 16 * blocks_in))
    return np.stack(a), np.stack(b)


def rank_scale(rank: int) -> int:
    """c_r, about 128/sqrt(r)."""
    return (isqrt(2**16 // rank) + 1) >> 1


class Member(Plain):
    """Reads parameters as one member of the population does."""

    def __init__(self, parameters: Parameters, noise: Noise, update: int, member: int) -> None:
        super().__init__(parameters)
        self.noise = noise
        self.where = (epoch(noise, update), member // 2)
        self.sign = 1 - 2 * (member % 2)
        self.c = rank_scale(noise.rank)

    def factors(self, n: int) -> tuple[Array, Array]:
        """A and B of parameter n."""
        return noise_factors(self.noise, (*self.where, n), self.parameters[n].shape)

    def embed(self, token: int) -> Array:
        """The perturbed row."""
        a, b = self.factors(0)
        summed = int32((int32(a[:, token] * self.c)[:, None] * b).sum(axis=0))
        return sat8(self.parameters[0][token] + self.sign * rshift(summed, 11 + self.noise.sigma_shift))

    def vector(self, n: int) -> Array:
        """The perturbed vector."""
        z = noise_vector(self.noise, (*self.where, n), self.parameters[n].size)
        return sat8(self.parameters[n] + self.sign * rshift(z, self.noise.sigma_shift + 1))

    def product(self, n: int, x: Array) -> Array:
        """The perturbed accumulator."""
        a, b = self.factors(n)
        t = sat16(rshift(int32(clamp(int32(dot(b, int8(x))), 2**23) * self.c), 11))
        low_rank = int32(dot(a.T, t))
        return int32(super().product(n, x) + self.sign * rshift(low_rank, self.noise.sigma_shift))


def read_text(read: Plain, shape: Shape, state: Array, tokens: Array, targets: Array) -> tuple[int, Array]:
    """A text's tokens [T], and the targets [T, K] after each of them: its loss and the last states."""
    loss = 0
    for token, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        logits, state = step(read, shape, state, token)
        loss = int32(loss + token_loss(logits, wanted))
    return loss, state


# -------------------------------------------------------------------------------------------------- 8. fitness


def fitness_bound(pairs: int, rank: int) -> int:
    """D of normalised fitness."""
    return min(127, (2**31 - 1) // (pairs * rank * 46**2))


def _sign(x: int) -> int:
    return (x > 0) - (x < 0)


def fitness(kind: str, losses: Sequence[int], rank: int) -> list[int]:
    """f of each pair, from the losses of all members."""
    d = [int32(int(losses[2 * p + 1]) - int(losses[2 * p])) for p in range(len(losses) // 2)]
    if kind == "sign":
        return [_sign(x) for x in d]
    bound = fitness_bound(len(d), rank)
    d = [clamp(x, 2**23 - 1) for x in d]
    mean = int32(max(1, sum(abs(x) for x in d) // len(d)))
    return [_sign(x) * min(bound, int32(abs(x) * bound + 2 * mean) // int32(4 * mean)) for x in d]


# ----------------------------------------------------------------------------------------- 9. votes and update


def votes(noise: Noise, update: int, scores: Sequence[int], parameters: Parameters) -> list[Array]:
    """Z of every parameter."""
    result = []
    for n, w in enumerate(parameters):
        z = np.zeros(w.shape, dtype=np.int64)
        magnitude = np.zeros(w.shape, dtype=np.int64)  # no order of summation may leave int32
        for p, f in enumerate(scores):
            stream = (epoch(noise, update), p, n)
            if w.ndim == 1:
                vote = 16 * f * noise_vector(noise, stream, w.size)
                size = np.abs(vote)
            else:
                a, b = noise_factors(noise, stream, w.shape)
                vote = f * (a.T @ b)
                size = abs(f) * (np.abs(a).T @ np.abs(b))
            z += vote
            magnitude += size
        int32(magnitude)
        result.append(z)
    return result


def deviation(scores: Sequence[int], rank: int, dimensions: int) -> int:
    """σ_Z of a matrix, which has two dimensions, or of a vector."""
    return isqrt(int32((rank if dimensions == 2 else 1) * sum(f * f for f in scores)))


@dataclass(frozen=True)
class Threshold:
    """The settings of `threshold`."""

    alpha: int
    decay_updates: int


@cache
def threshold_quantile(optimizer: Threshold, update: int) -> int:
    """q(u): 256·Φ⁻¹(1 - α(u)/2), rounded to nearest."""
    n = optimizer.decay_updates
    with localcontext() as context:
        context.prec = DIGITS
        alpha = Decimal(n) / (n + (2**optimizer.alpha - 1) * update)
        return within(normal_quantile(256, alpha / 2), 0, 2099)


def threshold(
    optimizer: Threshold, update: int, scores: Sequence[int], rank: int, parameters: Parameters, z: list[Array]
) -> Parameters:
    """The weights after an update."""
    q = threshold_quantile(optimizer, update)
    moved = []
    for w, vote in zip(parameters, z, strict=True):
        enough = np.abs(vote) >= int32(q * deviation(scores, rank, w.ndim))
        moved.append(np.where(enough, sat8(w + np.sign(vote)), w))
    return moved


@dataclass(frozen=True)
class Averaging:
    """The settings of `momentum` and of `adam`."""

    kind: str  # which of them
    k: int  # the mean is of 2^k updates
    step: int
    decay_updates: int
    warmup_updates: int = 0
    weight_decay: int = 0


class Averages(NamedTuple):
    """A weight under `momentum` or `adam`."""

    master: int
    mean: int = 0
    square: int = 2**14  # `momentum` has none and leaves it


def scheduled_step(optimizer: Averaging, update: int) -> int:
    """s of an update."""
    largest, n, u = 256 * within(optimizer.step, 1, 512), optimizer.decay_updates, optimizer.warmup_updates
    if update < u:
        return within(largest * (update + 1) // (u + 1), 0, 2**17)
    return within(largest * max(0, n - update) // max(1, n - u), 0, 2**17)


def average(optimizer: Averaging, s: int, vector: bool, vote: int, sigma: int, weight: Averages) -> Averages:
    """A weight after one update of step s, by its vote; σ_Z is of its parameter."""
    k, (master, mean, square) = within(optimizer.k, 0, 10), weight
    sigma = max(1, sigma)
    z = _sign(vote) * min(uint32(abs(int32(vote)) + sigma // 2) // sigma, 2**14)
    mean = within(mean + z - rshift(mean, k), -(2 ** (14 + k)) - 2**k // 2, 2 ** (14 + k) + 2**k // 2)
    rho = within(rshift(mean, k), -(2**14) - 1, 2**14 + 1)
    if optimizer.kind == "adam":
        square = within(square + rshift(z * z, 8) - rshift(square, 6), 0, 2**26 + 2**5)
        v = max(square, 2**12)
        e = 2 * ((v.bit_length() - 1) // 2)
        m = within(v >> (e - 8), 2**8, 2**10 - 1)
        root = within((isqrt(2**40 // m) + 1) >> 1, 2**14, 2**15)  # the quotient is exact: at most 2^32
        rho = rshift(rho * root, 8 + e // 2)
    decay, own = (0, rshift(s, 1)) if vector else (within(optimizer.weight_decay, 0, 255), within(s, 0, 2**17))
    within(master, -127 * 2**16, 127 * 2**16)
    master = int32(master - rshift(rshift(master, 10) * rshift(s * decay, 8), 14))
    master = clamp(int32(master + rshift(clamp(rho, 2047) * own, 8)), 127 * 2**16)
    return Averages(master, mean, square)


def weight_of(average: Averages) -> int:
    """w of a master."""
    return int8(rshift(average.master, 16))


@dataclass
class Update:
    """Everything that one update makes."""

    losses: list[int]  # [members]
    states: Array  # [members, L, H]
    fitness: list[int]  # [pairs]
    votes: list[Array]
    parameters: Parameters


def evaluate(
    shape: Shape, noise: Noise, update: int, parameters: Parameters, tokens: Array, targets: Array, states: Array
) -> tuple[list[int], Array]:
    """Losses and next states of all members. The text that each pair reads: tokens [pairs, T], targets
    [pairs, T, K]."""
    losses, after = [], []
    for member in range(states.shape[0]):
        read = _Remembering(parameters, noise, update, member)
        loss, state = read_text(read, shape, states[member], tokens[member // 2], targets[member // 2])
        losses.append(loss)
        after.append(state)
    return losses, np.stack(after)


class _Remembering(Member):
    """A member that draws each factor once for the whole text; the same values."""

    def __init__(self, parameters: Parameters, noise: Noise, update: int, member: int) -> None:
        super().__init__(parameters, noise, update, member)
        self._drawn: dict[int, tuple[Array, Array]] = {}
        self._vectors: dict[int, Array] = {}

    def factors(self, n: int) -> tuple[Array, Array]:
        if n not in self._drawn:
            self._drawn[n] = super().factors(n)
        return self._drawn[n]

    def vector(self, n: int) -> Array:
        if n not in self._vectors:
            self._vectors[n] = super().vector(n)
        return self._vectors[n]


def whole_update(
    shape: Shape,
    noise: Noise,
    fitness_kind: str,
    optimizer: Threshold,
    update: int,
    parameters: Parameters,
    tokens: Array,
    targets: Array,
    states: Array,
) -> Update:
    """Evaluate, compare, vote, move."""
    losses, after = evaluate(shape, noise, update, parameters, tokens, targets, states)
    scores = fitness(fitness_kind, losses, noise.rank)
    z = votes(noise, update, scores, parameters)
    return Update(losses, after, scores, z, threshold(optimizer, update, scores, noise.rank, parameters, z))


# ------------------------------------------------------------------------------------------------- 10. sampling


def sample(logits: Array, v: int, k: int, seed: int, position: int) -> int:
    """One drawn token; `v` is 256/temperature, rounded."""
    size = logits.size
    order = sorted(range(size), key=lambda j: (-int(logits[j]), j))
    kept = np.zeros(size, dtype=bool)
    kept[order[:k]] = True
    d = int(logits.max()) - logits
    e = exp2_share(int32(int32(d * within(v, 1, 2**15)) + 128) >> 8) >> max(0, (size - 1).bit_length() - 6)
    c = np.cumsum(np.where(kept, e, 0))
    w = threefry4x32(key_of(seed, SAMPLING), (position, 0, 0, 0))[0]
    y = w * within(int(c[-1]), 1, 2**30) >> 32  # an exact product of 62 bits
    return int((c <= y).sum())


def generate(
    parameters: Parameters,
    shape: Shape,
    prompt: Sequence[int],
    count: int,
    choose: Callable[[Array, int], int],
) -> list[int]:
    """At most `count` tokens after a separator and the prompt; `choose` draws from the logits at a position."""
    read, state = Plain(parameters), no_state(shape)
    logits, state = step(read, shape, state, 0)
    for token in prompt:
        logits, state = step(read, shape, state, int(token))
    drawn: list[int] = []
    while len(drawn) < count:
        token = choose(logits, len(drawn))
        if token == 0:
            break
        drawn.append(token)
        logits, state = step(read, shape, state, token)
    return drawn
