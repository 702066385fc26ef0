"""Writes the golden vectors of docs/numerics.md, section 12, from tests/oracle.py: see README.md beside this file.

Usage: python tests/golden/make.py
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import oracle
import oracle_token

DIRECTORY = Path(__file__).resolve().parent
Fields = dict[str, Any]
LARGEST = 2**14 - 1  # the largest logit
# Found by search: inputs whose result changes if the mean, a share or a draw is off by one unit.
MEANS_NEAR_A_HALF = [np.array([2] * 3 + [1] * 93)]
DRAWS_NEAR_AN_END = (
    (256, [0, 112_370, 602_357, 1_070_867, 8_861_397]),
    (300, [9, 18, 8_444, 525_704, 3_145_432, 13_448_578]),
)
SUMS_NEAR_AN_ENTRY = [[LARGEST - d for d in (0, 3, 3025, *[far] * 16)] for far in (6400, 6655, 6656)]
SUMS_NEAR_AN_ENTRY.append([LARGEST - d for d in (0, 100, 221)])


def numbers(seed: int, size: Any, bound: int = 127) -> oracle.Array:
    """Random integers in [-bound, bound] for inputs, from the oracle's generator: no release of numpy changes them."""
    count = int(np.prod(size))
    drawn = oracle.stream_bytes((seed, 0, 0, 0xFFFFFFFF), (0, 0, 0), 4 * count)
    words = np.frombuffer(drawn, dtype="<u4").astype(np.int64)
    return (words % (2 * bound + 1) - bound).reshape(size)


def named(shape: oracle.Shape, values: list[oracle.Array]) -> Fields:
    """Parameters, or arrays of the same shapes, by name."""
    return {name: value.tolist() for name, value in zip(oracle.parameter_names(shape), values, strict=True)}


def described(shape: oracle.Shape) -> Fields:
    """A model's shape, as it is written into a case."""
    return {
        "vocabulary": shape.vocabulary,
        "hidden": shape.hidden,
        "feed_forward": shape.feed_forward,
        "layers": shape.layers,
        "nonlinearity": shape.nonlinearity,
    }


def random_bits() -> list[Fields]:
    """Threefry on keys and counters, and the bytes of streams."""
    ones, pi = [2**32 - 1] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    pi_key = [0xA4093822, 0x299F31D0, 0x082EFA98, 0xEC4E6C89]
    cases: list[Fields] = [
        {"key": key, "counter": counter, "words": list(oracle.threefry4x32(key, counter))}
        for key, counter in (([0] * 4, [0] * 4), (ones, ones), (pi_key, pi), ([1, 2, 3, 4], [5, 6, 7, 8]))
    ]
    for seed, domain, stream in ((0, 0, (0, 0, 0)), (2**64 - 1, 1, (0, 0, 12)), (2**40 + 9, 0, (7, 2**19 - 1, 3))):
        key = oracle.key_of(seed, domain)
        drawn = oracle.stream_bytes(key, stream, 40)
        cases.append({"seed": str(seed), "domain": domain, "key": key, "stream": stream, "bytes": drawn.hex()})
    return cases


def rescale() -> list[Fields]:
    """Accumulators brought to their scale: saturated or not, at ties and beside them, for many fan-ins."""
    cases = []
    for kind, rule in (("act", oracle.act), ("act3", oracle.act3), ("logit", oracle.logit)):
        for fan_in in (8, 16, 24, 64, 72, 256, 264, 1024, 1032, 4096, 4104, 65_536):
            by = rule(fan_in)
            half, unit = 1 << max(0, by.s - 1), 1 << by.s
            edges = (half, 3 * half, 2**14 * unit, 32_766 * unit + half, 32_767 * unit + half, 127 * 127 * fan_in)
            near = sorted({x + d for x in edges for d in (-1, 0, 1)} | {0})
            values = [x for x in [*(-x for x in reversed(near)), *near] if abs(x) <= 127 * 127 * fan_in]
            found = [oracle.rescale(x, by) for x in values]
            cases.append({"kind": kind, "fan_in": fan_in, "shift": by.s, "multiplier": by.m, "x": values, "y": found})
    return cases


def noise() -> list[Fields]:
    """Vectors and the factors of matrices."""
    cases: list[Fields] = []
    for rank, reuse, update, pair, parameter, size in (
        (1, 1, 0, 0, 0, (3, 8)),
        (2, 3, 8, 5, 7, (24, 40)),
        (5, 0, 99, 2**19 - 1, 2, (17, 8)),
        (1, 1, 2**32 - 1, 1, 4, (40,)),
        (4, 2, 7, 0, 1, (8,)),
    ):
        setting = oracle.Noise(2**63 + 5, rank, 4, reuse)
        epoch = oracle.epoch(setting, update)
        case: Fields = {"seed": str(setting.seed), "rank": rank, "noise_reuse": reuse, "update": update, "epoch": epoch}
        case |= {"pair": pair, "parameter": parameter, "shape": size}
        if len(size) == 1:
            case["z"] = oracle.noise_vector(setting, (epoch, pair, parameter), size[0]).tolist()
        else:
            a, b = oracle.noise_factors(setting, (epoch, pair, parameter), size)
            case |= {"A": a.tolist(), "B": b.tolist(), "c_r": oracle.rank_scale(rank)}
        cases.append(case)
    return cases


