"""The estimator `token` in plain loops, written from docs/numerics-token.md alone: slow, and independent of intlm.

One text, one member, one token at a time. Every intermediate is asserted to stay where the page says that it does.
"""

from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import numpy as np
from oracle import (
    CANDIDATE_INPUT,
    DOWN,
    GATE_INPUT,
    OF_A_LAYER,
    TOKEN,
    UP,
    Array,
    Parameters,
    Plain,
    Shape,
    exp2_share,
    int8,
    int32,
    key_of,
    log_sum_exp2,
    no_state,
    parameter_names,
    rshift,
    sat8,
    step,
    stream_bytes,
    threefry4x32,
    token_loss,
    uint32,
    within,
)


@dataclass(frozen=True)
class Settings:
    """The settings of the estimator."""

    seed: int
    texts: int  # N
    members: int  # n
    sigmas: tuple[int, ...]  # of the embedding, gate, candidate, up and down
    credit: int

    @property
    def largest(self) -> int:
        """G, the largest fitness."""
        return 127 // within(self.members, 1, 127)


class Told(NamedTuple):
    """The results of an update, before the optimizer uses them."""

    losses: list[int]  # [N], of the clean members
    states: Array  # [N, L, H]
    votes: list[Array]  # Z, by the parameters' numbers
    variances: list[list[int]]  # C: [fan-in] of a matrix, [V] of the embedding, [1] of a bias
    deviations: list[list[int]]  # D, of the same shapes
    standardised: list[Array]  # z
    means: tuple[int, int]  # of d and of R, for the next update


# ---------------------------------------------------------------------------------------------------- T2. noise


def units(shape: Shape, settings: Settings) -> list[tuple[int, int]]:
    """The parameter's number and the count of each kind of units, in the order of their noise."""
    kinds = [(0, shape.hidden)]
    for layer in range(shape.layers):
        first = 1 + OF_A_LAYER * layer
        kinds += [(first + n, shape.hidden) for n in (GATE_INPUT, CANDIDATE_INPUT)]
        kinds += [(first + UP, shape.feed_forward), (first + DOWN, shape.hidden)]
    return kinds


def member_number(settings: Settings, text: int, member: int) -> int:
    """The second word of a counter: member 0 is the clean one."""
    return uint32(text * (1 + settings.members) + within(member, 0, settings.members))


