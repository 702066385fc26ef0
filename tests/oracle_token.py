"""The estimator `token` in plain loops, written from docs/numerics.md alone (7.4, 8.2, 8.3, 9.2, 9.3): slow, and
independent of intlm.

One text, one member, one token at a time. Every intermediate is asserted to stay where the page says that it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from oracle import (
    TOKEN,
    Array,
    Averages,
    Averaging,
    Parameters,
    Plain,
    Shape,
    Threshold,
    average,
    int8,
    int32,
    key_of,
    parameter_names,
    parameter_shapes,
    rshift,
    sat8,
    scheduled_step,
    slopes,
    step,
    stream_bytes,
    threefry4x32,
    threshold_quantile,
    token_loss,
    uint32,
    weight_of,
    within,
)

FUTURE = {"mgu": ("gate", "candidate"), "rnn": ("candidate",)}  # parts of a cell that its next state depends on
SIGMAS = {"embedding": 4, "gate": 1, "candidate": 2, "up": 3, "down": 4}


@dataclass(frozen=True)
class Settings:
    """The settings of the estimator, and the texts of an update."""

    seed: int
    texts: int  # G
    members: int  # M
    credit: int
    sigma_shift: int

    @property
    def largest(self) -> int:
        """D, the largest fitness."""
        return 127 // within(self.members, 1, 127)


# ----------------------------------------------------------------------------------------------- 7.4 members


class Units(NamedTuple):
    """The units of one kind: those of the embedding, of a part of a layer's cell, of `up` or of `down`."""

    kind: str
    count: int
    product: int  # the number of the parameter whose product the noise enters; 0, the embedding, has none
    driven: tuple[int, ...]  # the numbers of the parameters that drive them, hence vote with their votes
    far: bool  # whether their credit is R


def every_units(shape: Shape) -> list[Units]:
    """All units of a token, in order."""
    names, sizes = parameter_names(shape), parameter_shapes(shape)
    found = [Units("embedding", shape.hidden, 0, (0,), True)]
    for layer in range(shape.layers):
        last = layer == shape.layers - 1
        for name in names:
            part, underscore, rest = name.partition("_input.")
            if underscore and int(rest) == layer:
                number = names.index(name)
                of_part = [f"{part}_{what}.{layer}" for what in ("input", "state", "bias")]
                driven = tuple(names.index(other) for other in of_part if other in names)
                far = not last or part in FUTURE[shape.cell]
                found.append(Units(part, sizes[number][0], number, driven, far))
        for kind in ("up", "down"):
            number = names.index(f"{kind}.{layer}")
            found.append(Units(kind, sizes[number][0], number, (number,), not last))
    return found


def member_number(settings: Settings, text: int, member: int) -> int:
    """The second word of a counter: 0 is the clean member, 1 + q noisy member q."""
    return uint32(text * (1 + settings.members) + within(member, 0, settings.members))


