"""Sharding: divides a population among devices, and defines what they send each other.

- Each of D devices evaluates the units of ceil(texts / D) consecutive texts. Where D does not divide them, the last
  devices have units that do not count: they read separators, and cast no votes.
- Only integer sums are sent, so that the bits are those of one device. An update sends three times, and no more because
  each time costs latency: a few words of the losses; the votes, of which each device receives the sums for its slice of
  the parameters (a reduce-scatter, 4 bytes a parameter); and that slice's new weights (a gather, 1 byte).
  docs/scaling.md says why votes are sent and not fitness.
- So each device updates its slice of the parameters, and keeps the optimizer's state of that slice. The slices divide
  each parameter's elements in order, equally many for each device, with zeros after the last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from intlm.lazy import Array
from intlm.model.parameters import Parameters, specifications
from intlm.population.engine import Population

AXIS = "devices"
DIVIDED, SAME = PartitionSpec(AXIS), PartitionSpec()  # split over the devices by the first axis; replicated
FIRST: Any = np.uint32(0)  # the first unit of a population that is not divided
_LIMB = 11

Tree = TypeVar("Tree")


class Sharding:
    """The sharding of a population: a device has whole texts, with the units that read them (`intlm.estimators`).

    devices: jax.Device, those of all processes, process by process; None: the one that JAX computes on.

    Attributes:
        own_units, own_texts: the number of units and of texts of each device.
    """

    def __init__(self, population: Population, devices: Sequence[Any] | None = None) -> None:
        self.count = len(devices) if devices else 1
        self.mesh = Mesh(np.array(devices), (AXIS,)) if devices and self.count > 1 else None
        self.units, texts = population.units, population.texts
        self.own_texts = -(-texts // self.count)
        self.own_units = self.own_texts * population.group_size
        self.shapes = {s.name: s.shape for s in specifications(population.architecture)}
        self.sizes = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        self.slices = {name: -(-size // self.count) for name, size in self.sizes.items()}
        mine = [i for i, device in enumerate(devices or []) if device.process_index == jax.process_index()] or [0]
        # The texts that this process reads: it holds no others.
        self.process_texts = range(*(min(texts, i * self.own_texts) for i in (mine[0], mine[-1] + 1)))
        self.padding = len(mine) * self.own_texts - len(self.process_texts)

    # In a device's program

    def first(self) -> Array:
        """The number of this device's first unit: uint32 scalar."""
        return FIRST if self.mesh is None else jax.lax.axis_index(AXIS).astype(jnp.uint32) * np.uint32(self.own_units)

    def there(self) -> Array | None:
        """Which of this device's units count: bool [own units]; None: all."""
        if self.own_units * self.count == self.units:
            return None
        return self.first() + jnp.arange(self.own_units, dtype=jnp.uint32) < self.units

    def total(self, tree: Tree) -> Tree:
        """Returns the sums over the devices."""
        if self.mesh is None:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        whole = jax.lax.psum(jnp.concatenate([leaf.reshape(-1).astype(jnp.int32) for leaf in leaves]), AXIS)
        parts = jax.lax.split(whole, [leaf.size for leaf in leaves])
        pairs = zip(parts, leaves, strict=True)
        return jax.tree.unflatten(structure, [part.astype(leaf.dtype).reshape(leaf.shape) for part, leaf in pairs])

    def scatter(self, votes: Parameters, words: Tree) -> tuple[Parameters, Tree]:
        """Sums over the devices: of the votes, this device's slice for each parameter; and of a tree of int32, all."""
        if self.mesh is None:
            return votes, words
        rows = [self._rows(name, vote) for name, vote in votes.items()]
        leaves, structure = jax.tree.flatten(words)
        others = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
        joined = jnp.concatenate([*rows, jnp.broadcast_to(others, (self.count, others.size))], axis=1)
        received = jax.lax.psum_scatter(joined, AXIS)
        sums = jax.lax.split(received[received.size - others.size :], [leaf.size for leaf in leaves])
        sums = [part.reshape(leaf.shape) for part, leaf in zip(sums, leaves, strict=True)]
        return self._parts(votes, received[: received.size - others.size]), jax.tree.unflatten(structure, sums)

    def own(self, parameters: Parameters) -> Parameters:
        """Returns this device's slice of each parameter; a scalar in a parameter's place stays."""
        if self.mesh is None:
            return parameters
        own = jax.lax.axis_index(AXIS)
        return {n: self._rows(n, value)[own] if value.ndim else value for n, value in parameters.items()}

    def gather(self, slices: Parameters, words: Array) -> tuple[Parameters, Array]:
        """Returns whole parameters from the devices' slices, and the words of each device: int32 [devices, words]."""
        if self.mesh is None:
            return slices, words[None]
        as_bytes = jax.lax.bitcast_convert_type(words, jnp.int8).reshape(-1)
        rows = jax.lax.all_gather(jnp.concatenate([*slices.values(), as_bytes]), AXIS)
        columns = self._parts(slices, rows[:, : -as_bytes.size])
        gathered = jax.lax.bitcast_convert_type(rows[:, -as_bytes.size :].reshape(self.count, -1, 4), jnp.int32)
        return {name: self._shaped(name, value) for name, value in columns.items()}, gathered

    def _rows(self, name: str, value: Array) -> Array:
        padding = self.slices[name] * self.count - self.sizes[name]
        return jnp.pad(value.reshape(-1), (0, padding)).reshape(self.count, -1)

    def _parts(self, like: Parameters, joined: Array) -> Parameters:
        sizes = [self.slices[name] for name in like]
        return dict(zip(like, jax.lax.split(joined, sizes, axis=joined.ndim - 1), strict=True))

    def _shaped(self, name: str, value: Any) -> Any:
        return value.reshape(-1)[: self.sizes[name]].reshape(self.shapes[name])

    # Outside a device's program

    def compile(self, function: Callable[..., Any], takes: Any, gives: Any, **options: Any) -> Callable[..., Any]:
        """Compile a device's program for all devices. takes, gives: DIVIDED or SAME for each argument and result."""
        if self.mesh is not None:
            function = jax.shard_map(function, mesh=self.mesh, in_specs=takes, out_specs=gives, check_vma=False)
        return jax.jit(function, **options)

    def put_same(self, tree: Tree) -> Tree:
        """Returns whole arrays replicated on each device."""
        return tree if self.mesh is None else jax.tree.map(partial(self._put, SAME), tree)

    def put_texts(self, array: np.ndarray) -> Array:
        """Divides an array [texts of this process, ...] among the process's devices."""
        if self.mesh is None:
            return jnp.asarray(array)
        padded = np.pad(array, [(0, self.padding)] + [(0, 0)] * (array.ndim - 1))
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, DIVIDED), padded)

    def put_units(self, tree: Tree) -> Tree:
        """Divides arrays [units, ...] among the devices."""
        if self.mesh is None:
            return tree
        padding = self.own_units * self.count - self.units

        def put(array: Any) -> Array:
            return self._put(DIVIDED, np.pad(np.asarray(array), [(0, padding)] + [(0, 0)] * (array.ndim - 1)))

        return jax.tree.map(put, tree)

    def put_slices(self, state: Tree) -> Tree:
        """Divides an optimizer's state, in which dictionaries hold a value for each parameter, into slices."""
        if self.mesh is None:
            return state

        def put(name: str, value: Any) -> Any:
            padding = self.slices[name] * self.count - self.sizes[name]
            return self._put(DIVIDED, np.pad(np.asarray(value).reshape(-1), (0, padding)))

        return _map_parameters(put, state)

    def take_units(self, tree: Tree) -> Tree:
        """The reverse of `put_units`, for each process."""
        return tree if self.mesh is None else jax.tree.map(lambda array: _everywhere(array)[: self.units], tree)

    def take_slices(self, state: Tree) -> Tree:
        """The reverse of `put_slices`, for each process."""
        if self.mesh is None:
            return state
        return _map_parameters(lambda name, value: self._shaped(name, _everywhere(value)), state)

    def take_same(self, tree: Tree) -> Tree:
        """The reverse of `put_same`. The arrays are bound to no device, so that programs for one device take them."""
        return tree if self.mesh is None else jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)

    def _put(self, how: PartitionSpec, array: Any) -> Array:
        assert self.mesh is not None
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(self.mesh, how), lambda index: array[index])


def _everywhere(array: Array) -> np.ndarray:
    """Returns the whole of a divided array, on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))


def _map_parameters(function: Callable[[str, Any], Any], state: Tree) -> Tree:
    """Maps function(name, value) over the entries of a tree's dictionaries."""

    def over(entries: dict[str, Any]) -> dict[str, Any]:
        return {name: function(name, value) for name, value in entries.items()}

    return jax.tree.map(over, state, is_leaf=lambda node: isinstance(node, dict))


def limbs(values: Array) -> Array:
    """The exact sum of up to 2^21 values from 0 to 2^31 - 1, which may pass 32 bits: uint32 [3], read by `number`."""
    parts = [(values >> (_LIMB * i)) & (2**_LIMB - 1) for i in range(3)]
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in parts])


def number(limbs: Array) -> int:
    """The sum that `limbs` returned, as one integer."""
    return sum(int(limb) << (_LIMB * i) for i, limb in enumerate(np.asarray(limbs)))
