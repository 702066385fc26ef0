"""Statistics of a run's weights and activations, for finding out why a run does not learn."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from intlm.arithmetic.fixed_point import MAX8, Array
from intlm.checkpoint import Checkpoints
from intlm.errors import DataError
from intlm.language_model import LanguageModel
from intlm.model.forward import PlainWeights, step
from intlm.model.parameters import Layered, Parameters, initialise, specifications, stack_layers
from intlm.run import load, open_corpus, open_run, population_of, read_checkpoints
from intlm.tracking.table import format_table

STREAMS, TOKENS = 32, 64
_READS = {
    "up": "normed input of the feed-forward",
    "down": "feed-forward, inside",
}


class _Recorder(PlainWeights):
    """The plain weights, which record the input of each matrix: one entry for each layer and token."""

    def __init__(self, parameters: Layered[Array], inputs: dict[str, list[np.ndarray]]) -> None:
        super().__init__(parameters)
        self.inputs = inputs

    def layer(self, entry: dict[str, Array]) -> "_Recorder":
        return _Recorder(Layered(entry, {}), self.inputs)

    def embed(self, tokens: Array) -> Array:
        self._keep("embedding", super().embed(tokens))
        return super().embed(tokens)

    def multiply(self, name: str, x: Array) -> Array:
        self._keep(name, x)
        return super().multiply(name, x)

    def _keep(self, name: str, x: Array) -> None:
        self.inputs.setdefault(name, []).append(np.asarray(x))


def statistics(values: np.ndarray) -> tuple[str, ...]:
    """Range, mean magnitude, entropy in bits, share saturated, of int8 values."""
    _, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    return (
        f"{values.min()} … {values.max()}",
        f"{np.abs(values.astype(np.int32)).mean():.1f}",
        f"{-(shares * np.log2(shares)).sum() + 0.0:.2f}",
        f"{(np.abs(values.astype(np.int32)) == MAX8).mean():.2%}",
    )


def activations(model: LanguageModel, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns every int8 activation for the tokens of some streams, by the matrix that it enters, and the logits.

    tokens: integers [streams, T]. A layer's activations have the shape [T, layers, streams, size].
    """
    seen: dict[str, list[np.ndarray]] = {}
    weights = _Recorder(stack_layers(model.parameters), seen)
    layers = model.architecture.num_layers
    states = jnp.moveaxis(model.start(len(tokens)), 1, 0)
    logits = []
    with jax.disable_jit():  # so that the recorder sees arrays
        for token in tokens.astype(np.int32).T:
            predicted, states = step(weights, jnp.asarray(token), states, model.architecture)
            logits.append(np.asarray(predicted))
    shaped = {
        name: np.stack(values).reshape(len(logits), -1 if name in ("embedding", "head") else layers, *values[0].shape)
        for name, values in seen.items()
    }
    return shaped, np.stack(logits)


def inspect(directory: Path) -> str:
    """Tables of the last checkpoint's weights, and of the activations on held-out text."""
    config, tokenizer = open_run(directory)
    model = load(directory)

    def read(checkpoints: Checkpoints, updates: list[int]) -> tuple[list[int], list[Parameters]]:
        checkpoints.meta(updates[-1])
        return updates, [checkpoints.parameters(update, model.architecture) for update in updates[-2:]]

    updates, (*before, model.parameters) = read_checkpoints(directory, read)
    older = before[0] if before else None
    described = specifications(model.architecture)
    first = initialise(model.architecture, config.seed)
    rows = []
    for name, shape, _ in described:
        values = np.asarray(model.parameters[name])
        changed = "" if older is None else f"{(values != np.asarray(older[name])).mean():.2%}"
        since_start = f"{(values != np.asarray(first[name])).mean():.2%}"
        rows.append((name, "×".join(map(str, shape)), *statistics(values), changed, since_start))
    since = f"changed since {updates[-2]}" if older is not None else "changed"
    headers = ["weights", "shape", "range", "mean |w|", "bits", "saturated", since, "since 0"]
    report = [f"{directory}, update {updates[-1]}", "", format_table(headers, rows)]

    try:
        corpus = open_corpus(config, tokenizer, directory)
        name, text = ("valid", "held-out") if "valid" in corpus.splits else ("train", "training")
        split = corpus.split(name)
    except DataError as error:
        return "\n".join([*report, "", f"no activations: {error}"])
    starts = np.arange(STREAMS) * (split.tokens // STREAMS)
    tokens = np.stack([split.read(int(start), TOKENS) for start in starts])
    seen, logits = activations(model, tokens)
    rows = [("embedding", *statistics(seen["embedding"]))]
    for i in range(model.architecture.num_layers):
        reads = {**model.architecture.cell.reads, **_READS}
        rows += [(f"layers.{i}: {what}", *statistics(seen[name][:, i])) for name, what in reads.items()]
    rows.append(("normed output", *statistics(seen["head"])))
    headers = [f"activations on {text} text", "range", "mean |x|", "bits", "saturated"]
    width = logits.max(axis=-1).astype(np.int32) - logits.min(axis=-1)
    report += ["", format_table(headers, rows), "", (
        f"logits: {logits.min() / 256:.2f} … {logits.max() / 256:.2f} bits, "
        f"{width.mean() / 256:.2f} between the most and the least likely token"
    )]  # fmt: skip
    population = population_of(config, tokenizer.vocab_size)
    headers, rows = population.estimator.inspect(population, model.parameters, jnp.asarray(tokens, jnp.int32))
    if rows:
        report += ["", format_table(headers, rows)]
    return "\n".join(report)