def sign(settings: Settings, update: int, text: int, member: int, token: int, unit: int) -> int:
    """S of one unit."""
    counter = (update, member_number(settings, text, 1 + member), token, unit // 128)
    words = _block(key_of(settings.seed, TOKEN), counter)
    return 1 if words[unit % 128 // 32] >> unit % 32 & 1 else -1


_BLOCKS: dict[Any, tuple[int, int, int, int]] = {}


def _block(key: tuple[int, ...], counter: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Threefry, remembered."""
    if (key, counter) not in _BLOCKS:
        _BLOCKS[key, counter] = threefry4x32(key, counter)
    return _BLOCKS[key, counter]


def signs(shape: Shape, settings: Settings, update: int, text: int, member: int, token: int) -> list[Array]:
    """S of all units, by kind as `every_units` has them."""
    found, first = [], 0
    for units in every_units(shape):
        own = [sign(settings, update, text, member, token, first + a) for a in range(units.count)]
        found.append(np.array(own, dtype=np.int64))
        first += units.count
    return found


def size_of_noise(settings: Settings, kind: str, fan_in: int) -> int:
    """What a sign is multiplied by; fan_in: of the units' product, of no use for the embedding."""
    sigma = within(SIGMAS[kind if kind in SIGMAS else "candidate"] + within(settings.sigma_shift, 0, 4), 1, 8)
    if kind == "embedding":
        return max(1, 16 >> sigma)
    return within(isqrt(fan_in * 4 ** (8 - sigma)), 1, 2**15)


class Noisy(Plain):
    """Reads parameters as a noisy member does at one token."""

    def __init__(self, parameters: Parameters, shape: Shape, settings: Settings, signs: list[Array]) -> None:
        super().__init__(parameters)
        self.settings = settings
        self.noise = {units.product: (units.kind, s) for units, s in zip(every_units(shape), signs, strict=True)}

    def embed(self, token: int) -> Array:
        """The noisy row of the embedding."""
        kind, signs = self.noise[0]
        return sat8(super().embed(token) + signs * size_of_noise(self.settings, kind, 0))

    def product(self, n: int, x: Array) -> Array:
        """The accumulator of a product, with noise where it has units."""
        accumulator = super().product(n, x)
        if n in self.noise:
            kind, signs = self.noise[n]
            accumulator = int32(accumulator + signs * size_of_noise(self.settings, kind, x.size))
        return accumulator


class Clean(Plain):
    """Reads parameters as they are, and keeps the input of each product."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self.inputs: dict[int, Array] = {}

    def product(self, n: int, x: Array) -> Array:
        """The accumulator of a product."""
        self.inputs[n] = int8(x).copy()  # a copy: the state is overwritten afterwards
        return super().product(n, x)


# --------------------------------------------------------------------------------- 8.2 credit, 8.3 fitness


def sign_of(x: int) -> int:
    """-1, 0 or 1."""
    return (x > 0) - (x < 0)


def differences(clean: Sequence[int], noisy: Sequence[int]) -> list[int]:
    """diff of one noisy member at each token, from the losses."""
    return [within(own - other, -36_865, 36_865) for own, other in zip(clean, noisy, strict=True)]


def credits(diff: Sequence[int], tokens: Sequence[int], credit: int) -> list[int]:
    """R of one noisy member at each token."""
    found = [0] * len(diff)
    for t in reversed(range(len(diff))):
        after = found[t + 1] if t + 1 < len(diff) and tokens[t + 1] != 0 else 0
        kept = int32(abs(after) * within(credit, 0, 7)) >> 3
        found[t] = within(diff[t] + sign_of(after) * kept, -294_920, 294_920)
    return found


def fitness(settings: Settings, x: int, mean: int) -> int:
    """The fitness of one credit x, R or diff."""
    largest = settings.largest
    return int8(sign_of(x) * min(largest, int32(abs(x) * largest + 2 * mean) // int32(4 * mean)))


def next_mean(settings: Settings, total: int, tokens: int) -> int:
    """μ after an update, from the exact sum of magnitudes."""
    return within(max(1, within(total, 0, 2**50) // (settings.texts * settings.members * tokens)), 1, 294_920)


# ------------------------------------------------------------------------------------------------ 9.2 votes


def unit_votes(scores: Sequence[int], signs: Sequence[Array]) -> Array:
    """Y of the units of one kind at one token; both by noisy member."""
    return int8(sum((f * s for f, s in zip(scores, signs, strict=True)), start=np.zeros_like(signs[0])))


def head_votes(settings: Settings, update: int, text: int, token: int, slope: Sequence[int]) -> Array:
    """Y of the logits at one token."""
    stream = (update, member_number(settings, text, 0), token)
    drawn = stream_bytes(key_of(settings.seed, TOKEN), stream, len(slope))
    return np.array([int8((s + byte) >> 8) for s, byte in zip(slope, drawn, strict=True)], dtype=np.int64)


def vote_shift(texts: int, tokens: int) -> int:
    """The shift of a text's votes for a matrix."""
    assert texts <= 2**19 and tokens <= 2**15 and texts * tokens <= 2**24
    shift = 0
    while texts * ((tokens * 127**2 + (2**shift >> 1)) >> shift) >= 2**31:
        shift += 1
    return within(shift, 0, 7)


def matrix_votes(y: Sequence[Array], x: Sequence[Array], shift: int) -> Array:
    """What one text adds to Z of a matrix; by token: y [T, O], x [T, I]."""
    total = np.zeros((y[0].size, x[0].size), dtype=np.int64)
    for own, read in zip(y, x, strict=True):
        total += np.outer(int8(own), int8(read))
    return rshift(total, shift)


def row_votes(y: Sequence[Array], tokens: Sequence[int], vocabulary: int) -> Array:
    """What one text adds to Z of the embedding."""
    total = np.zeros((vocabulary, y[0].size), dtype=np.int64)
    for own, token in zip(y, tokens, strict=True):
        total[token] += own
    return int32(total)


# ----------------------------------------------------------------------------- 9.3 chance, standardised votes


def variance_of_units(scores: Sequence[int]) -> int:
    """The variance of Y at one token, from the fitness of the noisy members."""
    return within(sum(f * f for f in scores), 0, 127**2)


def variance_of_head(y: Array) -> int:
    """The same of the head, from its Y."""
    return within(max(1, int((y * y).sum()) // y.size), 1, 127**2)


def matrix_chance(variances: Sequence[int], x: Sequence[Array]) -> list[int]:
    """What one text adds to C of a matrix, by column."""
    return [sum(v * int(read[i]) ** 2 for v, read in zip(variances, x, strict=True)) for i in range(x[0].size)]


def row_chance(variances: Sequence[int], tokens: Sequence[int], vocabulary: int) -> list[int]:
    """What one text adds to C of the embedding, by row."""
    return [sum(v for v, token in zip(variances, tokens, strict=True) if token == j) for j in range(vocabulary)]


def deviation(variance: int, shift: int) -> int:
    """δ, from C."""
    within(variance, 0, 2**52 - 1)
    kappa = 0
    while variance >> 2 * kappa >= 2**30:
        kappa += 1
    return within(max(1, (isqrt(variance >> 2 * kappa) << kappa) >> shift), 1, 2**26 - 1)


def standardised(z: int, deviation: int) -> int:
    """A vote in standard deviations, 256 = one."""
    beta = max(0, deviation.bit_length() - 16)
    size = int32(min(abs(int32(z)) >> beta, 2**22) * 256 + (deviation >> beta) // 2) // (deviation >> beta)
    return sign_of(z) * min(2**14, size)


def over(numbers: Sequence[int], shape: tuple[int, ...], embedding: bool) -> Array:
    """Numbers for each row of an embedding, each column of a matrix, or all of a bias, as an array of its shape."""
    found = np.array(numbers, dtype=np.int64)
    return np.broadcast_to(found[:, None] if embedding else found, shape)


# ------------------------------------------------------------------------------------------------ an update


class Votes(NamedTuple):
    """The results of an update before the optimizer. By the parameters' numbers, where not said otherwise."""

    losses: list[int]  # [G], of the clean members
    states: Array  # [G, L, H]
    votes: list[Array]  # Z
    chance: list[list[int]]  # C: by column of a matrix, by row of the embedding, one of a bias
    deviations: list[list[int]]  # δ, likewise
    standardised: list[Array]
    sums: tuple[int, int]  # of |diff| and of |R|
    means: tuple[int, int]  # μ_diff and μ_R, for the next update, where these are all texts


def evaluate(
    shape: Shape,
    settings: Settings,
    update: int,
    parameters: Parameters,
    states: Array,
    means: tuple[int, int],
    tokens: Array,
    targets: Array,
    first: int = 0,
) -> Votes:
    """An update up to its votes, or what some texts add to it, the first of which is number `first`.

    states: [texts, L, H]. means: μ_diff, μ_R. tokens: [texts, T]. targets: [texts, T, K].
    """
    texts, length = tokens.shape
    assert first + texts <= settings.texts
    shift = vote_shift(settings.texts, length)
    votes = [np.zeros(w.shape, dtype=np.int64) for w in parameters]
    chance = [[0] * (w.shape[0] if n == 0 else w.shape[1] if w.ndim == 2 else 1) for n, w in enumerate(parameters)]
    losses: list[int] = []
    after: list[Array] = []
    totals = [0, 0]

    def vote(n: int, y: list[Array], variances: list[int], text: list[int], inputs: list[dict[int, Array]]) -> None:
        """One text's votes for a parameter."""
        if n == 0:
            z, c = row_votes(y, text, shape.vocabulary), row_chance(variances, text, shape.vocabulary)
        elif parameters[n].ndim == 2:
            x = [read[n] for read in inputs]
            z, c = matrix_votes(y, x, shift), matrix_chance(variances, x)
        else:
            z, c = sum(y, start=np.zeros_like(y[0])), [sum(variances)]
        votes[n] = int32(votes[n] + z)
        chance[n] = [old + new for old, new in zip(chance[n], c, strict=True)]

    for i in range(texts):
        text, wanted = tokens[i].tolist(), targets[i].tolist()
        state, clean, inputs, head = states[i], [], [], []
        for t in range(length):
            read = Clean(parameters)
            logits, state = step(read, shape, state, text[t])
            clean.append(token_loss(logits, wanted[t]))
            inputs.append(read.inputs)
            head.append(head_votes(settings, update, first + i, t, slopes(logits, wanted[t])))
        losses.append(int32(sum(clean)))
        after.append(state)
        drawn = [
            [signs(shape, settings, update, first + i, q, t) for t in range(length)] for q in range(settings.members)
        ]
        own, far = [], []
        for q in range(settings.members):
            state, noisy = states[i], []
            for t in range(length):
                logits, state = step(Noisy(parameters, shape, settings, drawn[q][t]), shape, state, text[t])
                noisy.append(token_loss(logits, wanted[t]))
            diff = differences(clean, noisy)
            r = credits(diff, text, settings.credit)
            totals = [totals[0] + sum(map(abs, diff)), totals[1] + sum(map(abs, r))]
            own.append([fitness(settings, x, means[0]) for x in diff])
            far.append([fitness(settings, x, means[1]) for x in r])
        for place, units in enumerate(every_units(shape)):
            scores = list(zip(*(far if units.far else own), strict=True))  # [T, M]
            y = [unit_votes(scores[t], [drawn[q][t][place] for q in range(settings.members)]) for t in range(length)]
            variances = [variance_of_units(some) for some in scores]
            for n in units.driven:
                vote(n, y, variances, text, inputs)
        vote(len(parameters) - 1, head, [variance_of_head(y) for y in head], text, inputs)
    deviations = [
        [deviation(c, shift if n and w.ndim == 2 else 0) for c in chance[n]] for n, w in enumerate(parameters)
    ]
    finished = []
    for n, w in enumerate(parameters):
        along = over(deviations[n], w.shape, n == 0)
        z = [standardised(*pair) for pair in zip(votes[n].ravel().tolist(), along.ravel().tolist(), strict=True)]
        finished.append(np.array(z, dtype=np.int64).reshape(w.shape))
    new_means = next_mean(settings, totals[0], length), next_mean(settings, totals[1], length)
    return Votes(losses, np.stack(after), votes, chance, deviations, finished, (totals[0], totals[1]), new_means)


Optimizer = Threshold | Averaging


def optimize(
    optimizer: Optimizer, update: int, parameters: Parameters, votes: list[Array], state: list[list[Averages]] | None
) -> tuple[Parameters, list[list[Averages]] | None]:
    """The weights after an update, and the optimizer's state: None before the first, and always for `threshold`."""
    if isinstance(optimizer, Threshold):
        q = threshold_quantile(optimizer, update)
        return [np.where(np.abs(v) >= q, sat8(w + np.sign(v)), w) for w, v in zip(parameters, votes, strict=True)], None
    s = scheduled_step(optimizer, update)
    state = state or [[Averages(w << 16) for w in p.ravel().tolist()] for p in parameters]
    state = [
        [average(optimizer, s, v.ndim == 1, z, 1, old) for z, old in zip(v.ravel().tolist(), own, strict=True)]
        for v, own in zip(votes, state, strict=True)
    ]
    moved = [np.array([weight_of(a) for a in own], dtype=np.int64) for own in state]
    return [m.reshape(p.shape) for m, p in zip(moved, parameters, strict=True)], state
