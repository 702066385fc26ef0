"""A population divided among devices: which pairs are whose, and the little that crosses between them.

- Of D devices each evaluates the pairs of ceil(texts / D) texts that follow each other. Where that is too many the last
  devices have pairs that do not count: they read separators, and their losses are 0.
- Only integer sums cross, so that the bits are those of one device. They cross three times an update, for each time has
  its latency: a few words of the losses; the votes, of which each device receives the sums for its slice of the
  parameters (a reduce-scatter, 4 bytes a parameter); and that slice's new weights (a gather, 1 byte). docs/scaling.md
  says why votes cross and not fitness.
- So each device makes its slice of the update, and keeps the optimizer's state of it. A slice is of each parameter's
  elements in order, as many for each device, with zeros behind the last.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from intlm.arithmetic.fixed_point import Array
from intlm.model.parameters import Parameters, specifications
from intlm.population.engine import FIRST, Problem

AXIS = "devices"
DIVIDED, SAME = PartitionSpec(AXIS), PartitionSpec()  # over the devices, by the first axis; the same on each
_LIMB = 11

Tree = TypeVar("Tree")


class Sharding:
    """How a problem's population is divided.

    devices: of all processes, those of a process one after another; None: the one that JAX computes on.

    Attributes:
        own_pairs, own_texts: of each device.
    """

    def __init__(self, problem: Problem, devices: Sequence[jax.Device] | None = None) -> None:
        self.count = len(devices) if devices else 1
        self.mesh = Mesh(np.array(devices), (AXIS,)) if devices and self.count > 1 else None
        self.pairs, texts = problem.pairs, problem.pairs // problem.group_size
        self.own_texts = -(-texts // self.count)
        self.own_pairs = self.own_texts * problem.group_size
        self.shapes = {s.name: s.shape for s in specifications(problem.architecture)}
        self.sizes = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        self.slices = {name: -(-size // self.count) for name, size in self.sizes.items()}
        mine = [i for i, device in enumerate(devices or []) if device.process_index == jax.process_index()] or [0]
        # The texts that this process reads: no others are there.
        self.process_texts = range(*(min(texts, i * self.own_texts) for i in (mine[0], mine[-1] + 1)))
        self.padding = len(mine) * self.own_texts - len(self.process_texts)

    # In a device's program

    def first(self) -> Array:
        """The number of this device's first pair: uint32 scalar."""
        return FIRST if self.mesh is None else jax.lax.axis_index(AXIS).astype(jnp.uint32) * np.uint32(self.own_pairs)

    def counted(self, of_pairs: Array) -> Array:
        """Zero for the pairs that do not count. of_pairs: [own pairs, ...]."""
        if self.own_pairs * self.count == self.pairs:
            return of_pairs
        there = self.first() + jnp.arange(self.own_pairs, dtype=jnp.uint32) < self.pairs
        return jnp.where(there.reshape(-1, *[1] * (of_pairs.ndim - 1)), of_pairs, jnp.zeros_like(of_pairs))

    def total(self, tree: Tree) -> Tree:
        """Sums over the devices."""
        if self.mesh is None:
            return tree
        leaves, structure = jax.tree.flatten(tree)
        whole = jax.lax.psum(jnp.concatenate([leaf.reshape(-1).astype(jnp.int32) for leaf in leaves]), AXIS)
        parts = jax.lax.split(whole, [leaf.size for leaf in leaves])
        pairs = zip(parts, leaves, strict=True)
        return jax.tree.unflatten(structure, [part.astype(leaf.dtype).reshape(leaf.shape) for part, leaf in pairs])

    def scatter(self, votes: Parameters, energy: Array) -> tuple[Parameters, Array]:
        """The sums over the devices of this device's slice of each parameter's votes, and of an int32 scalar."""
        if self.mesh is None:
            return votes, energy
        rows = [self._rows(name, vote) for name, vote in votes.items()]
        joined = jnp.concatenate([*rows, jnp.full((self.count, 1), energy)], axis=1)
        found = jax.lax.psum_scatter(joined, AXIS)
        return self._parts(votes, found[:-1]), found[-1]

    def own(self, parameters: Parameters) -> Parameters:
        """This device's slice of each parameter."""
        if self.mesh is None:
            return parameters
        return {name: self._rows(name, value)[jax.lax.axis_index(AXIS)] for name, value in parameters.items()}

    def gather(self, slices: Parameters, words: Array) -> tuple[Parameters, Array]:
        """Each parameter whole, of the devices' slices; and each device's words, int32 [devices, words]."""
        if self.mesh is None:
            return slices, words[None]
        as_bytes = jax.lax.bitcast_convert_type(words, jnp.int8).reshape(-1)
        rows = jax.lax.all_gather(jnp.concatenate([*slices.values(), as_bytes]), AXIS)
        columns = self._parts(slices, rows[:, : -as_bytes.size])
        told = jax.lax.bitcast_convert_type(rows[:, -as_bytes.size :].reshape(self.count, -1, 4), jnp.int32)
        return {name: self._shaped(name, value) for name, value in columns.items()}, told

    def _rows(self, name: str, value: Array) -> Array:
        padding = self.slices[name] * self.count - self.sizes[name]
        return jnp.pad(value.reshape(-1), (0, padding)).reshape(self.count, -1)

    def _parts(self, like: Parameters, joined: Array) -> Parameters:
        sizes = [self.slices[name] for name in like]
        return dict(zip(like, jax.lax.split(joined, sizes, axis=joined.ndim - 1), strict=True))

    def _shaped(self, name: str, value: Any) -> Any:
        return value.reshape(-1)[: self.sizes[name]].reshape(self.shapes[name])

    # Around it

    def compile(self, function: Callable[..., Any], takes: Any, gives: Any, **options: Any) -> Callable[..., Any]:
        """A device's program as one over all devices. takes, gives: DIVIDED or SAME for each argument and result."""
        if self.mesh is not None:
            function = jax.shard_map(function, mesh=self.mesh, in_specs=takes, out_specs=gives, check_vma=False)
        return jax.jit(function, **options)

    def put_same(self, tree: Tree) -> Tree:
        """Arrays that are the same on each device, from whole ones."""
        return tree if self.mesh is None else jax.tree.map(partial(self._put, SAME), tree)

    def put_texts(self, array: np.ndarray) -> Array:
        """[texts of this process, ...], divided among its devices."""
        if self.mesh is None:
            return jnp.asarray(array)
        padded = np.pad(array, [(0, self.padding)] + [(0, 0)] * (array.ndim - 1))
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, DIVIDED), padded)

    def put_pairs(self, array: Array) -> Array:
        """[pairs, ...] divided."""
        if self.mesh is None:
            return array
        padding = self.own_pairs * self.count - self.pairs
        return self._put(DIVIDED, np.pad(np.asarray(array), [(0, padding)] + [(0, 0)] * (array.ndim - 1)))

    def put_slices(self, state: Tree) -> Tree:
        """An optimizer's state, in which dictionaries hold something for each parameter, divided into slices."""
        if self.mesh is None:
            return state

        def put(name: str, value: Any) -> Any:
            padding = self.slices[name] * self.count - self.sizes[name]
            return self._put(DIVIDED, np.pad(np.asarray(value).reshape(-1), (0, padding)))

        return _map_parameters(put, state)

    def put_words(self, words: Sequence[int]) -> Array:
        """This process's words for each of its devices: int32 [devices, words], divided."""
        own = np.array(words, np.int32)[None]
        if self.mesh is None:
            return jnp.asarray(own)
        own = np.tile(own, (len(self.mesh.local_devices), 1))
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, DIVIDED), own)

    def take_pairs(self, array: Array) -> Any:
        """The reverse of `put_pairs`, for each process."""
        return array if self.mesh is None else _everywhere(array)[: self.pairs]

    def take_slices(self, state: Tree) -> Tree:
        """The reverse of `put_slices`, for each process."""
        if self.mesh is None:
            return state
        return _map_parameters(lambda name, value: self._shaped(name, _everywhere(value)), state)

    def take_same(self, tree: Tree) -> Tree:
        """The reverse of `put_same`: bound to no device, so that one device's programs take it."""
        return tree if self.mesh is None else jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)

    def _put(self, how: PartitionSpec, array: Any) -> Array:
        assert self.mesh is not None
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(self.mesh, how), lambda index: array[index])


def _everywhere(array: Array) -> np.ndarray:
    """The whole of a divided array, on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))


def _map_parameters(function: Callable[[str, Any], Any], state: Tree) -> Tree:
    """function(name, value) over what a tree's dictionaries hold."""

    def over(found: dict[str, Any]) -> dict[str, Any]:
        return {name: function(name, value) for name, value in found.items()}

    return jax.tree.map(over, state, is_leaf=lambda node: isinstance(node, dict))


def limbs(values: Array) -> Array:
    """The exact sum of up to 2^21 values from 0 to 2^31 - 1 as uint32 [3], for `number`: it may pass 32 bits."""
    parts = [(values >> (_LIMB * i)) & (2**_LIMB - 1) for i in range(3)]
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in parts])


def number(limbs: Array) -> int:
    """The sum that `limbs` made."""
    return sum(int(limb) << (_LIMB * i) for i, limb in enumerate(np.asarray(limbs)))
