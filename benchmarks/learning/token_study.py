"""The estimator `token` by itself: how it learns, and what makes it learn better.

    python benchmarks/learning/token_study.py TEXT --out RESULTS.jsonl [--held-out BYTES] [KEY=VALUE ...]

The keys are the fields of `Study`, and the names in `intlm.estimators.token.NOISY` for the size of units' noise. Trains
on all of TEXT but its last bytes, which are then measured as `intlm evaluate` does.
The result is one line of JSON.
"""

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import Array, rounding_shift
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.estimators import token
from intlm.evaluation import evaluate
from intlm.model.forward import zero_states
from intlm.model.parameters import Architecture, initialise, specifications
from intlm.optimizers.adam import Adam, reciprocal_root
from intlm.optimizers.steps import masters, moved, rounded
from intlm.population import Population, make_engine
from intlm.run import LanguageModel


@dataclasses.dataclass
class Study:
    """One run. `step` is as in the configuration: 256 = one int8 unit for a vote's root mean square."""

    seed: int = 0
    hidden: int = 32
    wide: int = 64
    layers: int = 1
    nonlinearity: str = "clip"
    texts: int = 64
    members: int = 8
    tokens: int = 32
    updates: int = 1000
    credit: int = 4
    slope: bool = True
    step: int = 164
    mean: int = 3  # Adam's mean is of 2^3 updates
    square: int = 6  # and its mean square of 2^6
    chance: str = "element"  # or "parameter": one deviation for all elements of a parameter
    chunk: int = 64
    measure: int = 4  # how often the held-out text is measured


def stepped(study: Study, described: list[Any], votes: Any, memory: Any, step: Array) -> tuple[Any, Any]:
    """Adam of docs/numerics.md, its mean square of 2^square updates. votes: 256 = one standard deviation of chance."""
    after = []
    for s in described:
        vote, (master, mean, square) = votes[s.name], (part[s.name] for part in memory)
        mean = mean + vote - rounding_shift(mean, study.mean)
        square = square + rounding_shift(jnp.square(vote), 8) - rounding_shift(square, study.square)
        # Scaled to the length 2^6, for which the constants of `reciprocal_root` are made.
        level = jnp.left_shift(square, 6 - study.square) if study.square < 6 else square >> (study.square - 6)
        root, shift = reciprocal_root(jnp.maximum(level, 1 << 12))
        shift -= 7
        product = rounding_shift(mean, study.mean) * root
        ratio = jnp.right_shift(product + jnp.left_shift(1, shift - 1), shift)
        after.append((moved(s.kind, master, ratio, step, 0), mean, square))
    names = [s.name for s in described]
    memory = tuple(dict(zip(names, part, strict=True)) for part in zip(*after, strict=True))
    return rounded(memory[0]), memory


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=200_000)
    parser.add_argument("keys", nargs="*")
    args = parser.parse_intermixed_args()
    study, given = Study(), dict(key.split("=", 1) for key in args.keys)
    sigmas = dict(zip(token.NOISY, token.Token._field_defaults["sigmas"], strict=True))
    for key, value in given.items():
        if key in sigmas:
            sigmas[key] = int(value)
        else:
            kind = type(getattr(study, key))
            setattr(study, key, value == "True" if kind is bool else kind(value))

    text = args.text.read_bytes()
    held_out, text = text[-args.held_out :], text[: -args.held_out]
    tokenizer = AlphabetTokenizer.from_counts(np.bincount(np.frombuffer(text, np.uint8), minlength=256))
    corpus = np.concatenate([[0], tokenizer.encode(text)]).astype(np.uint16)
    a = Architecture(tokenizer.vocab_size, study.hidden, study.layers, study.wide, study.nonlinearity)
    settings = token.Token(study.seed, study.texts, study.members, tuple(sigmas.values()), study.credit, study.slope)
    described = specifications(a)
    starts = np.arange(study.texts) * len(corpus) // study.texts
    shift = token.vote_shift(study.texts, study.tokens)

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def update(
        parameters: Any, memory: Any, states: Array, means: Array, batch: Array, number: Array, step: Array
    ) -> Any:
        targets = batch[:, 1:, None]
        found = token.evaluate(
            a, settings, parameters, states, means, batch[:, :-1], targets, number, jnp.uint32(0), study.chunk
        )
        votes, told = {}, found.told
        for s in described:
            chance = token.deviation(told.chance[s.name], shift)
            if study.chance == "parameter":
                chance = jnp.maximum(1, jnp.sum(chance) // chance.size) * jnp.ones_like(chance)
            votes[s.name] = token.standardised(told.votes[s.name], token.broadcast(s.name, chance))
        parameters, memory = stepped(study, described, votes, memory, step)
        means = token.means(told.sizes, settings, study.tokens)
        return parameters, memory, found.states, means, jnp.sum(found.losses)

    parameters = initialise(a, study.seed)
    zeros = {name: jnp.zeros(w.shape, jnp.int32) for name, w in parameters.items()}
    squares = {name: jnp.full(w.shape, 1 << (8 + study.square), jnp.int32) for name, w in parameters.items()}
    memory, states = (masters(parameters), zeros, squares), zero_states((study.texts,), a)
    means = jnp.ones(2, jnp.int32)
    schedule = Adam(step=study.step, decay_updates=study.updates)
    model = LanguageModel(a, parameters, tokenizer, make_engine("auto", Population(a)))
    measured = tokenizer.encode(held_out)
    an_update = study.texts * study.tokens * (1 + study.members)
    curve, spent, began = [], 0.0, time.monotonic()
    for number in range(study.updates):
        places = (starts[:, None] + np.arange(study.tokens + 1) + number * study.tokens) % len(corpus)
        step = schedule.setting(number)
        parameters, memory, states, means, loss = update(
            parameters, memory, states, means, corpus[places], np.uint32(number), np.int32(step)
        )
        if (number + 1) % max(1, study.updates // study.measure) == 0 or number + 1 == study.updates:
            jax.block_until_ready(parameters)
            spent += time.monotonic() - began
            model.parameters = jax.tree.map(jnp.copy, parameters)
            bits = evaluate(model, [measured]).summary()["bits_per_byte"]
            train = int(loss) / 256 / study.texts / study.tokens
            curve.append([number + 1, (number + 1) * an_update, round(spent, 1), round(bits, 4)])
            print(curve[-1], "train", round(train, 3), "means", np.asarray(means).tolist(), flush=True)
            began = time.monotonic()
    line = {"keys": given, "text": args.text.name, "bits_per_byte": curve[-1][-1], "curve": curve}
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