def first_values() -> list[Fields]:
    """The parameters before the first update."""
    shape, seed = oracle.Shape(3, 8, 16, 1, "clip"), 2**64 - 2
    values = oracle.first_values(shape, seed)
    return [{"model": described(shape), "seed": str(seed), "parameters": named(shape, values)}]


def norm() -> list[Fields]:
    """By the mean magnitude: large, small and no inputs."""
    cases = []
    for seed, size, bound in ((1, 8, 127), (2, 24, 16), (3, 40, 1), (4, 8, 3), (5, 8, 0)):
        x = numbers(seed, size, bound)
        cases.append({"x": x.tolist(), "y": oracle.norm(x).tolist()})
    uneven, single = np.array([-127, 127, 1, 0, 0, 0, 0, -1]), np.array([127] + [0] * 7)
    rows = [np.full(8, -127), uneven, single, -single, np.full(8, 127)]
    rows += MEANS_NEAR_A_HALF
    return [*cases, *({"x": x.tolist(), "y": oracle.norm(x).tolist()} for x in rows)]


def layer() -> list[Fields]:
    """One layer of the plain model; in the last cases its accumulators pass int16."""
    cases = []
    for seed, nonlinearity in ((1, "clip"), (2, "table")):
        shape = oracle.Shape(2, 8, 24, 1, nonlinearity)
        values = [numbers(100 * seed + n, size, 50) for n, size in enumerate(oracle.parameter_shapes(shape))]
        names = oracle.parameter_names(shape)
        own = {name.removesuffix(".0"): v.tolist() for name, v in zip(names, values, strict=True) if "." in name}
        steps = []
        for i in range(3):
            x, h = numbers(i, 8, 40 * i + 20), numbers(i + 10, 8)
            after, state = oracle.layer_step(oracle.Plain(values), shape, 0, x, h)
            steps.append({"x": x.tolist(), "h": h.tolist(), "x_after": after.tolist(), "h_after": state.tolist()})
        sizes = {"hidden": 8, "feed_forward": 24, "nonlinearity": nonlinearity}
        cases.append({**sizes, "parameters": own, "steps": steps})
    for seed, hidden, nonlinearity in ((3, 8, "clip"), (4, 24, "clip"), (5, 24, "table")):
        shape = oracle.Shape(2, hidden, 8, 1, nonlinearity)
        cases.append(saturated_layer(seed, shape))
    return cases


def saturated_layer(seed: int, shape: oracle.Shape) -> Fields:
    """One layer whose accumulators exceed int16 and are added to others of the opposite sign."""
    hidden = shape.hidden
    signs = 2 * (numbers(seed, hidden, 10**6) % 2) - 1
    values = [numbers(100 * seed + n, size, 127) for n, size in enumerate(oracle.parameter_shapes(shape))]
    first = 1
    for n in (oracle.GATE_INPUT, oracle.CANDIDATE_INPUT, oracle.UP):  # signs of x; then the opposite
        values[first + n][:4] = 127 * signs
    for n in (oracle.GATE_STATE, oracle.CANDIDATE_STATE):
        values[first + n][:4] = -127 * signs
    values[first + oracle.DOWN][:4] = [[127], [-127], [120], [-120]]
    names = oracle.parameter_names(shape)
    own = {name.removesuffix(".0"): v.tolist() for name, v in zip(names, values, strict=True) if "." in name}
    steps = []
    for x, h in ((127 * signs, 127 * signs), (16 * signs, 100 * signs), (-127 * signs, numbers(seed, hidden))):
        after, state = oracle.layer_step(oracle.Plain(values), shape, 0, x, h)
        steps.append({"x": x.tolist(), "h": h.tolist(), "x_after": after.tolist(), "h_after": state.tolist()})
    sizes = {"hidden": hidden, "feed_forward": shape.feed_forward, "nonlinearity": shape.nonlinearity}
    return {**sizes, "parameters": own, "steps": steps}


def logits() -> list[Fields]:
    """A text through the plain model: the logits after each token, and the last states."""
    cases = []
    for seed, shape in ((1, oracle.Shape(7, 8, 16, 2, "clip")), (2, oracle.Shape(3, 24, 8, 1, "table"))):
        values = [numbers(100 * seed + n, size) for n, size in enumerate(oracle.parameter_shapes(shape))]
        state = before = numbers(seed, (shape.layers, shape.hidden))
        tokens, found = [1, 2, 1, 0, 2], []
        for token in tokens:
            row, state = oracle.step(oracle.Plain(values), shape, state, token)
            found.append(row.tolist())
        case = {"model": described(shape), "parameters": named(shape, values), "tokens": tokens}
        cases.append({**case, "states": before.tolist(), "logits": found, "states_after": state.tolist()})
    return cases


