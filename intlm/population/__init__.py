"""Evaluating a population and gathering its votes: engines that give the same bits."""

import sys
from functools import cache

import jax

from intlm.population.engine import Engine, Problem


def make_engine(name: str, problem: Problem) -> Engine:
    """The engine called `name` in a configuration; "auto" is the fastest that works here.

    Raises ConfigError where "native" or "gpu" is asked for and there is none here.
    """
    from intlm.errors import ConfigError
    from intlm.population import native
    from intlm.population.xla import XlaEngine

    why = ""
    if name == "gpu" or (name == "auto" and jax.default_backend() == "gpu"):
        from intlm.population import gpu  # only here: Pallas takes a while to import

        missing = "" if name == "gpu" and gpu.interpreted() else gpu.missing()
        if not missing:
            engine = gpu.GpuEngine(problem)
            for operation in engine.unserved():
                _say_once(f"intlm: the gpu engine leaves to XLA: {operation}")
            return engine
        if name == "gpu":
            raise ConfigError(f'engine = "gpu": {missing}')
        why = f"no gpu engine here ({missing})"
    if name in ("auto", "native") and native.available():
        return native.NativeEngine(problem)
    if name == "native":
        raise ConfigError(f'engine = "native": {native.missing()}')
    if name == "auto":
        _say_once(f"intlm: {why or f'no native engine here ({native.missing()})'}; XLA is used")
    return XlaEngine(problem)


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
