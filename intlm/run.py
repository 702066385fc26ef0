"""A run's directory: its files, and the model of its last checkpoint.

config.toml          the resolved configuration
tokenizer.json       the tokenizer that the model was trained with
references.json      reference models on the held-out text: unigram, bigram, trigram, gzip -9
checkpoints/         the last few (intlm.checkpoint)
metrics.jsonl        one line per update, with a sample of text now and then
learning_curve.png
events.out.tfevents.*  the metrics for TensorBoard

An export (intlm.export) is read like a run: it has model.safetensors in place of the checkpoints.
"""

import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import msgspec

from intlm import config as configuration
from intlm.arithmetic.fixed_point import MAX8
from intlm.checkpoint import Checkpoints
from intlm.config import Config
from intlm.data.shards import Corpus
from intlm.data.tokenizers import Tokenizer, load_tokenizer
from intlm.errors import DataError, RunError, replacing
from intlm.language_model import LanguageModel
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.population import Population, make_engine
from intlm.schema import Sha256, check_range, read_bytes, read_json
from intlm.version import INFERENCE_VERSION

WEIGHTS = "model.safetensors"
T = TypeVar("T")


def architecture_of(config: Config, vocab_size: int) -> Architecture:
    """The architecture that a configuration asks for."""
    model = config.model
    return Architecture(
        vocab_size, model.hidden_size, model.num_layers, model.feed_forward_size, model.nonlinearity, model.cell
    )


def population_of(config: Config, vocab_size: int) -> Population:
    """The population of a configuration, for which a run's engine is built."""
    eggroll = config.eggroll
    return Population(
        architecture_of(config, vocab_size), eggroll.estimator, eggroll.population, config.seed, config.objective,
        eggroll.chunk_size, config.threads, config.train.tokens_per_update,
    )  # fmt: skip


class Described(msgspec.Struct):
    """The fields of an export's config.json that intlm reads."""

    weights_sha256: Sha256
    corpus: str | None = None  # the identity of the text that it was trained with


def open_run(directory: Path) -> tuple[Config, Tokenizer]:
    """The configuration and the tokenizer of a run. Raises RunError where `directory` is not a run."""
    path = directory / "config.toml"
    if not path.is_file():
        raise RunError(f"{directory}: not a run: expected a directory with config.toml in it, as `intlm train` leaves")
    config = configuration.load(path, trained=True)
    path = directory / "tokenizer.json"
    try:
        return config, load_tokenizer(path)
    except DataError as error:
        raise RunError(str(error)) from None


def open_corpus(config: Config, tokenizer: Tokenizer, directory: Path | None = None) -> Corpus:
    """The token shards of a run's configuration.

    directory: the run, whose training text they must be; None: any text in the run's tokens will do. Raises DataError
    where there are no shards, or those of another text.
    """
    place = Path(config.data.prepared)
    if directory and not (place / "index.json").exists():
        command = shlex.join(["intlm", "prepare", str(directory / "config.toml")])
        raise DataError(f"{place}: no prepared text there: {command} makes it again")
    corpus = Corpus.open(place)
    if corpus.tokenizer != tokenizer:
        raise DataError(f"{place}: its tokenizer is not the one that the run was trained with")
    if directory and (expected := text_of(directory)) and corpus.identity != expected:
        raise DataError(f"{place}: not the text that {directory} was trained with: expected that one, or --text FILE")
    return corpus


def text_of(directory: Path) -> str | None:
    """The identity of the text (of a mixture the first) that a run or an export was trained with, where it is noted."""
    if (directory / WEIGHTS).exists():
        return read_json(directory / "config.json", Described, RunError).corpus
    noted = read_checkpoints(directory, lambda checkpoints, updates: checkpoints.meta(updates[-1]).corpus)
    return noted.split()[0] if noted else None


def load(directory: str | Path, engine: str | None = None) -> LanguageModel:
    """The model of a run's last checkpoint, or of an export. Raises RunError where there is none.

    engine: which engine computes; None: the configuration's.
    """
    directory = Path(directory)
    config, tokenizer = open_run(directory)
    population = Population(architecture_of(config, tokenizer.vocab_size), threads=config.threads)
    if (directory / WEIGHTS).exists():
        parameters = exported_parameters(directory / WEIGHTS, population.architecture)
    else:

        def read(checkpoints: Checkpoints, updates: list[int]) -> Parameters:
            checkpoints.meta(updates[-1])
            return checkpoints.parameters(updates[-1], population.architecture)

        parameters = read_checkpoints(directory, read)
    made = make_engine(engine or config.engine, population)
    return LanguageModel(population.architecture, parameters, tokenizer, made)


def exported_parameters(path: Path, architecture: Architecture) -> Parameters:
    """The weights of an export. Raises RunError where they are not those of the architecture, or damaged."""
    from safetensors import SafetensorError, safe_open

    described = path.with_name("config.json")
    expected = read_json(described, Described, RunError, ": expected that of an export").weights_sha256
    if hashlib.sha256(read_bytes(path, RunError)).hexdigest() != expected:
        raise RunError(f"{path}: damaged: its SHA-256 is not that of {described}")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: of dtypes that numpy has not
        raise RunError(f"{path}: cannot be read: {error}") from None
    version = metadata.get("inference_version", metadata.get("numerics_version"))  # the latter in older exports
    if version != str(INFERENCE_VERSION):
        raise RunError(
            f"{path}: inference_version = {version}: expected {INFERENCE_VERSION}, the version of this intlm"
        )
    shapes = {s.name: s.shape for s in specifications(architecture)}
    for name in sorted(shapes.keys() | weights.keys()):
        has = (weights[name].shape, str(weights[name].dtype)) if name in weights else "nothing"
        if name not in shapes or has != (shapes[name], "int8"):
            raise RunError(f"{path}: {name!r}: found {has}, expected {(shapes.get(name), 'int8')} by config.toml")
        check_range(weights[name], -MAX8, MAX8, f"{path}: {name}")
    return {name: jnp.asarray(value) for name, value in weights.items()}


def read_checkpoints(directory: Path, read: Callable[[Checkpoints, list[int]], T]) -> T:
    """Returns the result of `read` on a run's checkpoints and the updates that have one, oldest first.

    Calls it again if checkpoints vanish meanwhile, as they do while the run is being trained. Raises RunError where
    there are none, and whatever `read` raises.
    """
    path = directory / "checkpoints"
    while path.is_dir():
        there = set(os.listdir(path))
        try:
            checkpoints = Checkpoints(path, read_only=True)
            if updates := checkpoints.updates():
                return read(checkpoints, updates)
            break
        except (RunError, OSError):
            if there <= set(os.listdir(path)):
                raise
    raise RunError(f"{directory}: has no checkpoint yet")


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, so that it is never seen half written."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
