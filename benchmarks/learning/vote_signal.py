"""Measures how much of a vote is signal, by repeating a run's next updates without moving its weights.

    python benchmarks/learning/vote_signal.py RUN [--checkpoint UPDATE] [--repeat N]

From one of a run's checkpoints the population is evaluated on the text that follows, N times with other
perturbations, and the weights are not moved. Two halves of the repetitions share the signal and nothing else, so the
mean product of their votes is the signal's square. Votes are in standard deviations of chance: a signal of s after
one update stands out of chance after about 1 / s^2.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intlm import config as configuration
from intlm.checkpoint import Checkpoints
from intlm.model.parameters import specifications
from intlm.population.sharding import FIRST
from intlm.tracking.table import format_table
from intlm.trainer import Trainer
from intlm.training import prepare_corpus


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", type=int, help="an update of which there is a checkpoint (default: the last)")
    parser.add_argument("--repeat", type=int, default=300)
    args = parser.parse_args()
    config = configuration.load(args.run / "config.toml")
    trainer = Trainer(config, args.run, prepare_corpus(config))
    checkpoints = Checkpoints(args.run / "checkpoints", read_only=True)
    update = args.checkpoint or checkpoints.updates()[-1]
    state = checkpoints.restore(update, trainer.state)
    population, engine = trainer.population, trainer.engine
    estimator, described = population.estimator, specifications(population.architecture)

    @jax.jit
    def vote(members: Any, batch: tuple[jax.Array, ...], number: jax.Array):  # type: ignore[no-untyped-def]
        seen, members = estimator.evaluate(engine, state.parameters, batch, members, number, FIRST)
        votes, chance = estimator.votes(engine, seen, estimator.totals(seen), number, FIRST)
        deviations = estimator.deviations(population, described, chance)
        return members, {name: vote / (256.0 * deviations[name]) for name, vote in votes.items()}

    members, halves = state.members, [{s.name: np.zeros(s.shape) for s in described} for _ in range(2)]
    for i in range(args.repeat):
        batch = trainer.streams.batch(update + i)
        members, votes = vote(members, tuple(map(jnp.asarray, batch)), jnp.uint32(2**31 + i))
        for name, z in votes.items():
            halves[i % 2][name] += np.asarray(z) * (2 / args.repeat)
    rows, total, weights = [], 0.0, 0
    for s in described:
        signal = float((halves[0][s.name] * halves[1][s.name]).sum())
        total, weights = total + signal, weights + int(np.prod(s.shape))
        rows.append((s.name, int(np.prod(s.shape)), signal))
    table = [(name, size, f"{signal / size:.5f}", f"{signal / total:.1%}") for name, size, signal in rows]
    print(format_table(["parameter", "weights", "signal squared, a weight", "share"], table, "lrrr"))
    print(f"squared cosine of one update's votes with their expectation: {total / (total + weights):.5f}")


if __name__ == "__main__":
    main()
