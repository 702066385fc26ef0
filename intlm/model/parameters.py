"""The parameters of the model: their names, shapes, numbers and first values (docs/numerics.md, section 5).

A parameter's number is its place in `specifications`; it is a word of the counter of the parameter's noise.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from intlm.arithmetic.random_bits import Domain, random_bytes, seed_key
from intlm.arithmetic.tables import tables
from intlm.cells import CELLS, Cell
from intlm.lazy import Array, jit, jnp
from intlm.settings import flatten

Parameters = dict[str, Array]  # name to int8 array
Leaf = TypeVar("Leaf")


class Kind(Enum):
    """How a parameter is used, hence how it is perturbed."""

    EMBEDDING = "embedding"  # [vocabulary, hidden], a row looked up
    MATRIX = "matrix"  # [fan-out, fan-in], multiplied
    BIAS = "bias"  # [hidden], added; starts at 0


VECTOR_SHIFT = 1  # a vector's perturbation, and its step, are half a matrix's: its elements matter more


def is_matrix(kind: Kind) -> bool:
    """Whether a parameter is a matrix, and so perturbed and moved as one."""
    return kind in (Kind.MATRIX, Kind.EMBEDDING)


class Specification(NamedTuple):
    """One parameter."""

    name: str  # that of a layer's parameter is "layers.<layer>.<local name>"
    shape: tuple[int, ...]
    kind: Kind


class Local(NamedTuple):
    """One parameter of each layer, by its name there."""

    name: str
    shape: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True)
class Architecture:
    """The model's sizes and kinds, which decide shapes and arithmetic; hashable, so that it can be static under jit."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    feed_forward_size: int
    nonlinearity: str  # "clip" or "table"
    cell: Cell = field(default_factory=lambda: CELLS["mgu"]())

    @property
    def state_size(self) -> int:
        """int8 values of a layer's recurrent state."""
        return self.cell.state_size(self.hidden_size)

    def described(self) -> dict[str, int | str]:
        """Every field by its name; the cell by its own, and then its settings."""
        sizes = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**sizes, "cell": self.cell.name, **flatten(self.cell, f"{self.cell.name}.")}


def local_parameters(architecture: Architecture) -> list[Local]:
    """A layer's parameters, in the order of their numbers: the cell's, then the feed-forward's."""
    hidden, feed_forward = architecture.hidden_size, architecture.feed_forward_size
    return [
        *architecture.cell.parameters(hidden),
        Local("up", (feed_forward, hidden), Kind.MATRIX),
        Local("down", (hidden, feed_forward), Kind.MATRIX),
    ]


def specifications(architecture: Architecture) -> list[Specification]:
    """All parameters in the order of their numbers: embedding, layer by layer, head."""
    ends = (architecture.vocab_size, architecture.hidden_size)
    layers = [
        Specification(f"layers.{i}.{local.name}", local.shape, local.kind)
        for i in range(architecture.num_layers)
        for local in local_parameters(architecture)
    ]
    return [Specification("embedding", ends, Kind.EMBEDDING), *layers, Specification("head", ends, Kind.MATRIX)]


class Layered(NamedTuple, Generic[Leaf]):
    """A value for every parameter; those of the layers are stacked by local name on a first axis [layers]."""

    outer: dict[str, Leaf]
    layers: dict[str, Leaf]


def stack_layers(flat: dict[str, Array]) -> Layered[Array]:
    """From one entry a parameter to one a local name, so that a scan can walk through the layers."""
    outer, layers = {}, defaultdict(list)
    for name, value in flat.items():
        if name.startswith("layers."):
            layers[name.split(".", 2)[2]].append(value)
        else:
            outer[name] = value
    return Layered(outer, {name: jnp.stack(values) for name, values in layers.items()})


def unstack_layers(stacked: Layered[Array], architecture: Architecture) -> dict[str, Array]:
    """The inverse of `stack_layers`."""
    flat = {}
    for name, _, _ in specifications(architecture):
        if name.startswith("layers."):
            _, layer, local = name.split(".", 2)
            flat[name] = stacked.layers[local][int(layer)]
        else:
            flat[name] = stacked.outer[name]
    return flat


def map_specifications(function: Callable[[Specification, Array], Leaf], architecture: Architecture) -> Layered[Leaf]:
    """function(specification, numbers) once for each name, numbers being uint32 scalar, or [layers] for a layer's."""
    listed = specifications(architecture)
    numbers = stack_layers({s.name: jnp.uint32(i) for i, s in enumerate(listed)})
    by_name = {s.name.removeprefix("layers.0."): s for s in listed}
    return Layered(
        {name: function(by_name[name], number) for name, number in numbers.outer.items()},
        {name: function(by_name[name], number) for name, number in numbers.layers.items()},
    )


@jit(static_argnums=(0, 1))
def initialise(architecture: Architecture, seed: int) -> Parameters:
    """First values: matrices and embedding Gaussian with standard deviation 16 (1.0), biases 0.

    seed: 0 to 2^64 - 1. Element e (row-major) of parameter n is quantile[byte e of the counter (0, 0, n, ·)].
    """
    quantile = jnp.asarray(tables().quantile)
    key = seed_key(seed, Domain.INITIALISATION)
    parameters = {}
    for number, (name, shape, kind) in enumerate(specifications(architecture)):
        if is_matrix(kind):
            octets = random_bytes(key, (0, 0, number, 0), shape[0] * shape[1])
            parameters[name] = quantile[octets].reshape(shape)
        else:
            parameters[name] = jnp.zeros(shape, jnp.int8)
    return parameters