def loss() -> list[Fields]:
    """Even, certain, wrong, and with tails at the distances where rounding and the largest shift show. One target to
    eight, of which some are the same."""
    rows = [[0, 0], [LARGEST, -LARGEST], [-LARGEST] * 3, [5, 0, -5, 300, 299], numbers(1, 257, 700).tolist()]
    rows.append(numbers(2, 257, LARGEST).tolist())
    for below in (256 * 24, 256 * 25, 256 * 25 + 1, 256 * 31, 2 * LARGEST):
        rows.append([LARGEST - below] * 8 + [LARGEST] + [LARGEST - below] * 8)
    rows += SUMS_NEAR_AN_ENTRY
    cases = []
    for row in rows:
        likeliest, last = int(np.argmax(row)), len(row) - 1
        targets = [[target] for target in sorted({0, likeliest, last})]
        targets += [[0, last], [likeliest, last, last, 0], [3 * k % len(row) for k in range(8)]]
        found = [oracle.token_loss(np.array(row), some) for some in targets]
        cases.append({"logits": row, "log_sum_exp2": oracle.log_sum_exp2(np.array(row)), "targets": targets})
        cases[-1]["losses"] = found
    return cases


def fitness() -> list[Fields]:
    """Both kinds, on losses small, large, alike and far apart. Members in order: pair 0 adds, pair 0 subtracts, …"""
    cases = []
    largest = 32_768 * 36_865
    for losses in (
        [100, 130, 90, 20, 55, 55, 1000, 990],
        [0, largest, largest, 0, 5, 6, 7, 7],
        [7] * 8,
        [40_000, 40_001] * 4,
        (10_000 + numbers(6, 128, 900)).tolist(),  # so many pairs that rank 256 lowers D
        [0, 2**24, 2**22, 0, 5, 6, 9, 8],  # a difference that is cut
        [2**24, 0, 1_661_894, 0],  # one where the cut shows in its last unit
        [6, 0, 0, 248, 0, 127, 127, 0],  # a mean of 127, and a tie below 0
        [*range(22), 0, 900],  # more than four means
    ):
        for rank in (1, 256):
            signs, shaped = (oracle.fitness(kind, losses, rank) for kind in ("sign", "normalised"))
            bound = oracle.fitness_bound(len(losses) // 2, rank)
            cases.append({"losses": losses, "rank": rank, "sign": signs, "normalised": shaped, "D": bound})
    return cases


def votes() -> list[Fields]:
    """Of one parameter, from the fitness of a few pairs."""
    cases = []
    for rank, parameter, size, scores in ((1, 1, (8,), [1, -1, 0, 1]), (3, 2, (24, 8), [127, -5, 0, 40])):
        setting = oracle.Noise(11, rank, 4, 1)
        before = [np.zeros(0, np.int64)] * parameter + [np.zeros(size, np.int64)]
        z = oracle.votes(setting, 6, scores, before)[parameter]
        case = {"seed": str(setting.seed), "rank": rank, "noise_reuse": 1, "update": 6, "parameter": parameter}
        cases.append({**case, "shape": size, "fitness": scores, "votes": z.tolist()})
    return cases


def perturbation() -> list[Fields]:
    """What both members of a pair read of a matrix for an input (accumulators), of a vector, and of an embedding."""
    cases: list[Fields] = []
    for rank, sigma_shift, parameter, size, along in (
        (1, 0, 0, (2, 40), 0),
        (5, 3, 0, (7, 24), 0),
        (2, 1, 0, (2, 40), 0),
        (1, 0, 3, (8,), 0),
        (4, 2, 3, (40,), 0),
        (3, 2, 8, (24, 8), 0),
        (256, 12, 2, (8, 8), 0),
        (1, 4, 2, (2, 384), 1),  # x has the signs of the noise, then the opposite ones: its product saturates
        (1, 1, 2, (2, 384), -1),
    ):
        setting, update, pair = oracle.Noise(2**50 + parameter, rank, sigma_shift, 2), 7, 2**18 + rank
        weights = numbers(rank + sigma_shift, size)
        weights.ravel()[::2] = 127 * np.sign(weights.ravel()[::2])
        before = [np.zeros(0, np.int64)] * parameter + [weights]
        adds, subtracts = (oracle.Member(before, setting, update, 2 * pair + side) for side in (0, 1))
        case: Fields = {"seed": str(setting.seed), "rank": rank, "sigma_shift": sigma_shift, "noise_reuse": 2}
        case |= {"update": update, "pair": pair, "parameter": parameter, "shape": size, "weights": weights.tolist()}
        if len(size) == 1:
            cases.append({**case, "read": [member.vector(parameter).tolist() for member in (adds, subtracts)]})
        elif parameter == 0:
            token = size[0] - 1
            found = [member.embed(token).tolist() for member in (adds, subtracts)]
            cases.append({**case, "token": token, "read": found})
        else:
            x = numbers(parameter, size[1])
            if along:
                x = 127 * along * np.sign(adds.factors(parameter)[1][0])
            found = [member.product(parameter, x).tolist() for member in (adds, subtracts)]
            cases.append({**case, "x": x.tolist(), "read": found})
    return cases


def texts() -> list[Fields]:
    """The tokens and targets of an update: rings shorter and longer than what is read, one target and several."""
    cases = []
    word, other = [0, 2, 3, 2, 4, 2, 3], [0, *[2, 3] * 9, 0, *[3, 2] * 4, 2]
    for mixture, vocabulary, count, tokens, targets, update in (
        ([(1, word)], 5, 1, 3, 1, 0),
        ([(3, word)], 5, 3, 5, 1, 7),
        ([(1, word)], 5, 9, 2, 1, 1),
        ([(1, word)], 5, 3, 4, 4, 2),
        ([(1, word)], 5, 2, 3, 16, 2**32 - 1),
        ([(1, other)], 257, 3, 9, 2, 4),
        ([(1, other)], 256, 3, 9, 2, 4),
        ([(1, other)], 4, 3, 9, 2, 4),
        ([(2, word), (1, other), (4, word[:4])], 5, 9, 3, 1, 5),
        ([(5, other), (3, word)], 30, 5, 4, 4, 11),
    ):
        read, wanted = oracle.texts_read(mixture, vocabulary, count, tokens, targets, update)
        case: Fields = {"mixture": [{"share": share, "ring": ring} for share, ring in mixture]}
        case |= {"vocabulary": vocabulary, "texts": count, "tokens_per_update": tokens, "update": update}
        cases.append({**case, "tokens": read, "targets": wanted})
    return cases


def update() -> list[Fields]:
    """Two whole updates after each other: every member's losses and states, fitness, votes, weights."""
    cases = []
    for shape, setting, pairs, group_size, kind, optimizer, first, count in (
        (
            oracle.Shape(5, 8, 24, 2, "clip"),
            oracle.Noise(2**40 + 9, 1, 4, 0),
            3,
            1,
            "sign",
            oracle.Threshold(4, 10),
            7,
            1,
        ),
        (
            oracle.Shape(3, 16, 8, 3, "table"),
            oracle.Noise(7, 3, 2, 3),
            4,
            2,
            "normalised",
            oracle.Threshold(4, 5),
            2,
            4,
        ),
    ):
        values = oracle.first_values(shape, setting.seed)
        states = np.zeros((2 * pairs, shape.layers, shape.hidden), np.int64)
        case: Fields = {
            "model": described(shape),
            "seed": str(setting.seed),
            "rank": setting.rank,
            "sigma_shift": setting.sigma_shift,
            "noise_reuse": setting.noise_reuse,
            "pairs": pairs,
            "group_size": group_size,
            "fitness_kind": kind,
            "alpha": optimizer.alpha,
            "decay_updates": optimizer.decay_updates,
            "parameters": named(shape, values),
            "updates": [],
        }
        for number in (first, first + 1):
            texts = numbers(number, (pairs // group_size, 6), 10**6) % shape.vocabulary
            texts[-1, 3] = 0
            others = numbers(number + 10, (pairs // group_size, 5, count - 1), 10**6) % shape.vocabulary
            tokens, targets = texts[:, :-1], np.concatenate([texts[:, 1:, None], others], axis=2)
            own = (np.repeat(some, group_size, axis=0) for some in (tokens, targets))
            done = oracle.whole_update(shape, setting, kind, optimizer, number, values, *own, states)
            values, states = done.parameters, done.states
            case["updates"].append(
                {
                    "update": number,
                    "tokens": tokens.tolist(),
                    "targets": targets.tolist(),
                    "losses": done.losses,
                    "states_after": states.tolist(),
                    "fitness": done.fitness,
                    "quantile": oracle.threshold_quantile(optimizer, number),
                    "votes": named(shape, done.votes),
                    "parameters_after": named(shape, values),
                }
            )
        cases.append(case)
    return cases


def optimizers() -> list[Fields]:
    """A few weights under momentum, Adam and threshold: updates in a row, through warm-up, decay and past it."""
    cases: list[Fields] = []
    for kind, k, size in (
        ("momentum", 0, (2, 4)),
        ("momentum", 3, (8,)),
        ("momentum", 10, (2, 4)),
        ("adam", 0, (8,)),
        ("adam", 3, (2, 4)),
        ("adam", 10, (8,)),
    ):
        optimizer = oracle.Averaging(kind, k, 512, decay_updates=5, warmup_updates=2, weight_decay=255)
        cases.append(averaged(optimizer, size))
    for kind, k, size, steps in (
        ("momentum", 2, (2, 4), (7, 3, 6, 13)),  # a step of 0 from the end of the warm-up on
        ("momentum", 1, (8,), (511, 4, 4, 0)),  # no update between warm-up and the end
        ("momentum", 2, (8,), (300, 4, 3, 1)),  # one update
        ("momentum", 0, (2, 4), (1, 2**31 - 1, 0, 200)),
        ("adam", 4, (2, 4), (33, 3, 0, 100)),  # updates past the end
    ):
        optimizer = oracle.Averaging(kind, k, *steps)
        cases.append(averaged(optimizer, size))
    # From a state such as many updates of small votes leave: mean squares below and near the smallest divisor.
    states = [
        oracle.Averages(w << 14, mean, square)
        for w, mean, square in zip(
            numbers(8, 8, 400).tolist(),
            numbers(9, 8, 900).tolist(),
            (0, 33, 1000, 4095, 4096, 4097, 2**26, 40_000),
            strict=True,
        )
    ]
    cases.append(averaged(oracle.Averaging("adam", 2, 512, 9, 0, 3), (2, 4), states, deviations=(0, 1, 0, 0, 1, 0)))
    return cases + thresholds()


def averaged(
    optimizer: oracle.Averaging,
    size: tuple[int, ...],
    before: list[oracle.Averages] | None = None,
    deviations: tuple[int, ...] = (1, 3, 100, 0, 1, 20),
) -> Fields:
    """Six updates of one parameter, from `before` or from its first state; the votes reach `deviations` deviations."""
    rank, k = 3, optimizer.k
    values = numbers(k, size)
    values.ravel()[:3] = [127, -127, 0]
    weights = before or [oracle.Averages(w << 16) for w in values.ravel().tolist()]
    case: Fields = {
        "optimizer": optimizer.kind,
        "rank": rank,
        "momentum": k,
        "weight_decay": optimizer.weight_decay,
        "step": optimizer.step,
        "warmup_updates": optimizer.warmup_updates,
        "decay_updates": optimizer.decay_updates,
    }

    def state() -> Fields:
        found = dict(zip(oracle.Averages._fields, map(list, zip(*weights, strict=True)), strict=True))
        if optimizer.kind == "momentum":
            del found["square"]
        after = {**found, "weights_after": [oracle.weight_of(weight) for weight in weights]}
        return {name: np.reshape(value, size).tolist() for name, value in after.items()}

    if before:
        given = state()
        case |= {"weights": given.pop("weights_after"), "before": given, "updates": []}
    else:
        case |= {"weights": values.tolist(), "updates": []}
    scores = ([1, -1, 1, 0, 1], [3, -127, 5, 0, 90], [1, 1, 1, 1, 1], [0] * 5, [127] * 5, [-1, 1, 0, 0, 0])
    for update, (fitness, reached) in enumerate(zip(scores, deviations, strict=True)):
        s, sigma = oracle.scheduled_step(optimizer, update), oracle.deviation(fitness, rank, len(size))
        votes = numbers(100 * k + update, size, 256 * sigma * reached)
        drawn = zip(votes.ravel().tolist(), weights, strict=True)
        weights = [oracle.average(optimizer, s, len(size) == 1, vote, sigma, weight) for vote, weight in drawn]
        case["updates"].append(
            {"update": update, "fitness": fitness, "votes": votes.tolist(), "s": s, "sigma_z": sigma} | state()
        )
    return case


def thresholds() -> list[Fields]:
    """Weights under threshold: votes at the quantile and beside it, of either sign and 0; weights at their bounds."""
    cases = []
    for size, optimizer, updates in (
        ((2, 4), oracle.Threshold(4, 10), (0, 1, 25)),
        ((8,), oracle.Threshold(16, 2**31 - 1), (0, 3, 2**31 - 1)),
        ((8,), oracle.Threshold(0, 1), (0, 9)),
    ):
        rank = 3
        values = np.array([127, -127, 127, -127, 126, 0, 5, -5]).reshape(size)
        case: Fields = {"optimizer": "threshold", "rank": rank, "alpha": optimizer.alpha}
        case |= {"decay_updates": optimizer.decay_updates, "weights": values.tolist(), "updates": []}
        for update, fitness in zip(updates, ([1, -1, 1, 0, 1], [3, -127, 5, 0, 90], [1, 1, 1, 1, 1]), strict=False):
            q, sigma = oracle.threshold_quantile(optimizer, update), oracle.deviation(fitness, rank, len(size))
            edge = q * sigma
            votes = np.array([edge + 1, -edge - 1, edge, -edge, edge, 0, 1 - edge, edge - 1]).reshape(size)
            (values,) = oracle.threshold(optimizer, update, fitness, rank, [values], [votes])
            case["updates"].append(
                {"update": update, "fitness": fitness, "votes": votes.tolist(), "quantile": q, "sigma_z": sigma}
                | {"weights_after": values.tolist()}
            )
        cases.append(case)
    return cases


def sampling() -> list[Fields]:
    """Sixteen draws each, at several temperatures and numbers of kept tokens, equal logits among them."""
    cases = []
    rows = ([7, 300, 300, 12, 300, 0], numbers(1, 100, 600).tolist(), numbers(2, 100, LARGEST).tolist())
    for seed, row in enumerate(rows):
        for v, k in ((256, len(row)), (320, 2), (1, len(row)), (2**15, len(row)), (256, 1)):
            drawn = [oracle.sample(np.array(row), v, k, seed, position) for position in range(16)]
            cases.append({"logits": row, "v": v, "k": k, "seed": str(seed), "tokens": drawn})
    row = numbers(3, 256, 150)
    for v, positions in DRAWS_NEAR_AN_END:
        drawn = [oracle.sample(row, v, len(row), 3, position) for position in positions]
        case = {"logits": row.tolist(), "v": v, "k": len(row), "seed": "3", "positions": positions}
        cases.append({**case, "tokens": drawn})
    return cases


def slopes() -> list[Fields]:
    """How losses fall with each logit: even, certain and wrong predictions, one target to 1024, the same ones too."""
    cases = []
    rows = [
        [0, 0, 0],
        [LARGEST, -LARGEST, -LARGEST],
        [300, 0, 299],
        [LARGEST, LARGEST - 2303, 0],  # a tie
        numbers(1, 19, 700).tolist(),
    ]
    rows += [[LARGEST - 256 * min(i + i // 2, 127) for i in range(19)], *SUMS_NEAR_AN_ENTRY]
    for row in rows:
        last = len(row) - 1
        targets = [[0], [last], [last, last, 0, last], [3 * k % len(row) for k in range(4)]]
        if len(row) == 3:
            targets += [[0] * 1023 + [2], [k % 3 for k in range(1024)]]
        found = [oracle.slopes(np.array(row), some) for some in targets]
        cases.append({"logits": row, "targets": targets, "slopes": found})
    return cases


def settings_of(settings: Any) -> Fields:
    """The settings of the estimator `token`, as they are written into a case."""
    return {"seed": str(settings.seed), "members": settings.members}


def by_kind(shape: oracle.Shape, values: list[Any]) -> Fields:
    """What belongs to each kind of units, by its name."""
    kinds = [units.kind for units in oracle_token.every_units(shape)]
    return {
        f"{kind}.{kinds[:i].count(kind)}" if i else kind: v
        for i, (kind, v) in enumerate(zip(kinds, values, strict=True))
    }


def token_noise() -> list[Fields]:
    """The signs of a noisy member's units at one token; then the size of the noise, by kind and fan-in."""
    cases: list[Fields] = []
    for shape, members, seed, where in (
        (oracle.Shape(3, 8, 16, 2, "clip"), 8, 0, (0, 0, 0, 0)),
        (oracle.Shape(3, 16, 24, 3, "clip"), 1, 2**64 - 1, (5, 5, 0, 7)),  # more than 128 units
        (oracle.Shape(3, 8, 24, 2, "table", "rnn"), 3, 2**40 + 9, (6, 2, 2, 1)),
        (oracle.Shape(3, 8, 8, 1, "clip"), 127, 2**63 + 5, (2**32 - 1, 2**19 - 1, 126, 32_767)),
    ):
        settings = oracle_token.Settings(seed, 2**19, members, 4, 0)
        update, text, member, token = where
        found = by_kind(shape, [s.tolist() for s in oracle_token.signs(shape, settings, *where)])
        case = {"model": described(shape), "cell": shape.cell, **settings_of(settings), "update": update}
        cases.append({**case, "text": text, "noisy_member": member, "token": token, "signs": found})
    for shift in range(5):
        settings = oracle_token.Settings(0, 1, 1, 4, shift)
        for kind in ("embedding", "gate", "candidate", "up", "down", "reset"):
            fan_ins = [8, 16, 24, 40, 256, 1000, 65_536] if kind != "embedding" else [1]
            found = [oracle_token.size_of_noise(settings, kind, fan_in) for fan_in in fan_ins]
            cases.append({"kind": kind, "sigma_shift": shift, "fan_in": fan_ins, "size": found})
    return cases


def token_credit() -> list[Fields]:
    """Losses of one text's members to differences, credit, and fitness by given means; then means from sums."""
    cases: list[Fields] = []
    most = 36_865
    steps = [0, 1, 2, 3, 5, 8, 15, 16, 17, 30, 45, 59, 60, 61, 90, 120]
    for members, credit, means, tokens, clean, noisy in (
        (3, 4, (1, 1), [2, 3, 0, 2, 2], [500] * 5, numbers(1, (3, 5), 200) + 500),
        (2, 7, (40, 90), [0, 0, 1, 1, 0], [900, 3, 40, 77, 812], numbers(2, (2, 5), 300) + 600),
        (1, 0, (9, 11), [1, 2, 1], [100, 101, 99], np.array([[90, 101, 110]])),
        (4, 5, (7, 3), [1] * 6, [60] * 6, numbers(3, (4, 6), 9) + 60),
        (1, 7, (most, 294_920), [1] * 40, [most] * 40, np.zeros((1, 40), int)),  # the largest there are
        (2, 7, (1, 1), [1] * 40, [0] * 40, np.full((2, 40), most)),
        (
            8,
            4,
            (15, 30),
            [1, 0] * 8,
            [200] * 16,
            np.array([[200 + s, 200 - s][i % 2] for i in range(8) for s in steps]),
        ),
        (127, 1, (3, 2), [1, 1], [10, 10], numbers(4, (127, 2), 9) + 10),
    ):
        settings = oracle_token.Settings(0, 1, members, credit, 0)
        noisy = noisy.reshape(members, len(tokens)).tolist()
        diff = [oracle_token.differences(clean, own) for own in noisy]
        r = [oracle_token.credits(own, tokens, credit) for own in diff]
        case: Fields = {"members": members, "credit": credit, "means": means, "tokens": tokens}
        case |= {"clean": clean, "noisy": noisy, "diff": diff, "R": r}
        for name, some, mean in (("fitness_diff", diff, means[0]), ("fitness_R", r, means[1])):
            case[name] = [[oracle_token.fitness(settings, x, mean) for x in own] for own in some]
        cases.append(case)
    for texts, members, tokens, sums in (
        (1, 1, 1, [0, 1, most, 294_920]),
        (3, 8, 5, [119, 120, 239, 240, 120 * most - 1, 120 * 294_920]),
        (2**19, 127, 32, [0, 2**31, 2**45 - 1, 127 * 2**24 * most, 127 * 2**24 * 294_920]),
        (2**9, 127, 2**15, [127 * 2**24 * 294_920 - 1]),
    ):
        settings = oracle_token.Settings(0, texts, members, 4, 0)
        found = [oracle_token.next_mean(settings, total, tokens) for total in sums]
        case = {"texts": texts, "members": members, "tokens_per_update": tokens}
        cases.append({**case, "sums": sums, "means_after": found})
    return cases


def token_votes() -> list[Fields]:
    """Slopes rounded to the head's votes; votes and chance of a matrix from the first texts of an update, with and
    without a vote shift; deviations from C; standardised votes."""
    cases: list[Fields] = []
    one = 127 * 2**8
    for members, seed, (update, text, token), slope in (
        (8, 5, (0, 0, 0), [0, 1, -1, 128, -128, 255, -255, one, -one, *numbers(5, 31, one).tolist()]),
        (127, 2**64 - 1, (2**32 - 1, 2**19 - 1, 32_767), [one, -one, *numbers(6, 15, 300).tolist()]),
        (1, 0, (1, 1, 1), [256, 512, -256, 0, 0, 0, 256 * 3]),  # a mean square of 15 / 7
        (1, 0, (1, 2, 1), [256, 512, -256, 512, 0, 0, 256]),  # of 11 / 7
        (1, 0, (1, 3, 1), [256, -256, 0, 0, 0]),  # of less than 1
    ):
        settings = oracle_token.Settings(seed, 2**19, members, 4, 0)
        y = oracle_token.head_votes(settings, update, text, token, slope)
        case = {**settings_of(settings), "update": update, "text": text, "token": token, "slope": slope}
        cases.append({**case, "Y": y.tolist(), "variance": oracle_token.variance_of_head(y)})
    for seed, texts, tokens, bound in (
        (1, 3, 4, 127),
        (2, 4, 32_768, 127),  # 0
        (3, 5, 32_768, 127),  # 1
        (7, 15_664, 17, 127),  # 2; here and in the next two the rounding term decides
        (4, 266_272, 32, 127),
        (8, 501_280, 17, 127),
        (5, 2**9, 2**15, 127),
        (6, 2**9, 2**15, 9),  # sums that are ties of the shift
    ):
        shift = oracle_token.vote_shift(texts, tokens)
        y, x = numbers(seed, (2, 3, 3), bound), numbers(10 + seed, (2, 3, 4), bound)
        variances = (np.abs(numbers(20 + seed, (2, 3), bound)) ** 2).tolist()
        if bound == 9:
            y[:, 1:], x[:, 1:] = 0, 0
            y[0, 0], x[0, 0] = [32, -32, 96], [2, -2, 6, 1]  # halves of 2^7
        votes = sum(oracle_token.matrix_votes(list(y[i]), list(x[i]), shift) for i in range(2))
        parts = [oracle_token.matrix_chance(variances[i], list(x[i])) for i in range(2)]
        chance = [sum(column) for column in zip(*parts, strict=True)]
        case = {"texts": texts, "tokens_per_update": tokens, "vote_shift": shift, "Y": y.tolist(), "x": x.tolist()}
        case |= {"variance": variances, "votes": votes.tolist(), "C": chance}
        cases.append(case | {"deviations": [oracle_token.deviation(c, shift) for c in chance]})
    edges = [4**k * 2**30 + d for k in range(11) for d in (-1, 0, 1)]
    sums = [
        0,
        1,
        2,
        3,
        4,
        127**2,
        2**29,
        32_769**2,
        4 * 46_339**2,
        *edges,
        127**4 * 2**24,
        2**52 - 1,
        10**15 + 7,
        3 * 2**49 + 12_345,
    ]
    for shift in (0, 1, 7):
        found = [oracle_token.deviation(c, shift) for c in sums]
        cases.append({"vote_shift": shift, "C": sums, "deviations": found})
    for deviation in (1, 2, 3, 10, 256, 65_535, 65_536, 65_537, 65_539, 131_073, 2**20 + 5, 2**26 - 1):
        near = [deviation // 512, deviation // 2, deviation, 3 * deviation, 64 * deviation - 1, 64 * deviation]
        near += [(2 * k + 1) * deviation // 512 for k in range(3)]
        votes = sorted({abs(z + d) for z in near for d in (-1, 0, 1)} | {2**31 - 1, 2**30, 12_345_678})
        votes = [z for pair in votes if pair < 2**31 for z in (pair, -pair)]
        found = [oracle_token.standardised(z, deviation) for z in votes]
        cases.append({"deviation": deviation, "votes": votes, "standardised": found})
    return cases


def token_update() -> Iterator[Fields]:
    """Whole updates of both cells: losses, states, votes, deviations of chance, weights, and the next means."""
    Shape, Averaging = oracle.Shape, oracle.Averaging
    for shape, (members, credit, sigma_shift), (texts, tokens, count), means, optimizer, keys, numbers_of, limit in (
        (
            Shape(4, 16, 8, 1, "table"), (1, 6, 4), (2, 4, 2), (30, 50),
            oracle.Threshold(4, 10), ("threshold",), (5,), 30,  # with votes at the quantile
        ),
        (
            Shape(3, 8, 16, 2, "table", "rnn"), (3, 7, 1), (2, 4, 4), (90, 200),
            Averaging("adam", 3, 512, 2**31 - 1), ("adam",), (2**31 - 1,), 127,
        ),
        (
            Shape(5, 8, 16, 2, "clip"), (2, 4, 0), (3, 5, 1), (1, 1),
            Averaging("momentum", 2, 400, 9, 2, 200), ("momentum",), (0, 1), 127,
        ),
        (  # as the one before, but for weights at their ends
            Shape(5, 8, 16, 2, "clip"), (2, 4, 0), (3, 5, 1), (2000, 4000),
            Averaging("momentum", 2, 400, 9, 2, 200), ("momentum",), (4,), -1,
        ),
        (
            Shape(3, 8, 8, 1, "clip", "rnn"), (127, 5, 2), (1, 3, 1), (700, 900),
            Averaging("momentum", 0, 512, 1000), ("sgd",), (2**32 - 1 - 2**20,), 127,
        ),
    ):  # fmt: skip
        settings = oracle_token.Settings(2**63 + shape.vocabulary, texts, members, credit, sigma_shift)
        values = oracle.first_values(shape, settings.seed)
        values = [np.where(np.abs(w) > limit, np.where(w < 0, -127, 127), w) for w in values]
        states = numbers(shape.hidden, (texts, shape.layers, shape.hidden)) * (means != (1, 1))
        case = {"model": described(shape), "cell": shape.cell, **settings_of(settings), "credit": credit}
        case |= {"sigma_shift": sigma_shift, "optimizer": {"name": keys[0], **keys_of(optimizer, keys[0])}}
        case |= {"parameters": named(shape, values), "states": states.tolist(), "means": means, "updates": []}
        held = None
        for number in numbers_of:
            read = numbers(number % 1000, (texts, tokens + 1), 10**6) % shape.vocabulary
            read[-1, 2], read[0, 0] = 0, 0
            others = numbers(number % 1000 + 10, (texts, tokens, count - 1), 10**6) % shape.vocabulary
            text, targets = read[:, :-1], np.concatenate([read[:, 1:, None], others], axis=2)
            done = oracle_token.evaluate(shape, settings, number, values, states, means, text, targets)
            values, held = oracle_token.optimize(optimizer, number, values, done.standardised, held)
            states, means = done.states, done.means
            case["updates"].append(
                {
                    "update": number,
                    "tokens": text.tolist(),
                    "targets": targets.tolist(),
                    "losses": done.losses,
                    "states_after": states.tolist(),
                    "votes": named(shape, done.votes),
                    "deviations": dict(zip(oracle.parameter_names(shape), done.deviations, strict=True)),
                    "parameters_after": named(shape, values),
                    "means_after": means,
                }
            )
        yield case


def token_part() -> list[Fields]:
    """The last two texts of an update of so many that their votes for matrices are shifted: what they add to its sums,
    and the deviations of these sums."""
    shape, settings = oracle.Shape(3, 8, 8, 1, "clip"), oracle_token.Settings(11, 2**19, 3, 5, 0)
    values, states = oracle.first_values(shape, 11), numbers(7, (2, 1, 8))
    first, update, means = settings.texts - 2, 5, (100, 150)
    read = numbers(9, (2, 5), 10**6) % shape.vocabulary
    text, targets = read[:, :-1], read[:, 1:, None]
    done = oracle_token.evaluate(shape, settings, update, values, states, means, text, targets, first)
    names = oracle.parameter_names(shape)
    case: Fields = {"model": described(shape), "cell": shape.cell, **settings_of(settings), "credit": settings.credit}
    case |= {"sigma_shift": 0, "texts": settings.texts, "first": first, "update": update, "means": means}
    case |= {"parameters": named(shape, values), "states": states.tolist(), "tokens": text.tolist()}
    case |= {"targets": targets.tolist(), "vote_shift": oracle_token.vote_shift(settings.texts, 4)}
    case |= {"losses": done.losses, "states_after": done.states.tolist(), "votes": named(shape, done.votes)}
    case |= {"C": dict(zip(names, done.chance, strict=True)), "sums": done.sums}
    return [case | {"deviations": dict(zip(names, done.deviations, strict=True))}]


def keys_of(optimizer: Any, name: str) -> Fields:
    """The keys of an optimizer."""
    if name == "threshold":
        return {"alpha": optimizer.alpha, "decay_updates": optimizer.decay_updates}
    keys = {name: getattr(optimizer, name) for name in ("step", "warmup_updates", "decay_updates", "weight_decay")}
    return keys if name == "sgd" else {**keys, "momentum": optimizer.k}


Stage = Callable[[], Iterable[Fields]]
INFERENCE: list[Stage] = [random_bits, rescale, norm, layer, logits, loss, sampling]
TRAINING: list[Stage] = [first_values, texts, noise, perturbation, fitness, votes, update, optimizers]
TOKEN: list[Stage] = [
    slopes,
    token_noise,
    token_credit,
    token_votes,
    token_part,
    token_update,
]  # of the estimator `token`
STAGES = INFERENCE + TRAINING + TOKEN


def part_of(stage: str) -> str:
    """The part of the arithmetic that a stage's vectors belong to: inference or training."""
    return "inference" if stage in {own.__name__ for own in INFERENCE} else "training"


def version_of(stage: str) -> int:
    """The version of its part in which a stage's results last changed."""
    return 4 if stage in {own.__name__ for own in TOKEN} else 3


def render(stage: Stage) -> str:
    """Returns the text of a stage's file: JSON, one case a line."""
    part, version = part_of(stage.__name__), version_of(stage.__name__)
    about = {"numerics_version": version, "part": part, "stage": stage.__name__, "about": stage.__doc__}
    head = json.dumps(about, ensure_ascii=False)
    cases = ",\n".join(json.dumps(case, separators=(",", ":")) for case in stage())
    return f'{head[:-1]}, "cases": [\n{cases}\n]}}\n'


if __name__ == "__main__":
    for stage in STAGES:
        path = DIRECTORY / f"v{version_of(stage.__name__)}" / f"{stage.__name__}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(stage), encoding="utf-8", newline="\n")
