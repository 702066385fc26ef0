"""Measures how fast the native engine runs the estimator `token`, beside inference of as many tokens.

    python benchmarks/speed/tokens.py [--threads N ...] [--rounds N]

Prints one table: for two models, each vector instruction set that this processor has and each number of threads, tokens
per second of the whole evaluation of an update (clean and noisy members' tokens; noise, losses, credit and votes
included), tokens per second of inference (logits included), and the quotient of the two. They run in turn, and the best
of the rounds counts: what else the machine does slows both.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from intlm.estimators.token import Token
from intlm.model.parameters import Architecture, specifications
from intlm.population import Population
from intlm.population.native import NativeEngine, instruction_set, missing
from intlm.tracking.table import format_table


class Shape(NamedTuple):
    """A model, and the size of an update of it."""

    architecture: Architecture
    texts: int
    tokens: int  # of a text


SHAPES = (
    Shape(Architecture(84, 48, 1, 96, "clip"), 512, 32),
    Shape(Architecture(84, 48, 1, 96, "clip"), 128, 128),
    Shape(Architecture(84, 256, 6, 512, "clip"), 64, 32),
    Shape(Architecture(84, 256, 6, 512, "clip"), 16, 128),
)
INSTRUCTION_SETS = ("avx512", "avxvnni", "avx2", "neon")


def seconds(call: Callable[[], Any]) -> float:
    """The time that a call takes."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def measure(shape: Shape, threads: int, rounds: int) -> tuple[float, float]:
    """Seconds per token of an update's evaluation, and of inference."""
    architecture, texts, length = shape
    estimator, rng = Token(), np.random.default_rng(0)
    members = texts * (1 + estimator.members)
    engine = NativeEngine(Population(architecture, estimator, members, threads=threads, tokens=length))
    parameters = {
        s.name: jnp.asarray(np.clip(rng.normal(0, 16, s.shape), -127, 127), jnp.int8)
        for s in specifications(architecture)
    }
    tokens = jnp.asarray(rng.integers(0, architecture.vocab_size, (members, length)), jnp.uint16)
    targets = jnp.asarray(rng.integers(0, architecture.vocab_size, (texts, length, 1)), jnp.uint16)
    states = jnp.zeros((members, architecture.num_layers, architecture.state_size), jnp.int8)
    calls = (
        partial(
            jax.jit(engine.evaluate_tokens), parameters, tokens[:texts], targets, states[:texts],
            jnp.asarray([300, 500], jnp.int32), jnp.uint32(0), jnp.uint32(0),
        ),
        partial(jax.jit(engine.infer), jax.jit(engine.prepare)(parameters), tokens, states),
    )  # fmt: skip
    for call in calls:
        seconds(call)
    best = np.min([[seconds(call) for call in calls] for _ in range(rounds)], axis=0) / (members * length)
    return float(best[0]), float(best[1])


def main() -> None:
    """Parses arguments, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    rows = []
    for name in INSTRUCTION_SETS:
        os.environ["INTLM_ISA"] = name
        if instruction_set() != name:
            continue
        for shape in SHAPES:
            a = shape.architecture
            for threads in args.threads:
                update, inference = measure(shape, threads, args.rounds)
                rows.append(
                    [
                        name, str(threads), f"{a.hidden_size} x {a.num_layers}", f"{shape.texts} x {shape.tokens}",
                        f"{1e-3 / update:,.0f}", f"{1e-3 / inference:,.0f}", f"{inference / update:.2f}",
                    ]
                )  # fmt: skip
    print(
        format_table(
            [
                "instructions",
                "threads",
                "hidden x layers",
                "texts x tokens",
                "update, ktok/s",
                "infer, ktok/s",
                "ratio",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
