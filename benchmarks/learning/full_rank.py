"""What low rank costs: the same updates with perturbations of full rank, every element drawn for itself.

    python benchmarks/learning/full_rank.py CONFIG --text TEXT --out RESULTS.jsonl [--seed S]

The matrices of every member are materialised, W ± round(Z 2^-sigma_shift), so it takes a small model and patience.
All else is intlm's: the texts, the arithmetic, fitness, optimizer. The result is one line, as of `intlm sweep`.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from intlm import config as configuration
from intlm.arithmetic.fixed_point import Array, rounding_shift, saturate8
from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key
from intlm.arithmetic.tables import tables
from intlm.data.streams import TokenStreams
from intlm.estimators.member import VECTOR_SHIFT, Perturbation
from intlm.evaluation import evaluate, split_documents
from intlm.model.forward import step
from intlm.model.loss import loss
from intlm.model.parameters import Layered, Parameters, map_specifications, stack_layers, unstack_layers
from intlm.population import Population, make_engine
from intlm.population.engine import FIRST
from intlm.population.chunks import map_in_chunks
from intlm.run import LanguageModel, population_of
from intlm.training import prepare_corpus
from intlm.update import initial_state, make_optimizer, make_update_step

CHUNK = 64  # pairs whose matrices are held at once


class FullRankWeights:
    """The weights of both members of some pairs: `Weights` with every matrix materialised.

    layers and outer: by name, int8 [(layers,) pairs, 2] + the parameter's shape.
    """

    def __init__(self, perturbed: Layered[Array]) -> None:
        self.outer, self.layers = perturbed

    def layer(self, entry: dict[str, Array]) -> "FullRankWeights":
        """See `Weights`."""
        return FullRankWeights(Layered(entry, {}))

    def embed(self, tokens: Array) -> Array:
        """See `Weights`."""
        return jnp.take_along_axis(self.outer["embedding"], tokens[..., None, None], axis=2)[:, :, 0]

    def multiply(self, name: str, x: Array) -> Array:
        """See `Weights`."""
        return jnp.einsum("psi,psoi->pso", x, self.outer[name], preferred_element_type=jnp.int32)

    def vector(self, name: str) -> Array:
        """See `Weights`."""
        return self.outer[name]


class FullRankEngine:
    """See `Engine`."""

    name = "full rank"

    def __init__(self, population: Population) -> None:
        self.population = population
        shared = make_engine("auto", population)  # without a perturbation there is nothing to replace
        self.prepare, self.infer, self.generate = shared.prepare, shared.infer, shared.generate

    def noise(self, epoch: Array, pairs: Array) -> Layered[Array]:
        """By parameter, int8 [(layers,) pairs] + its shape, standard deviation 16."""
        key = seed_key(self.population.perturbation.seed, Domain.NOISE)
        quantile = jnp.asarray(tables().quantile)

        def draw(specification, number):  # type: ignore[no-untyped-def]
            size = 1
            for n in specification.shape:
                size *= n
            found = quantile[random_bytes(key, (epoch, pairs, number[..., None], 0), size)]
            return found.reshape(*found.shape[:-1], *specification.shape)

        return map_specifications(draw, self.population.architecture)

    def evaluate(
        self, parameters: Parameters, tokens: Array, targets: Array, states: Array, update: Array, first: Array = FIRST
    ) -> tuple[Array, Array]:
        """See `Engine.evaluate`."""
        population = self.population
        setting: Perturbation = population.perturbation
        shared = stack_layers(parameters)

        def perturb(w: Array, z: Array, axis: int, vector: bool) -> Array:
            change = rounding_shift(z.astype(jnp.int32), setting.sigma_shift + (VECTOR_SHIFT if vector else 0))
            w = jnp.expand_dims(w.astype(jnp.int32), axis)
            return saturate8(jnp.stack([w + change, w - change], axis=axis + 1))

        def chunk(own: tuple[Array, Array]) -> tuple[Array, Array]:
            pairs, states = own
            drawn = self.noise(setting.epoch(update), first + pairs)
            weights = FullRankWeights(
                Layered(
                    {k: perturb(shared.outer[k], z, 0, z.ndim == 2) for k, z in drawn.outer.items()},
                    {k: perturb(shared.layers[k], z, 1, z.ndim == 3) for k, z in drawn.layers.items()},
                )
            )
            text = pairs // population.group_size
            reading = jnp.broadcast_to(tokens[text].astype(jnp.int32).T[..., None], (tokens.shape[1], len(pairs), 2))
            follow = jnp.moveaxis(targets[text].astype(jnp.int32), 1, 0)[:, :, None]
            follow = jnp.broadcast_to(follow, (*reading.shape, targets.shape[-1]))

            def read(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
                states, total = carry
                logits, states = step(weights, at[0], states, population.architecture)
                return (states, total + loss(logits, at[1])), None

            start = (jnp.moveaxis(states, 2, 0), jnp.zeros(states.shape[:2], jnp.int32))
            (states, total), _ = jax.lax.scan(read, start, (reading, follow))
            return total, jnp.moveaxis(states, 0, 2)

        return map_in_chunks(chunk, (jnp.arange(states.shape[0], dtype=jnp.uint32), states), CHUNK)

    def accumulate(self, fitness: Array, update: Array, first: Array = FIRST) -> Parameters:
        """See `Engine.accumulate`: Z = 16 Σ f z, so that its deviation under chance is that of low rank."""
        pairs = first + jnp.arange(fitness.shape[0], dtype=jnp.uint32)
        drawn = self.noise(self.population.perturbation.epoch(update), pairs)
        scores = fitness.astype(jnp.int32)

        def vote(z: Array, axis: int) -> Array:
            return 16 * jnp.tensordot(scores, jnp.moveaxis(z, axis, 0).astype(jnp.int32), axes=1)

        outer = {k: vote(z, 0) for k, z in drawn.outer.items()}
        found = Layered(outer, {k: vote(z, 1) for k, z in drawn.layers.items()})
        return unstack_layers(found, self.population.architecture)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args, keys = parser.parse_known_args()
    overrides = dict(key.removeprefix("--").split("=", 1) for key in keys)
    given = dict(overrides)
    overrides |= {"data.train": str(args.text.resolve()), "seed": str(args.seed), "eggroll.rank": "1"}
    config = configuration.load(args.config, overrides)
    corpus = prepare_corpus(config)
    population = population_of(config, corpus.tokenizer.vocab_size)
    engine, optimizer = FullRankEngine(population), make_optimizer(config.eggroll)
    settings = config.train
    texts = config.pairs // config.eggroll.group_size
    streams = TokenStreams(corpus.split("train"), texts, settings.tokens_per_update, settings.targets)
    update = jax.jit(make_update_step(population, engine, config.eggroll.fitness, optimizer), donate_argnums=0)
    state = initial_state(population, config.seed, optimizer)
    model = LanguageModel(population.architecture, state.parameters, corpus.tokenizer, engine)
    curve, spent = [], 0.0
    for number in range(settings.updates):
        began = time.monotonic()
        batch, setting = streams.batch(number), jnp.int32(optimizer.setting(number))
        state, _ = update(state, *map(jnp.asarray, batch), jnp.uint32(number), setting)
        jax.block_until_ready(state)
        spent += time.monotonic() - began
        if (number + 1) % max(1, settings.updates // 8) == 0 or number + 1 == settings.updates:
            model.parameters = state.parameters
            bits = evaluate(model, split_documents(corpus.splits["valid"])).summary()["bits_per_byte"]
            tokens = (number + 1) * 2 * config.pairs * settings.tokens_per_update
            curve.append([number + 1, tokens, round(spent, 3), round(bits, 4)])
            print(curve[-1], flush=True)
    line = {"study": "full-rank", "variant": args.config.stem, "seed": args.seed, "keys": given}
    line |= {"text": args.text.name, "bits_per_byte": curve[-1][-1], "curve": curve}
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
