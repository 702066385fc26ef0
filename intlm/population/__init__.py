"""Evaluating a population and gathering its votes: engines that give the same bits."""

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from intlm.lazy import jax

if TYPE_CHECKING:
    from intlm.population.engine import Engine, Population


def __getattr__(name: str) -> Any:
    if name in ("Engine", "Population"):  # every command reads estimators, and these import NumPy
        from intlm.population import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'intlm.population' has no attribute {name!r}")


def make_engine(name: str, population: "Population") -> "Engine":
    """Makes the engine called `name` in a configuration; "auto" is the fastest that serves this population here.

    Raises ConfigError where the named engine does not serve it.
    """
    from intlm.errors import ConfigError
    from intlm.population import native
    from intlm.population.xla import XlaEngine

    reasons = []
    if name == "gpu" or (name == "auto" and jax.default_backend() == "gpu"):
        from intlm.population import gpu  # only here: Pallas takes a while to import

        reason = gpu.GpuEngine.serves(population) or (gpu.missing() if name == "auto" else "")
        if not reason:
            engine = gpu.GpuEngine(population)
            for operation in engine.unserved():
                _say_once(f"intlm: the gpu engine uses XLA for: {operation}")
            return engine
        reasons.append(f"gpu: {reason}")
    if name in ("auto", "native"):
        if not (reason := native.NativeEngine.serves(population)):
            return native.NativeEngine(population)
        reasons.append(f"native: {reason}")
    if name in ("gpu", "native"):
        raise ConfigError(f'engine = "{name}": {reasons[0].partition(": ")[2]}')
    if reasons:
        _say_once(f"intlm: engine xla ({'; '.join(reasons)})")
    return XlaEngine(population)


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
