"""Configuration: one TOML file a run, typed, validated and resolved before anything starts.

- A key is a field of one of the dataclasses below. Its type, range and help text stand there and nowhere
  else: the TOML loader, the command line flags and the error messages are all made from them.
- A mistake is a `ConfigError` that names where the value came from (the file, or "command line"), the key,
  the value and what was expected.
- `dumps` writes what `load` reads: a run's saved config.toml gives the same `Config`, from any directory. It also
  says where it was written, so that the paths in it are found again where the whole project was moved.
- `check_limits` holds the arithmetic limits that docs/numerics.md proves.
"""

import argparse
import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from intlm.arithmetic import LARGEST_NOISE
from intlm.errors import ConfigError
from intlm.schema import parse_toml, read_text

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_PAIRS = 2**19
MAX_TOKENS_PER_UPDATE = 32768
MIN_VOCAB, MAX_VOCAB = 2, 65536

SERVICES = ("wandb", "trackio")

COMMAND_LINE = "command line"
_WRITTEN_IN = "written_in"  # beside the keys of a saved file: the directory that it was written in

_GROUPS_OF_8 = "the kernels and the exported model work on whole groups of 8 channels"
_ANTITHETIC = "members come in antithetic pairs"


def _key(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    low: int | None = None,
    high: int | None = None,
    multiple: int = 1,
    why: str = "",
    choices: tuple[str, ...] = (),
    path: bool = False,
    shares: bool = False,
) -> Any:
    """A configuration key: `low` and `high` are inclusive, `why` gives the reason for `multiple`.

    `path`: it is a path. `shares`: it is several, a number before each.
    """
    limits = {"low": low, "high": high, "multiple": multiple, "why": why, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "path": path, "shares": shares, **limits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model's shape."""

    hidden_size: int = _key(
        "channels of the residual stream and of each layer's recurrent state",
        64, low=8, high=65536, multiple=8, why=_GROUPS_OF_8,
    )  # fmt: skip
    num_layers: int = _key("layers, each a recurrent cell and a feed-forward", 2, low=1, high=64)
    feed_forward_size: int = _key(
        "channels inside each feed-forward", 256, low=8, high=65536, multiple=8, why=_GROUPS_OF_8
    )
    nonlinearity: str = _key(
        "the recurrent cell's: saturation alone, or sigmoid and tanh by tables",
        "clip", choices=("clip", "table"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EggrollConfig:
    """The evolution strategy."""

    population: int = _key("members evaluated in each update", 4096, low=2, multiple=2, why=_ANTITHETIC)
    rank: int = _key("rank of each member's perturbation of a matrix", 1, low=1, high=256)
    sigma_shift: int = _key("perturbations are scaled by 2**-sigma_shift", 4, low=0, high=12)
    noise_reuse: int = _key(
        "consecutive updates that share their perturbations; 0: all of them", 1, low=0, high=INT32_MAX
    )
    group_size: int = _key("antithetic pairs that read the same text; divides population / 2", 1, low=1, high=MAX_PAIRS)
    fitness: str = _key(
        "a pair's vote: the sign of its loss difference, or that difference over the population's mean",
        "sign", choices=("sign", "normalised"),
    )  # fmt: skip
    optimizer: str = _key(
        "turns votes into a step of the weights: the paper's test, or momentum or Adam on master weights",
        "threshold", choices=("threshold", "momentum", "adam"),
    )  # fmt: skip
    alpha: int = _key(
        "threshold: the share of weights that chance alone would move starts at 1 and decays toward 2**-alpha",
        4, low=0, high=16,
    )  # fmt: skip
    step: int = _key(
        "momentum, adam: the largest step, for a vote of one standard deviation; 256 = one int8 unit",
        256, low=1, high=512,
    )  # fmt: skip
    momentum: int = _key("momentum, adam: votes are averaged over 2**momentum updates", 0, low=0, high=10)
    weight_decay: int = _key(
        "momentum, adam: matrices lose weight_decay / 65536 of themselves in an update of step 256, less as it falls",
        0, low=0, high=255,
    )  # fmt: skip
    warmup_updates: int = _key("momentum, adam: updates in which the step rises", 0, low=0, high=INT32_MAX)
    decay_updates: int = _key(
        "updates until that share is reached, or the step has fallen to nothing", 1000, low=1, high=INT32_MAX
    )
    chunk_size: int = _key(
        "members evaluated at once; 0: automatic; changes memory and speed, no bit of the result",
        0, low=0, high=2 * MAX_PAIRS, multiple=2, why=_ANTITHETIC,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, and what to report on the way."""

    tokens_per_update: int = _key("tokens that each member reads in an update, at most 32768", 32, low=1)
    targets: int = _key(
        "tokens that share a prediction's target, a power of two: 1: the one that follows; more: also those that "
        "follow the most alike contexts of the training text", 1, low=1, high=1024,
    )  # fmt: skip
    updates: int = _key("updates in the whole run", 1000, low=1, high=INT32_MAX)
    evaluate_every: int = _key(
        "updates between measurements on held-out text; 0: only at the end", 50, low=0, high=INT32_MAX
    )
    sample_every: int = _key("updates between samples of text; 0: never", 200, low=0, high=INT32_MAX)
    checkpoint_seconds: int = _key(
        "seconds between checkpoints, and at least 50 times what one takes; 0: after every update", 60,
        low=0, high=INT32_MAX,
    )  # fmt: skip
    trackers: str = _key(f"that show the run beside TensorBoard, commas between: {', '.join(SERVICES)}", "")

    @property
    def services(self) -> list[str]:
        """The trackers by name, each once."""
        return list(dict.fromkeys(filter(None, (name.strip() for name in self.trackers.split(",")))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text. Paths are relative to the file that gives them, in a flag to the working directory."""

    train: str = _key(
        "a text file, a directory of them, a .py recipe, JSON Lines, Parquet, or hub:OWNER/NAME[@REVISION]", path=True
    )  # fmt: skip
    valid: str = _key("held-out text of its own, as for train", "", path=True)
    valid_split: str = _key("the split of train that is held out, where train is a data set", "")
    valid_bytes: int = _key("bytes of train to hold out; more than half of it counts as half", 0, low=0)
    max_bytes: int = _key("bytes of train to read, to the end of a document; 0: all", 0, low=0)
    subset: str = _key("of a data set that has several, which (on the hub: configuration)", "")
    split: str = _key("the split of a data set to train on", "train")
    columns: str = _key("a data set's columns of text; several, commas between: a blank line joins the texts", "text")
    filter: str = _key('a data set\'s rows to take, such as: language == "en" and score >= 0.5; empty: all', "")
    document_separator: str = _key("text that divides a file's documents; empty: a file is one document", "")
    tokenizer: str = _key(
        "all 256 bytes; those that occur in the training text and an escape; or pieces of several bytes, by a unigram "
        "model or by byte pairs", "bytes", choices=("bytes", "alphabet", "unigram", "bpe"),
    )  # fmt: skip
    vocab_size: int = _key("unigram, bpe: tokens in the vocabulary", 4096, low=257, high=MAX_VOCAB)
    sample_bytes: int = _key("unigram, bpe: bytes of training text, the first, to make it from", 1 << 24, low=1)
    tokenizer_file: str = _key(
        "a tokenizer.json, of `intlm tokenizer train`, a run or an export, to take in place of all that", "", path=True
    )
    share: int = _key("in a mixture, of this corpus", 1, low=1, high=INT32_MAX)
    mixture: str = _key(
        "other corpora to read beside this one, each a share and a file whose [data] section it is, commas between",
        "", shares=True,
    )  # fmt: skip
    prepared: str = _key(
        "directory of the token shards; empty: prepared/NAME-DIGEST in the working directory", "", path=True
    )
    processes: int = _key("that prepare the text; 0: one a core; changes no bit of the result", 0, low=0, high=1024)

    @property
    def others(self) -> list[tuple[int, str]]:
        """The mixture's shares and files."""
        found = (entry.strip().split(maxsplit=1) for entry in self.mixture.split(",") if entry.strip())
        return [(int(share), path) for share, path in found]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The run as a whole."""

    seed: int = _key("seed of all random bits", 0, low=0, high=2**64 - 1)
    engine: str = _key("what evaluates the population", "auto", choices=("auto", "native", "gpu", "xla"))
    threads: int = _key(
        "threads of the native engine; 0: one a core; changes no bit of the result", 0, low=0, high=1024
    )
    model: ModelConfig = ModelConfig()
    eggroll: EggrollConfig = EggrollConfig()
    train: TrainConfig = TrainConfig()
    data: DataConfig

    @property
    def pairs(self) -> int:
        """Antithetic pairs in the population."""
        return self.eggroll.population // 2


_SECTIONS: dict[str, type] = {
    "": Config,
    "model": ModelConfig,
    "eggroll": EggrollConfig,
    "train": TrainConfig,
    "data": DataConfig,
}
# Dotted name -> field, in the order of the dataclasses; the sections themselves are not keys.
KEYS: dict[str, dataclasses.Field[Any]] = {
    f"{section}.{key.name}" if section else key.name: key
    for section, cls in _SECTIONS.items()
    for key in dataclasses.fields(cls)
    if "help" in key.metadata
}


Layers = Sequence[tuple[Path, Mapping[str, Any]]]  # files, each with dotted keys and their values, as TOML has them


def load(path: Path, overrides: Mapping[str, str] | None = None, layers: Layers = ()) -> Config:
    """The configuration in the TOML file `path`, with `overrides` (dotted key -> text of the value) over it.

    layers: keys of other files, over those of `path` and under `overrides`. Raises ConfigError for a file that cannot
    be read or is not TOML, and for the first key that is not valid.
    """
    return from_toml(read_text(path), path, overrides, layers)


def from_toml(text: str, path: Path, overrides: Mapping[str, str] | None = None, layers: Layers = ()) -> Config:
    """As `load`, for `text` already read; `path` is named in errors and anchors relative paths."""
    tables = parse_toml(text, path)

    here = Path(os.path.abspath(Path(path).parent))
    written_in = tables.pop(_WRITTEN_IN, str(here))
    if not isinstance(written_in, str):
        raise ConfigError(f"{path}: {_WRITTEN_IN} = {shown(written_in)}: expected the path of a directory")
    if not (here / "tokenizer.json").is_file():  # not of a run or an export: a copy means what it says
        written_in = str(here)
    given: dict[str, tuple[str, Any]] = {}  # dotted key -> (source, value)
    for name, value in tables.items():
        if name not in _SECTIONS:
            given[name] = (str(path), value)
        elif isinstance(value, dict):
            given.update((f"{name}.{key}", (str(path), inner)) for key, inner in value.items())
        else:
            raise ConfigError(f"{path}: {name} = {shown(value)}: expected a section, [{name}]")
    given.update((key, (str(source), value)) for source, keys in layers for key, value in keys.items())
    given.update((key, (COMMAND_LINE, value)) for key, value in (overrides or {}).items())

    values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for name, (source, value) in given.items():
        if name not in KEYS:
            raise ConfigError(f"{source}: {name}: unknown key{nearest(name)}")
        section, _, key = name.rpartition(".")
        directory = Path.cwd() if source == COMMAND_LINE else Path(os.path.abspath(Path(source).parent))
        values[section][key] = _valid(name, value, source, directory, written_in if source == str(path) else directory)
    if not values["data"].get("train"):
        raise ConfigError(f"{path}: data.train: missing: expected {KEYS['data.train'].metadata['help']}")

    data = DataConfig(**values["data"])
    if not data.prepared:
        asked = dataclasses.asdict(dataclasses.replace(data, processes=0))
        for name, text in asked.items():  # seen from here, so that a project that is moved finds its text again
            metadata = KEYS[f"data.{name}"].metadata
            if metadata["path"] or metadata["shares"]:
                asked[name] = _each_path(text, metadata["shares"], lambda place: os.path.relpath(place))
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        prepared = Path.cwd() / "prepared" / f"{Path(path).stem}-{digest[:8]}"
        if not _is_utf8(str(prepared)):
            raise ConfigError(f"data.prepared: expected a directory whose path is UTF-8, as that of {path} is not")
        data = dataclasses.replace(data, prepared=str(prepared))
    config = Config(
        model=ModelConfig(**values["model"]),
        eggroll=EggrollConfig(**values["eggroll"]),
        train=TrainConfig(**values["train"]),
        data=data,
        **values[""],
    )
    for names, message in (*_conflicts(config), *_beyond_limits(config, None)):
        sources = dict.fromkeys(given[name][0] for name in names if name in given)
        raise ConfigError(f"{', '.join(sources) or path}: {message}")
    return config


def dumps(config: Config, directory: Path | None = None) -> str:
    """`config` as TOML with every key written out. `from_toml` gives an equal Config back.

    directory: where the file will be. Moved from there with the files that it names, it finds them again.
    """
    place = os.path.abspath(directory).encode("utf-8", "replace").decode() if directory else ""
    written_in = {_WRITTEN_IN: place} if place else {}
    return tomli_w.dumps(written_in | dataclasses.asdict(config))


def check_limits(config: Config, vocab_size: int | None) -> None:
    """Refuse what the integer arithmetic cannot hold; docs/numerics.md proves that these limits suffice.

    `load` calls it without the vocabulary, the trainer again once the tokenizer is known.
    Raises ConfigError that names the key and the limit.
    """
    for _, message in _beyond_limits(config, vocab_size):
        raise ConfigError(message)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag a key, `--section.key VALUE`, grouped by section. Values stay text: `load` parses them."""
    for section, cls in _SECTIONS.items():
        title = f"configuration keys of [{section}]" if section else "configuration keys"
        about = cls.__doc__ if section else "A flag overrides the file; a default is for a key in neither."
        group = parser.add_argument_group(title, about)
        for name, key in KEYS.items():
            if name.rpartition(".")[0] != section:
                continue
            default = "required" if key.default is dataclasses.MISSING else f"default {shown(key.default)}"
            text = f"{key.metadata['help']} ({_expected(key)}; {default})"
            choices, path = key.metadata["choices"], key.metadata["path"]
            metavar = "|".join(choices) if choices else "PATH" if path else "N" if key.type is int else "TEXT"
            group.add_argument(f"--{name}", dest=name, metavar=metavar, help=text.replace("%", "%%"))


def overrides_from(args: argparse.Namespace) -> dict[str, str]:
    """The keys given as flags, dotted key -> text, from a parser that `add_arguments` extended."""
    given = vars(args)
    return {name: given[name] for name in KEYS if given.get(name) is not None}


def _beyond_limits(config: Config, vocab_size: int | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every arithmetic limit that `config` exceeds: the keys that it involves, and the message."""
    population, rank, tokens = config.eggroll.population, config.eggroll.rank, config.train.tokens_per_update
    # A vote sums fitness * a * b over pairs and rank; |a|, |b| <= 46, and fitness reaches 1 at the least.
    votes = config.pairs * rank * LARGEST_NOISE**2
    if votes > INT32_MAX:
        yield (
            ("eggroll.population", "eggroll.rank"),
            f"eggroll.population = {population}, eggroll.rank = {rank}: votes would overflow int32: "
            f"population/2 * rank * {LARGEST_NOISE}^2 = {votes} exceeds {INT32_MAX}; "
            "lower eggroll.population or eggroll.rank",
        )
    if config.pairs > MAX_PAIRS:
        yield (
            ("eggroll.population",),
            f"eggroll.population = {population}: must be at most {2 * MAX_PAIRS} (the mean absolute "
            "difference is summed in two int32 limbs)",
        )
    if tokens > MAX_TOKENS_PER_UPDATE:
        yield (
            ("train.tokens_per_update",),
            f"train.tokens_per_update = {tokens}: must be at most {MAX_TOKENS_PER_UPDATE} (a text's loss is "
            "summed in int32)",
        )
    if vocab_size is not None and not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        yield (
            ("data.tokenizer",),
            f"data.tokenizer = {shown(config.data.tokenizer)}: a vocabulary of {vocab_size} tokens; must be "
            f"{MIN_VOCAB} to {MAX_VOCAB} (tokens are stored in 16 bits; the loss is proved for that range)",
        )


def _conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that are fine alone and wrong together: the keys, and the message."""
    eggroll, data = config.eggroll, config.data
    if config.pairs % eggroll.group_size:
        yield (
            ("eggroll.group_size", "eggroll.population"),
            f"eggroll.group_size = {eggroll.group_size}: must divide the number of pairs, "
            f"eggroll.population / 2 = {config.pairs}",
        )
    if (targets := config.train.targets) & (targets - 1):
        yield ("train.targets",), f"train.targets = {targets}: must be a power of two (the mean over them is a shift)"
    if set(config.train.services) - set(SERVICES):
        expected = " or ".join(f'"{name}"' for name in (*SERVICES, ", ".join(SERVICES)))
        yield ("train.trackers",), f"train.trackers = {shown(config.train.trackers)}: expected {expected}"
    for key, named in (("data.valid", data.valid), ("data.valid_split", data.valid_split)):
        if named and data.valid_bytes:
            yield (
                ("data.valid_bytes", key),
                f"data.valid_bytes = {data.valid_bytes}: must be 0 where {key} names the held-out text",
            )
    if data.valid and data.valid_split:
        yield (
            ("data.valid_split", "data.valid"),
            f"data.valid_split = {shown(data.valid_split)}: must be empty where data.valid names the held-out text",
        )


def _valid(name: str, value: Any, source: str, directory: Path, written_in: str | Path) -> int | str:
    """`value` of the key `name`, checked alone; text from the command line parsed, a path made absolute.

    directory: what paths are relative to. written_in: what it was when the file was written.
    """
    key = KEYS[name]
    limits = key.metadata

    def refuse(expected: str) -> ConfigError:
        return ConfigError(f"{source}: {name} = {shown(value)}: {expected}")

    if key.type is int:
        number = value
        if source == COMMAND_LINE:
            try:
                number = int(value, 0)  # base 0: 1_000 and 0xff, as in TOML
            except ValueError:
                raise refuse("expected an integer") from None
        if type(number) is not int:  # bool is a subclass of int
            raise refuse("expected an integer")
        if limits["low"] is not None and number < limits["low"]:
            raise refuse(f"must be at least {limits['low']}")
        high = INT64_MAX if limits["high"] is None else limits["high"]
        if number > high:
            raise refuse(f"must be at most {high}")
        if number % limits["multiple"]:
            wanted = "even" if limits["multiple"] == 2 else f"a multiple of {limits['multiple']}"
            raise refuse(f"must be {wanted} ({limits['why']})")
        return number

    if not isinstance(value, str):
        raise refuse("expected a string")
    if limits["choices"] and value not in limits["choices"]:
        close = difflib.get_close_matches(value, limits["choices"], 1)
        raise refuse(f"expected {_expected(key)}" + (f'; did you mean "{close[0]}"?' if close else ""))
    if limits["shares"] and value:
        entries = [entry.strip().split(maxsplit=1) for entry in value.split(",")]
        if not all(len(entry) == 2 and re.fullmatch("0*[1-9][0-9]{0,8}", entry[0]) for entry in entries):
            raise refuse(f"expected {_expected(key)}")
    if limits["path"] or limits["shares"]:
        if "\0" in value:
            raise refuse("expected a path, which has no NUL")
        made = name == "data.prepared"
        value = _each_path(value, limits["shares"], lambda path: _absolute(path, directory, written_in, made))
    if not _is_utf8(value):
        raise refuse("expected text that UTF-8 can write")
    return value


def _is_utf8(text: str) -> bool:
    """Whether UTF-8 can write `text`, as a config.toml needs. Names of files that are not UTF-8 hold surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _each_path(value: str, shares: bool, change: Callable[[str], str]) -> str:
    """The value of a key of a path, or of `shares` before each of several, its paths changed."""
    if shares and value:
        entries = (entry.split(maxsplit=1) for entry in value.split(","))
        return ", ".join(f"{share} {change(path.strip())}" for share, path in entries)
    return change(value) if value and not value.startswith("hub:") else value


def _absolute(path: str, directory: Path, written_in: str | Path, made: bool) -> str:
    """`path` as seen from `directory`, absolute.

    Where the file that names it was written elsewhere, its project was moved (what the path names lies as it did to the
    file, or, where it is made when it is missing, its place is gone) or only the file was (it lies where it did).
    """
    found = os.path.abspath(directory / os.path.expanduser(path))
    moved = os.path.abspath(directory / os.path.relpath(found, written_in))
    gone = made and not os.path.exists(found) and not os.path.exists(os.path.dirname(found))
    return moved if os.path.exists(moved) or gone else found


def _expected(key: dataclasses.Field[Any]) -> str:
    """The type and range of a key, in words."""
    limits = key.metadata
    if limits["choices"]:
        return " or ".join(f'"{choice}"' for choice in limits["choices"])
    if limits["path"]:
        return "path"
    if limits["shares"]:
        return "SHARE PATH, SHARE PATH, ..., each share a positive integer"
    if key.type is str:
        return "string"
    open_ended = limits["high"] in (None, INT32_MAX)
    span = f" from {limits['low']}" if open_ended else f" {limits['low']} to {limits['high']}"
    multiple = {1: "", 2: ", even"}.get(limits["multiple"], f", a multiple of {limits['multiple']}")
    return f"integer{span}{multiple}"


def nearest(name: str) -> str:
    """The clause that suggests a valid key for an unknown one, or nothing."""
    leaf = name.rpartition(".")[2]
    # The right key under the wrong header comes first: in TOML, whatever follows [data] belongs to it.
    same_leaf = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(name, [*KEYS, *filter(None, _SECTIONS)], 1)
    if not close:
        leaves = {key.rpartition(".")[2]: key for key in KEYS}
        close = [leaves[near] for near in difflib.get_close_matches(leaf, leaves, 1)]
    return f"; did you mean {close[0]}?" if close else ""


def shown(value: Any) -> str:
    """`value` as TOML would write it, cut to 60 characters."""
    if isinstance(value, int) and abs(value) >= 1 << 256:
        text = hex(value)  # Python refuses to write thousands of digits in base 10
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
