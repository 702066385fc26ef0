"""Loops over the first axis of arrays some entries at a time, which changes memory and speed, but no bit."""

from collections.abc import Callable
from typing import Any, TypeVar

from intlm.lazy import Array, jax, jnp

Tree = TypeVar("Tree")


def numbered(entries: Array) -> Array:
    """0, 1, 2, … for the entries of an array's first axis: uint32."""
    return jnp.arange(entries.shape[0], dtype=jnp.uint32)


def even_chunk(pairs: int, most: int, multiple: int = 1) -> int:
    """The size of a chunk: up to `most` pairs, a multiple of `multiple`, with no remainder after the last if possible.

    A remainder is another program to compile, and takes copies of all states.
    """
    most = max(multiple, most // multiple * multiple)
    fewest = -(-pairs // most)
    for chunks in range(fewest, 2 * fewest + 1):
        if pairs % (chunks * multiple) == 0:
            return pairs // chunks
    return most


def _split(tree: Tree, size: int) -> tuple[Tree, Tree | None]:
    """Returns whole chunks, stacked on a new first axis, and the remainder."""
    count = jax.tree.leaves(tree)[0].shape[0]
    whole = count // size * size
    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), tree)
    return chunks, jax.tree.map(lambda x: x[whole:], tree) if whole < count else None


def map_in_chunks(function: Callable[[Tree], Tree], xs: Tree, size: int) -> Tree:
    """Maps function over the first axis of xs, `size` entries at a time, one chunk after another."""
    chunks, rest = _split(xs, size)
    done = jax.lax.map(function, chunks)
    done = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done)
    if rest is None:
        return done
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), done, function(rest))


def scan_in_chunks(
    function: Callable[[Any, Tree], tuple[Any, Any]], start: Any, xs: Tree, size: int
) -> tuple[Any, Any]:
    """jax.lax.scan of function over the first axis of xs, `size` entries at a time; its results are concatenated."""
    chunks, rest = _split(xs, size)
    total, results = jax.lax.scan(function, start, chunks)
    results = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
    if rest is None:
        return total, results
    total, last = function(total, rest)
    return total, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), results, last)


def fold_in_chunks(function: Callable[[Array, Tree], Array], start: Array, xs: Tree, size: int) -> Array:
    """Fold function over the chunks of the first axis of xs."""
    chunks, rest = _split(xs, size)
    total, _ = jax.lax.scan(lambda total, chunk: (function(total, chunk), None), start, chunks)
    return total if rest is None else function(total, rest)
