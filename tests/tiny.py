"""A configuration so small that a whole run takes seconds, one run of it, and the command line as a process.

The run is made once a session and is not to be changed: a test that would copies it.
"""

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w

from intlm import config as configuration
from intlm.checkpoint import Checkpoints
from intlm.config import Config, DataConfig
from intlm.data.tokenizers import Tokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.language_model import LanguageModel
from intlm.model.parameters import Architecture, specifications
from intlm.population import Population, make_engine
from intlm.run import open_run, population_of
from intlm.settings import build
from intlm.tracking import metrics
from intlm.training import train
from intlm.update import TrainState, initial_state

_HOME = tempfile.TemporaryDirectory(prefix="intlm-tests-")
HOME = Path(_HOME.name)
"""The folder that tests share: text.txt, tiny.toml, the prepared text and the run."""

_WORDS = (b"a", b"ab", b"abba", b"baab", b"bab", b"bbb")
TIMINGS = ("seconds", "tokens_per_second", "waiting")
UPDATES, EVALUATE_EVERY, SAMPLE_EVERY = 12, 4, 5
MEMBERS, GROUP_SIZE, TOKENS = 32, 2, 8
KEYS: dict[str, Any] = {
    "seed": 3,
    "model.hidden_size": 16,
    "model.num_layers": 1,
    "model.feed_forward_size": 16,
    "eggroll.population": MEMBERS,
    "eggroll.member.group_size": GROUP_SIZE,
    "train.tokens_per_update": TOKENS,
    "train.updates": UPDATES,
    "train.evaluate_every": EVALUATE_EVERY,
    "train.sample_every": SAMPLE_EVERY,
    "train.checkpoint_seconds": 0,
    "data.train": str(HOME / "text.txt"),
    "data.valid_bytes": 3000,
    "data.tokenizer": "alphabet",
    "data.prepared": str(HOME / "prepared"),
}

# Programs compiled once serve this process and its children.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(HOME / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(HOME / "compiled"))
os.environ["TRACKIO_DIR"] = str(HOME / "trackio")  # not with the user's own
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def data_of(**keys: Any) -> DataConfig:
    """The [data] section with some keys, a tokenizer by its name, its settings as "bpe.vocab_size"."""
    assert {f"data.{name}" for name in keys} <= configuration.keys().keys()
    return build(DataConfig, keys)


def words(count: int, seed: int = 1) -> bytes:
    """Text of words drawn at random."""
    return b" ".join(random.Random(seed).choices(_WORDS, k=count))


(HOME / "text.txt").write_bytes(words(4000))


def write_config(path: Path, keys: Mapping[str, Any] = KEYS) -> Path:
    """Writes a configuration of dotted keys as TOML."""
    tables: dict[str, Any] = {}
    for name, value in keys.items():
        *sections, key = name.split(".")
        table = tables
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    path.write_text(tomli_w.dumps(tables))
    return path


CONFIG = write_config(HOME / "tiny.toml")


def load_config(**keys: object) -> Config:
    """The tiny configuration with other values; two underscores stand for the dot of a key."""
    return configuration.load(CONFIG, {key.replace("__", "."): str(value) for key, value in keys.items()})


class Run(NamedTuple):
    """A run that reached its end."""

    directory: Path
    printed: str


@cache
def trained() -> Run:
    """The tiny configuration's run, never interrupted."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        assert train(load_config(), HOME / "run")
    return Run(HOME / "run", printed.getvalue())


def copied(to: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(trained().directory, to))


def lines_of(run: Path, without: Sequence[str] = TIMINGS) -> list[dict[str, Any]]:
    """A run's metrics but for some fields."""
    return [{k: v for k, v in line.items() if k not in without} for line in metrics.read(run / "metrics.jsonl")]


def events_of(run: Path) -> list[Any]:
    """The summary events in a run's event files, in the order of the files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted(run.glob("events.out.tfevents.*"))
    return [event for file in files for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]


def state_of(run: Path, update: int | None = None) -> list[tuple[str, np.ndarray]]:
    """Returns the weights, the optimizer's state and the members' states in a run's checkpoint (default: the last)."""
    config, tokenizer = open_run(run)
    population = population_of(config, tokenizer.vocab_size)
    like = jax.eval_shape(lambda: initial_state(population, config.eggroll.optimizer))
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    found = checkpoints.restore(checkpoints.updates()[-1] if update is None else update, like)
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(found)]


def assert_same_state(run: Path, other: Path) -> None:
    """Both runs' last checkpoints hold the same bits."""
    for (name, found), (expected_name, expected) in zip(state_of(run), state_of(other), strict=True):
        assert name == expected_name
        np.testing.assert_array_equal(found, expected, err_msg=name)


def assert_same_run(run: Path, other: Path) -> None:
    """Both runs ended with the same bits and the same output, timings apart."""
    assert_same_state(run, other)
    assert lines_of(run) == lines_of(other)


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and its time, to see that nothing changed; the lock, which is empty, left out."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def intlm(
    *arguments: object, python: Sequence[str] = ("-P", "-m", "intlm.cli"), cwd: Path = HOME
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own."""
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, cwd=cwd)


def make_model(tokenizer: Tokenizer | None = None, hidden: int = 16, layers: int = 2, seed: int = 0) -> LanguageModel:
    """A model of random weights, its matrices as large as those that training starts from."""
    tokenizer = tokenizer or ByteTokenizer()
    architecture = Architecture(tokenizer.vocab_size, hidden, layers, 24, "clip")
    rng = np.random.default_rng(seed)
    parameters = {
        s.name: jnp.asarray(np.clip(rng.normal(0, 16, s.shape).round(), -127, 127), jnp.int8)
        for s in specifications(architecture)
    }
    engine = make_engine("auto", Population(architecture))
    return LanguageModel(architecture, parameters, tokenizer, engine)


def write_run(directory: Path, model: LanguageModel, updates: Sequence[int] = (1,), **keys: object) -> Config:
    """Writes a model as a run, with a checkpoint at each of `updates`, a weight of the head differing."""
    config = load_config(
        model__hidden_size=model.architecture.hidden_size,
        model__num_layers=model.architecture.num_layers,
        model__feed_forward_size=model.architecture.feed_forward_size,
        **keys,
    )
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(configuration.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(model.tokenizer.to_json()))
    checkpoints = Checkpoints(directory / "checkpoints")
    for update in updates:
        older = {**model.parameters, "head": model.parameters["head"].at[0, 0].add(updates[-1] - update)}
        checkpoints.save(update, TrainState(older, (), jnp.zeros((1, 2, 1, 8), jnp.int8)), {})
    return config
