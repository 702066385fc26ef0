"""The model with matrix products that are summed in an accumulator of few bits.

Products are added in the order of the index, i = 0 .. fan-in - 1. An accumulator of b bits holds -2^(b-1) to
2^(b-1) - 1. A saturating one is clamped to that range after every addition, so that the order matters; a wrapping one
is taken modulo 2^b, where only the sum matters. Everything else is the model as it is (docs/numerics.md, section 5).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from intlm.arithmetic.fixed_point import MAX8, Array
from intlm.evaluation import BATCH_LOGITS, FRACTION_BITS, batches, fixed_point_losses, segments_of
from intlm.language_model import BLOCK, LanguageModel
from intlm.model.forward import PlainWeights, matrix_product, step
from intlm.model.parameters import Architecture, Kind, Layered, Parameters, specifications, stack_layers

OVERFLOWS = ("saturate", "wrap")
NARROWEST = 8  # bits of the narrowest accumulator that is tried


class NarrowWeights(PlainWeights):
    """The shared weights, their products summed in accumulators of `bits` bits, int32 broadcastable to S + [1]."""

    def __init__(self, parameters: Layered[Array], bits: Array, overflow: str) -> None:
        super().__init__(parameters)
        self.bits, self.overflow = bits, overflow

    def layer(self, entry: dict[str, Array]) -> "NarrowWeights":
        return NarrowWeights(Layered(entry, {}), self.bits, self.overflow)

    def multiply(self, name: str, x: Array) -> Array:
        if self.overflow == "saturate":
            return saturating_product(x, self.parameters[name], self.bits)
        return wrap(matrix_product(x, self.parameters[name]), self.bits)


def wrap(x: Array, bits: Array) -> Array:
    """x modulo 2^bits, in two's complement. x: int32; bits: int32 from 1 to 32."""
    return (x << (32 - bits)) >> (32 - bits)


def saturating_product(x: Array, matrix: Array, bits: Array) -> Array:
    """x W^T, held to `bits` bits after each addition.

    x: int8 S + [fan-in]; matrix: int8 [fan-out, fan-in]; bits: int32 from 2 to 31, broadcastable to S + [1].
    Returns int32 S + [fan-out].
    """
    largest = (1 << (bits - 1)) - 1

    def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
        value, weights = term  # S, [fan-out]
        return jnp.clip(total + value[..., None] * weights, ~largest, largest), None

    terms = (jnp.moveaxis(x, -1, 0).astype(jnp.int32), matrix.T.astype(jnp.int32))
    start = jnp.zeros((*x.shape[:-1], matrix.shape[0]), jnp.int32)
    return jax.lax.scan(add, start, terms, unroll=8)[0]


def proved_bits(parameters: Parameters, architecture: Architecture) -> int:
    """The width of the narrowest accumulator that no text can overflow.

    No sum of some of a row's products is beyond 127 times the sum of its weights' magnitudes, in any order.
    """
    matrices = (parameters[s.name] for s in specifications(architecture) if s.kind is Kind.MATRIX)
    worst = max(int(np.abs(np.asarray(matrix, np.int32)).sum(axis=1).max()) for matrix in matrices)
    return (MAX8 * worst).bit_length() + 1


@partial(jax.jit, static_argnames=("overflow", "architecture"))
def read(
    parameters: Layered[Array], bits: Array, tokens: Array, states: Array, overflow: str, architecture: Architecture
) -> tuple[Array, Array]:
    """Read texts with an accumulator of each of some widths.

    bits: int32 [widths]. tokens: int32 [batch, T]. states: int8 [layers, widths, batch, hidden].
    Returns logits, int16 [widths, batch, T, vocabulary], and the next states.
    """
    weights = NarrowWeights(parameters, bits[:, None, None], overflow)

    def read_token(states: Array, token: Array) -> tuple[Array, Array]:
        logits, states = step(weights, jnp.broadcast_to(token, states.shape[1:3]), states, architecture)
        return states, logits.astype(jnp.int16)

    states, logits = jax.lax.scan(read_token, states, tokens.T)
    return jnp.moveaxis(logits, 0, 2), states


class Curve(NamedTuple):
    """The result of one kind of accumulator on a text."""

    bits_per_byte: dict[int, float]  # by its width
    narrowest: int  # the narrowest width such that neither it nor any wider one changed a bit


def measure(model: LanguageModel, texts: Sequence[np.ndarray], proved: int) -> tuple[float, dict[str, Curve]]:
    """Bits per byte by the protocol of `intlm.evaluation`: exact, and for each kind and width of accumulator.

    Widths are NARROWEST to `proved`, which nothing can change: that it does not is checked.
    """
    widths = list(range(min(NARROWEST, proved), proved + 1))
    batch = max(1, BATCH_LOGITS // (BLOCK * model.architecture.vocab_size * len(widths)))
    segments = [segment for text in texts for segment in segments_of(text)]
    blocks = list(batches(segments, min(batch, len(segments))))
    parameters, a = stack_layers(model.parameters), model.architecture
    exact = 0
    totals = {kind: np.zeros(len(widths), object) for kind in OVERFLOWS}  # in Python's integers
    changed = {kind: np.zeros(len(widths), bool) for kind in OVERFLOWS}
    total = sum(inputs.size for _, inputs, _ in blocks)
    with tqdm(desc="accumulators", total=total, unit="token", delay=1, leave=False, disable=None) as bar:
        for _, inputs, targets in blocks:
            states = model.start(len(inputs))
            empty = jnp.zeros((a.num_layers, len(widths), len(inputs), a.state_size), jnp.int8)
            narrow: dict[str, Any] = dict.fromkeys(OVERFLOWS, empty)
            for first in range(0, inputs.shape[1], BLOCK):
                tokens, follow = inputs[:, first : first + BLOCK], targets[:, first : first + BLOCK]
                logits, states = model.read(tokens, states)
                bits = int(fixed_point_losses(logits, follow).sum())
                exact += bits
                for kind in OVERFLOWS:
                    out, narrow[kind] = read(parameters, jnp.asarray(widths), tokens, narrow[kind], kind, a)
                    for i, own in enumerate(np.asarray(out)):
                        same = np.array_equal(own, logits)
                        changed[kind][i] |= not same
                        totals[kind][i] += bits if same else int(fixed_point_losses(own, follow).sum())
                bar.update(tokens.size)
            for kind in OVERFLOWS:
                end = np.moveaxis(np.asarray(narrow[kind]), 0, 2)  # [widths, batch, layers, hidden]
                changed[kind] |= (end != np.asarray(states)).any(axis=(1, 2, 3))
    size = sum(len(model.tokenizer.decode(text)) for text in texts)
    curves = {}
    for kind in OVERFLOWS:
        assert not changed[kind][-1], f"{kind}, {proved} bits: the proof or the accumulator is wrong"
        narrowest = widths[int(np.flatnonzero(changed[kind])[-1]) + 1] if changed[kind].any() else widths[0]
        by_width = zip(widths, totals[kind], strict=True)
        curves[kind] = Curve({width: bits / 2**FRACTION_BITS / size for width, bits in by_width}, narrowest)
    return exact / 2**FRACTION_BITS / size, curves