def signs(shape: Shape, settings: Settings, update: int, text: int, member: int, token: int) -> dict[int, Array]:
    """s, the sign of each unit, by the number of the parameter whose product gives it."""
    found, j = {}, 0
    for number, count in units(shape, settings):
        own = []
        for _ in range(count):
            counter = (update, member_number(settings, text, 1 + member), token, j // 128)
            word = threefry4x32(key_of(settings.seed, TOKEN), counter)[j % 128 // 32]
            own.append(1 if word >> (j % 32) & 1 else -1)
            j += 1
        found[number] = np.array(own, dtype=np.int64)
    return found


def amplitude(sigma: int, fan_in: int) -> int:
    """a(k), the amplitude of the noise of a product with this fan-in."""
    return within(isqrt(fan_in * 4 ** (8 - within(sigma, 0, 8))), 1, 2**16)


class Noisy(Plain):
    """Reads parameters as a noisy member does at one token."""

    def __init__(self, parameters: Parameters, settings: Settings, signs: dict[int, Array]) -> None:
        super().__init__(parameters)
        self.settings, self.signs = settings, signs

    def embed(self, token: int) -> Array:
        """The noisy row of the embedding."""
        return sat8(super().embed(token) + self.signs[0] * max(1, 16 >> self.settings.sigmas[0]))

    def product(self, n: int, x: Array) -> Array:
        """The accumulator of a product, with noise where the product has units."""
        accumulator = super().product(n, x)
        if n in self.signs:
            kinds = {GATE_INPUT: 1, CANDIDATE_INPUT: 2, UP: 3, DOWN: 4}
            sigma = self.settings.sigmas[kinds[(n - 1) % OF_A_LAYER]]
            accumulator = int32(accumulator + self.signs[n] * amplitude(sigma, x.size))
        return accumulator


class Clean(Plain):
    """Reads parameters as they are, and keeps what each product was given."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.read: dict[int, Array] = {}

    def product(self, n: int, x: Array) -> Array:
        """The accumulator of a product."""
        self.read[n] = x.copy()  # a copy: the state is overwritten afterwards
        return super().product(n, x)


def slope(settings: Settings, update: int, text: int, token: int, logits: Array, targets: list[int]) -> Array:
    """y, the slope of the logits, at one token."""
    key, stream = key_of(settings.seed, TOKEN), (update, member_number(settings, text, 0), token)
    octets = stream_bytes(key, stream, logits.size)
    lse, shift, found = log_sum_exp2(logits), len(targets).bit_length() - 1, []
    for v in range(logits.size):
        share = int(exp2_share(np.array([max(0, lse - int(logits[v]))]))[0])
        wanted = int32(127 * 256 * targets.count(v)) >> shift
        found.append(int8((wanted - rshift(int32(127 * share), 16) + octets[v]) >> 8))
    return np.array(found, dtype=np.int64)


# --------------------------------------------------------------------------------------- T3. credit, T4. fitness


def sign(x: int) -> int:
    """The sign of a number: -1, 0 or 1."""
    return (x > 0) - (x < 0)


def credits(d: list[int], tokens: list[int], credit: int) -> list[int]:
    """R, the credit of one member at each token."""
    found = [0] * len(d)
    for t in reversed(range(len(d))):
        after = found[t + 1] if t + 1 < len(d) and tokens[t + 1] != 0 else 0
        kept = int32(abs(after) * within(credit, 0, 7)) >> 3
        found[t] = within(within(d[t], -36_865, 36_865) + sign(after) * kept, -294_920, 294_920)
    return found


def fitness(q: int, mean: int, largest: int) -> int:
    """f, the fitness of one credit."""
    return int8(sign(q) * min(largest, int32(abs(q) * largest + 2 * mean) // int32(4 * mean)))


# ----------------------------------------------------------------------------------------------------- T5. votes


def vote_shift(texts: int, tokens: int) -> int:
    """v, the shift of the votes."""
    v = 0
    while texts * ((tokens * 127**2 + (2**v >> 1)) >> v) >= 2**31:
        v += 1
    return within(v, 0, 7)


def deviation(variance: int, v: int) -> int:
    """D, the deviation of a vote."""
    kappa = 0
    while variance >> 2 * kappa >= 2**30:
        kappa += 1
    return within(max(1, isqrt(variance >> 2 * kappa) << kappa >> v), 1, 2**26 - 1)


def standardised(vote: int, deviation: int) -> int:
    """z, a vote divided by its deviation."""
    beta = max(0, deviation.bit_length() - 16)
    size = int32(int32(min(abs(vote) >> beta, 2**22) * 256) + (deviation >> beta) // 2) // (deviation >> beta)
    return sign(vote) * min(2**14, size)


def reads(shape: Shape) -> dict[int, tuple[int, bool]]:
    """For every parameter: the number of the units that its votes come from, and whether these are credited with R."""
    found = {0: (0, True), 1 + OF_A_LAYER * shape.layers: (1 + OF_A_LAYER * shape.layers, False)}
    for layer in range(shape.layers):
        first, not_last = 1 + OF_A_LAYER * layer, layer < shape.layers - 1
        for n in range(OF_A_LAYER):
            if n < 3:
                found[first + n] = (first + GATE_INPUT, True)
            elif n < 6:
                found[first + n] = (first + CANDIDATE_INPUT, True)
            else:
                found[first + n] = (first + n, not_last)
    return found


def evaluate(
    shape: Shape,
    settings: Settings,
    update: int,
    parameters: Parameters,
    states: Array,
    means: tuple[int, int],
    tokens: Array,
    targets: Array,
) -> Told:
    """One update up to its votes. states [N, L, H]; means: of d and R; tokens [N, T]; targets [N, T, K]."""
    n, (number, length) = settings.members, tokens.shape
    assert number == settings.texts <= 2**19 and number * length <= 2**24
    v, sources, names = vote_shift(number, length), reads(shape), parameter_names(shape)
    votes = [np.zeros(w.shape, dtype=np.int64) for w in parameters]
    variances = [[0] * (w.shape[0] if p == 0 else w.shape[1] if w.ndim == 2 else 1) for p, w in enumerate(parameters)]
    losses, after, size_d, size_r = [], [], 0, 0
    for i in range(number):
        text = tokens[i].tolist()
        # The clean member, and the inputs of its products.
        state, clean, inputs, head = int8(states[i]), [], [], []
        for t in range(length):
            read = Clean(parameters)
            logits, state = step(read, shape, state, text[t])
            clean.append(token_loss(logits, targets[i, t].tolist()))
            inputs.append(read.read)
            head.append(slope(settings, update, i, t, logits, targets[i, t].tolist()))
        losses.append(int32(sum(clean)))
        after.append(state)
        # The noisy members.
        drawn = [[signs(shape, settings, update, i, m, t) for t in range(length)] for m in range(n)]
        own, far = [], []
        for m in range(n):
            state, d = states[i], []
            for t in range(length):
                logits, state = step(Noisy(parameters, settings, drawn[m][t]), shape, state, text[t])
                d.append(clean[t] - token_loss(logits, targets[i, t].tolist()))
            r = credits(d, text, settings.credit)
            size_d, size_r = size_d + sum(map(abs, d)), size_r + sum(map(abs, r))
            own.append([fitness(q, means[0], settings.largest) for q in d])
            far.append([fitness(q, means[1], settings.largest) for q in r])
        # The votes.
        for p, w in enumerate(parameters):
            source, is_far = sources[p]
            f = far if is_far else own
            z = np.zeros(w.shape, dtype=np.int64)
            for t in range(length):
                if p == len(parameters) - 1:
                    y = head[t]
                    energy = within(max(1, int((y * y).sum()) // y.size), 1, 127**2)
                else:
                    y = int8(sum((f[m][t] * drawn[m][t][source] for m in range(n)), start=np.zeros(1, dtype=np.int64)))
                    energy = within(sum(f[m][t] ** 2 for m in range(n)), 0, 127**2)
                if p == 0:
                    z[text[t]] += y
                    variances[p][text[t]] += energy
                elif "bias" in names[p]:
                    z += y
                    variances[p][0] += energy
                else:
                    x = inputs[t][p]
                    z += np.outer(y, x)
                    for k in range(x.size):
                        variances[p][k] += energy * int(x[k]) ** 2
            votes[p] = int32(votes[p] + (rshift(z, v) if p and z.ndim == 2 else z))
    deviations = [[deviation(c, v if p and w.ndim == 2 else 0) for c in variances[p]] for p, w in enumerate(parameters)]
    z = []
    for p, w in enumerate(parameters):
        own_z = np.zeros(w.shape, dtype=np.int64)
        for place in np.ndindex(w.shape):
            d_of = deviations[p][place[0] if p == 0 else place[1] if w.ndim == 2 else 0]
            own_z[place] = standardised(int(votes[p][place]), d_of)
        z.append(own_z)
    count = number * n * length
    next_means = (max(1, size_d // count), max(1, size_r // count))
    return Told(losses, np.stack(after), votes, variances, deviations, z, next_means)


__all__ = ["Settings", "Told", "evaluate", "no_state"]
