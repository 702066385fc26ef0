"""Evaluating a population and gathering its votes: engines that give the same bits."""

import sys
from functools import cache

from intlm.population.engine import Engine, Problem


def make_engine(name: str, problem: Problem) -> Engine:
    """The engine called `name` in a configuration; "auto" is the fastest that works here.

    Raises ConfigError where "native" is asked for and this installation has none.
    """
    from intlm.errors import ConfigError
    from intlm.population import native
    from intlm.population.xla import XlaEngine

    if name in ("auto", "native") and native.available():
        return native.NativeEngine(problem)
    if name == "native":
        raise ConfigError('engine = "native": not in this installation; expected a C++ compiler when it was installed')
    if name == "auto":
        _say_once("intlm: no native engine here (it needs a C++ compiler when the package is installed); XLA is used")
    return XlaEngine(problem)


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)
