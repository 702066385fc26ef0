"""The model: one token in, logits out (docs/numerics.md, section 5).

Embedding, then for each layer a norm by mean absolute value, a recurrent cell (`intlm.cells`) and a feed-forward, each
with a residual; output norm; head. Activations are int8 at 1.0 = 16, gates and recurrent state int8 at 1.0 = 127,
logits int16 at one bit = 256. The same code runs the shared weights and a population, and an ONNX export records it;
only the `Weights` through which it sees the parameters differ.
"""

from typing import Any, Protocol

from intlm.arithmetic.fixed_point import (
    ONE,
    STATE_SHIFT,
    activation_rescale,
    logit_rescale,
    mean_scale,
    q15_multiply,
    rounding_shift,
    saturate8,
)
from intlm.arithmetic.tables import tables
from intlm.lazy import Array, jax, jnp
from intlm.model import SEPARATOR
from intlm.model.parameters import Architecture, Layered


class Weights(Protocol):
    """The parameters as a forward pass sees them: plain, or perturbed for each member."""

    layers: Any  # a pytree with a first axis [layers], for `layer`
    seen: dict[str, Array]  # what `multiply` keeps of its inputs, by name; empty where nothing asks for them

    def layer(self, entry: Any) -> "Weights":
        """One layer's weights, by their local names. entry: `layers` at one index."""

    def embed(self, tokens: Array) -> Array:
        """tokens: int32 S. Returns int8 S + [hidden]."""

    def multiply(self, name: str, x: Array) -> Array:
        """x: int8 S + [fan-in]. Returns the accumulator of x W^T, int32 S + [fan-out]."""

    def vector(self, name: str) -> Array:
        """A bias, int8, broadcastable to S + [hidden]."""


class PlainWeights:
    """The shared weights, for inference."""

    def __init__(self, parameters: Layered[Array]) -> None:
        self.parameters, self.layers = parameters
        self.seen: dict[str, Array] = {}

    def layer(self, entry: dict[str, Array]) -> "PlainWeights":
        return PlainWeights(Layered(entry, {}))

    def embed(self, tokens: Array) -> Array:
        return self.parameters["embedding"][tokens]

    def multiply(self, name: str, x: Array) -> Array:
        return matrix_product(x, self.parameters[name])

    def vector(self, name: str) -> Array:
        return self.parameters[name]


def matrix_product(x: Array, matrix: Array) -> Array:
    """x: int8 S + [fan-in]; matrix: int8 [fan-out, fan-in]. Returns int32 S + [fan-out]."""
    rows = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot_general(rows, matrix, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return product.reshape(*x.shape[:-1], -1)


def norm(x: Array) -> Array:
    """Divide by the mean magnitude, taken as at least 1: int8 S + [hidden] to int8 at 1.0 = 16."""
    wide = x.astype(jnp.int32)
    index = mean_scale(x.shape[-1])(jnp.sum(jnp.abs(wide), axis=-1, keepdims=True))
    gain = jnp.asarray(tables().reciprocal)[index].astype(jnp.int32)
    return saturate8(q15_multiply(wide * ONE, gain))


def feed_forward(weights: Weights, x: Array, architecture: Architecture) -> Array:
    """Two products, the magnitude taken between them; int32 S + [hidden], not saturated."""
    wide = saturate8(jnp.abs(activation_rescale(architecture.hidden_size)(weights.multiply("up", x))))
    return activation_rescale(architecture.feed_forward_size)(weights.multiply("down", wide))


def read_layer(weights: Weights, x: Array, state: Array, architecture: Architecture) -> tuple[Array, Array]:
    """One layer: the residual stream, int8 S + [hidden], and the layer's state, int8 S + [state size], after it.

    weights: of the layer. x, state: what they were before it.
    """
    state = architecture.cell.step(weights, norm(x), state, architecture)
    output = state[..., : architecture.hidden_size].astype(jnp.int32)
    x = saturate8(x + (rounding_shift(output, STATE_SHIFT) if architecture.nonlinearity == "table" else output))
    return saturate8(x + feed_forward(weights, norm(x), architecture)), state


def step(weights: Weights, tokens: Array, states: Array, architecture: Architecture) -> tuple[Array, Array]:
    """Read one token each and predict the next.

    tokens: int32 S. states: int8 [layers] + S + [state size]; set to zero before a separator is read.
    Returns logits, int32 S + [vocabulary] holding int16 values (256 = one bit), and the next states.
    """
    logits, states, _ = observed_step(weights, tokens, states, architecture)
    return logits, states


def observed_step(
    weights: Weights, tokens: Array, states: Array, architecture: Architecture
) -> tuple[Array, Array, dict[str, Array]]:
    """`step`, and the inputs of each layer's products (`Weights.seen`): by name, [layers] + its shape."""

    # A scan over the layers, not a loop: XLA's CPU compiler would compute the residual stream anew, from the
    # first layer on, in every fusion that reads it.
    def read(x: Array, layer: tuple[Any, Array]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        entry, state = layer
        own = weights.layer(entry)
        x, state = read_layer(own, x, state, architecture)
        return x, (state, own.seen)

    states = jnp.where((tokens == SEPARATOR)[..., None], jnp.int8(0), states)
    x, (states, seen) = jax.lax.scan(read, weights.embed(tokens), (weights.layers, states))
    return logit_rescale(architecture.hidden_size)(weights.multiply("head", norm(x))), states, seen


def zero_states(shape: tuple[int, ...], architecture: Architecture) -> Array:
    """States before any token: int8 shape + [layers, state size]."""
    return jnp.zeros((*shape, architecture.num_layers, architecture.state_size), jnp.int8)
