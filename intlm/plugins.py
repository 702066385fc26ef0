"""Plugins: the user's own Python files that register parts (`intlm.settings`).

A plugin runs only where its user asks for it: by `--plugin FILE`, or by `plugins` in a configuration or a sweep that
the user wrote. A plugin that a run, an export or another downloaded file names is not run.
"""

import importlib.util
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from intlm.errors import ConfigError
from intlm.settings import parts_of, shown

_LOADED: dict[Path, str] = {}  # file -> the name of its module

OF_A_RUN = ("tokenizer.json", "checkpoints", "model.safetensors")  # files beside the config.toml of a run or export


def load(path: Path) -> None:
    """Run a plugin, at most once in a process. Raises ConfigError where it is no Python file or fails."""
    file = path.resolve()
    if file in _LOADED:
        return
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"--plugin {path}: expected a Python file that registers parts")
    name = f"intlm_plugin_{len(_LOADED)}_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification and specification.loader
    sys.modules[name] = module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    _LOADED[file] = name


def asked_for(arguments: Sequence[str]) -> list[Path]:
    """The plugins that a command line asks for, by flags and by the configuration or sweep that it names."""
    files: list[Path] = []
    for at, word in enumerate(arguments):
        if word == "--plugin" and at + 1 < len(arguments):
            files.append(Path(arguments[at + 1]))
        elif word.startswith("--plugin="):
            files.append(Path(word.partition("=")[2]))
        elif word.endswith(".toml") and (at == 0 or not arguments[at - 1].startswith("--")):
            files += named_by(Path(word))
    return files


def named_by(config: Path) -> list[Path]:
    """The plugins that the user's own configuration or sweep names; none for the config.toml of a run or an export.

    None for a file that cannot be read either: reading it as a configuration later reports the mistake.
    """
    if any((config.parent / name).exists() for name in OF_A_RUN):
        return []
    try:
        named = tomllib.loads(config.read_bytes().decode()).get("plugins", [])
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"{config}: plugins = {shown(named)}: expected a list of Python files")
    return [config.parent / name for name in named]


def loaded() -> list[Path]:
    """The plugins that this process has run, for other processes that need them."""
    return list(_LOADED)


def flags() -> list[str]:
    """The command line flags that load the same plugins in another process."""
    return [word for file in loaded() for word in ("--plugin", str(file))]


def needed(config: Any) -> list[str]:
    """The plugins whose parts a configuration chooses."""
    return list(dict.fromkeys(_files(config)))


def _files(config: Any) -> Iterator[str]:
    modules = {name: file for file, name in _LOADED.items()}
    for part in parts_of(config):
        if file := modules.get(type(part).__module__):
            yield str(file)
