"""JAX, jax.numpy and NumPy, imported when they are first used.

Modules that describe settings, commands and parts are read by every command, `intlm --help` among them; importing JAX
takes most of a second.
"""

import importlib
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax as jax
    import jax.numpy as jnp
    import numpy as np

    Array = jax.Array
else:

    class _Lazy:
        """A module that is imported when one of its attributes is asked for."""

        def __init__(self, name: str) -> None:
            self.__dict__["_module"] = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._module), attribute)

    jax, jnp, np, Array = _Lazy("jax"), _Lazy("jax.numpy"), _Lazy("numpy"), Any


def jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns jax.jit with these options, as a decorator that imports JAX at the first call."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: list[Any] = []

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if not compiled:
                compiled.append(jax.jit(function, **options))
            return compiled[0](*arguments, **named)

        return call

    return decorate
