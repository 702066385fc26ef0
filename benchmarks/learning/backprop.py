"""The ceiling: the same architecture in float32, trained by backpropagation and AdamW on the same tokens.

    python benchmarks/learning/backprop.py CONFIG --text TEXT --out RESULTS.jsonl [--rate R] [--updates N] [--seed S]

It reads what `intlm train CONFIG` reads, one text per group of pairs, the targets included. Weights start as the
integer model's do, in units of 1.0 = 16, and are held to the same range; states go on from one update to the next and
gradients do not. The held-out text is measured as `intlm evaluate` does, with logits rounded to 256ths of a bit.
Needs optax (the extra `benchmarks`). The result is one line, as `intlm sweep` writes it; "tokens" counts each token
read once.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from intlm import config as configuration
from intlm.config import flatten
from intlm.data.streams import TokenStreams
from intlm.evaluation import evaluate, split_documents
from intlm.language_model import LanguageModel
from intlm.model.parameters import Architecture, initialise
from intlm.run import population_of
from intlm.training import prepare_corpus

Parameters = dict[str, jax.Array]  # float32, 1.0 = 16 of the integer weights
LARGEST = 127 / 16  # of weights and activations; what a state of 1.0 is beside them


def saturate(x: jax.Array) -> jax.Array:
    """Saturation to the range of int8."""
    return jnp.clip(x, -LARGEST, LARGEST)


def norm(x: jax.Array) -> jax.Array:
    """x divided by its mean magnitude."""
    return saturate(x / jnp.maximum(jnp.mean(jnp.abs(x), axis=-1, keepdims=True), 1 / 16))


def step(p: Parameters, tokens: jax.Array, states: jax.Array, a: Architecture) -> tuple[jax.Array, jax.Array]:
    """docs/numerics.md, section 5.2, for "clip", in real numbers.

    tokens: int32 [batch]. states: float32 [batch, layers, hidden], 1.0 = 127. Returns logits in bits, and states.
    """
    root, after = a.hidden_size**-0.5, []
    x = p["embedding"][tokens]
    states = jnp.where((tokens == 0)[:, None, None], 0.0, states)
    for layer in range(a.num_layers):
        own = {name.rpartition(".")[2]: w for name, w in p.items() if name.startswith(f"layers.{layer}.")}
        h, n = states[:, layer] * LARGEST, norm(x)

        def pre(kind: str, state: jax.Array, n: jax.Array = n, own: Parameters = own) -> jax.Array:
            return saturate((n @ own[f"{kind}_input"].T + state @ own[f"{kind}_state"].T) * root + own[f"{kind}_bias"])

        gate = (pre("gate", h) / LARGEST + 1) / 2
        h = (1 - gate) * h + gate * pre("candidate", gate * h)
        after.append(h / LARGEST)
        x = saturate(x + h)
        wide = saturate(jnp.abs(norm(x) @ own["up"].T * root))
        x = saturate(x + wide @ own["down"].T * a.feed_forward_size**-0.5)
    return norm(x) @ p["head"].T * root, jnp.stack(after, axis=1)


def losses(
    p: Parameters, tokens: jax.Array, targets: jax.Array, states: jax.Array, a: Architecture
) -> tuple[jax.Array, jax.Array]:
    """The mean loss in bits of texts [batch, T] with targets [batch, T, K], and the states after them."""

    def read(states: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits, states = step(p, at[0], states, a)
        chosen = jnp.take_along_axis(logits, at[1], axis=-1).mean(axis=-1)
        return states, jax.nn.logsumexp(logits * jnp.log(2.0), axis=-1) / jnp.log(2.0) - chosen

    states, values = jax.lax.scan(read, states, (tokens.T, jnp.moveaxis(targets, 1, 0)))
    return values.mean(), jax.lax.stop_gradient(states)


class FloatEngine:
    """The methods of an engine that the evaluation of a held-out text needs."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def prepare(self, parameters: Parameters) -> Parameters:
        """Nothing to prepare."""
        return parameters

    def infer(self, p: Parameters, tokens: jax.Array, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits as int16, 256 = one bit."""

        def read(states: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, states = step(p, tokens, states, self.architecture)
            return states, jnp.clip(jnp.round(logits * 256), -32767, 32767).astype(jnp.int16)

        states, outputs = jax.lax.scan(read, states.astype(jnp.float32), tokens.T.astype(jnp.int32))
        return jnp.moveaxis(outputs, 0, 1), states

    def generate(self, top_k: int, count: int) -> None:
        """Not needed: this engine generates no text."""
        raise NotImplementedError


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=0.05, help="AdamW's first rate; falls to nothing on a line")
    parser.add_argument("--updates", type=int, help="default: the configuration's")
    parser.add_argument("--seed", type=int, default=0)
    args, keys = parser.parse_known_args()
    overrides = dict(key.removeprefix("--").split("=", 1) for key in keys)
    given = dict(overrides)
    overrides |= {"data.train": str(args.text.resolve()), "seed": str(args.seed)}
    config = configuration.load(args.config, overrides)
    updates = args.updates or config.train.updates
    corpus = prepare_corpus(config)
    population = population_of(config, corpus.tokenizer.vocab_size)
    a = population.architecture
    estimator, tokens = config.eggroll.estimator, config.train.tokens_per_update
    texts = estimator.units(config.eggroll.population) // estimator.units_of_a_text()
    streams = TokenStreams(corpus.split("train"), texts, tokens, flatten(config)["next_token.targets"])
    p = {name: w.astype(jnp.float32) / 16 for name, w in initialise(a, args.seed).items()}
    optimizer = optax.adamw(optax.linear_schedule(args.rate, 0.0, updates), b1=0.9, b2=0.99, weight_decay=0.0)

    @jax.jit
    def update(p: Parameters, memory: Any, states: jax.Array, tokens: jax.Array, targets: jax.Array) -> Any:
        (loss, states), slope = jax.value_and_grad(losses, has_aux=True)(p, tokens, targets, states, a)
        change, memory = optimizer.update(slope, memory, p)
        return jax.tree.map(saturate, optax.apply_updates(p, change)), memory, states, loss

    model: Any = LanguageModel(a, p, corpus.tokenizer, FloatEngine(a))  # type: ignore[arg-type]
    states, memory = jnp.zeros((texts, a.num_layers, a.hidden_size)), optimizer.init(p)
    curve, began, spent = [], time.monotonic(), 0.0
    for number in range(updates):
        batch = streams.batch(number)
        p, memory, states, _ = update(p, memory, states, batch.tokens.astype(np.int32), batch.targets.astype(np.int32))
        if (number + 1) % max(1, updates // 10) == 0 or number + 1 == updates:
            jax.block_until_ready(p)
            spent += time.monotonic() - began
            model.parameters = p
            bits = evaluate(model, split_documents(corpus.splits["valid"])).summary()["bits_per_byte"]
            curve.append([number + 1, (number + 1) * texts * tokens, round(spent, 3), round(bits, 4)])
            print(curve[-1], flush=True)
            began = time.monotonic()
    variant = f"{args.config.stem}, rate {args.rate}, {updates} updates"
    line = {"study": "backprop", "variant": variant, "seed": args.seed}
    line |= {"keys": given, "text": args.text.name, "bits_per_byte": curve[-1][-1], "curve": curve}
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
