"""Gates and candidates, which cells share: saturation alone, or sigmoid and tanh by tables (docs/numerics.md, 5.4)."""

from typing import TYPE_CHECKING

from intlm.arithmetic.fixed_point import GATE_ONE, STATE_SHIFT, Rescale, activation_rescale, saturate8
from intlm.arithmetic.tables import tables
from intlm.lazy import Array, jnp

if TYPE_CHECKING:
    from intlm.model.parameters import Architecture


def from_state(architecture: "Architecture") -> Rescale:
    """The rescaling of a product that reads a state.

    The tables expect 1.0 = 16: a state at 1.0 = 127 is brought to that scale. Saturation alone has no scale of its own,
    and learns better with the state at full size (docs/numerics.md, section 5.4).
    """
    return activation_rescale(architecture.hidden_size, STATE_SHIFT if architecture.nonlinearity == "table" else 0)


def gate(x: Array, nonlinearity: str) -> Array:
    """Pre-activation, int32 at 1.0 = 16, to an open share in [0, 254] as int32 (254 = fully open)."""
    x = saturate8(x)
    if nonlinearity == "table":
        x = jnp.asarray(tables().sigmoid)[x.astype(jnp.int32) + 128]
    return x.astype(jnp.int32) + GATE_ONE


def candidate(x: Array, nonlinearity: str) -> Array:
    """Pre-activation, int32 at 1.0 = 16, to a candidate state in [-127, 127] as int32."""
    x = saturate8(x)
    if nonlinearity == "table":
        x = jnp.asarray(tables().tanh)[x.astype(jnp.int32) + 128]
    return x.astype(jnp.int32)
