"""Configuration: one TOML file a run, typed, validated and resolved before anything starts.

- A key is a field of one of the dataclasses below, or of a part that one of them chooses (`intlm.settings`). Its type,
  range and help text stand there and nowhere else.
- A mistake is a `ConfigError` that names where the value came from (the file, or "command line"), the key, the value
  and what was expected. A setting of a part that is not chosen is one.
- `dumps` writes what `load` reads: a run's saved config.toml gives the same `Config`, from any directory. It also
  says where it was written, so that the paths in it are found again where the whole project was moved.
- Keys that earlier versions used are still read (`RENAMED`).
"""

import argparse
import dataclasses
import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from intlm import plugins, schedule, settings
from intlm.cells import CELLS, Cell
from intlm.data.tokenizers import MAX_VOCAB, MIN_VOCAB, TOKENIZERS, TokenizerTrainer
from intlm.errors import ConfigError
from intlm.estimators import ESTIMATORS, Estimator
from intlm.objectives import OBJECTIVES, Objective
from intlm.optimizers import OPTIMIZERS, Optimizer
from intlm.schema import parse_toml, read_text
from intlm.settings import COMMAND_LINE, INT32_MAX, Key, choice, flatten, key, names_in, shown
from intlm.tracking.trackers import TRACKERS

MAX_TOKENS_PER_UPDATE = 32768
MAX_MINUTES = 1_000_000

_WRITTEN_IN = "written_in"  # beside the keys of a saved file: the directory that it was written in

_GROUPS_OF_8 = "the kernels and the exported model work on whole groups of 8 channels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model's shape."""

    hidden_size: int = key(
        "channels of the residual stream and of each layer's recurrent state",
        64, low=8, high=65536, multiple=8, why=_GROUPS_OF_8,
    )  # fmt: skip
    num_layers: int = key("layers, each a recurrent cell and a feed-forward", 2, low=1, high=64)
    feed_forward_size: int = key(
        "channels inside each feed-forward", 256, low=8, high=65536, multiple=8, why=_GROUPS_OF_8
    )
    cell: Cell = choice("the recurrent cell of each layer", CELLS, "mgu")
    nonlinearity: str = key(
        'the nonlinearities of the recurrent cell; "clip": saturation; "table": sigmoid and tanh by lookup tables',
        "clip", choices=("clip", "table"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EggrollConfig:
    """The evolution strategy."""

    population: int = key("members evaluated in each update", 4096, low=2)
    estimator: Estimator = choice("how members are perturbed, and how their losses become votes", ESTIMATORS, "member")
    optimizer: Optimizer = choice("how votes change the weights", OPTIMIZERS, "threshold")
    chunk_size: int = key(
        "members evaluated at once; 0: automatic; changes memory and speed, never the result",
        0, low=0, high=2**20, multiple=2, why="members come in antithetic pairs",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, and what to report on the way."""

    tokens_per_update: int = key("tokens that each member reads in an update, at most 32768", 32, low=1)
    updates: int = key("updates in the whole run", 1000, low=1, high=INT32_MAX)
    minutes: float = key(
        "how long to train: the speed is measured, and train.updates, the schedule, evaluate_every and sample_every "
        "are stretched alike; on resuming: so much longer; 0: as long as train.updates says",
        0.0, low=0, high=MAX_MINUTES,
    )  # fmt: skip
    schedule: str = key(
        f"how a run whose length was decided by --minutes or --finish-now goes through the optimizer's schedule: "
        f"{schedule.FORM}",
        "",
    )  # fmt: skip
    evaluate_every: int = key(
        "updates between evaluations on held-out text; 0: only at the end", 50, low=0, high=INT32_MAX
    )
    sample_every: int = key("updates between samples of text; 0: never", 200, low=0, high=INT32_MAX)
    checkpoint_seconds: int = key(
        "seconds between checkpoints, but at least 50 times as long as saving one takes; 0: after every update", 60,
        low=0, high=INT32_MAX,
    )  # fmt: skip
    trackers: str = key("services to send metrics to, besides TensorBoard; separated by commas", "", some_of=TRACKERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text. Paths in a file are relative to that file's directory, paths in flags to the working directory."""

    train: str = key(
        "a text file, a directory of text files, a .py file that yields documents, JSON Lines, Parquet, or "
        "hub:OWNER/NAME[@REVISION]", path=True,
    )  # fmt: skip
    valid: str = key("a separate held-out text, in any form that train takes", "", path=True)
    valid_split: str = key("the split to hold out, where train is a data set", "")
    valid_bytes: int = key("hold out about this many bytes of train; more than half of it counts as half", 0, low=0)
    max_bytes: int = key("stop reading train after this many bytes, at the end of a document; 0: read all", 0, low=0)
    subset: str = key("the subset of a data set that has several (the hub calls it a configuration)", "")
    split: str = key("the split of a data set to train on", "train")
    columns: str = key("a data set's text columns, separated by commas; a blank line joins their texts", "text")
    filter: str = key(
        'the rows of a data set to use, such as: language == "en" and score >= 0.5; empty: all rows', ""
    )  # fmt: skip
    document_separator: str = key("the text between a file's documents; empty: each file is one document", "")
    tokenizer: TokenizerTrainer = choice("how text becomes tokens", TOKENIZERS, "bytes")
    tokenizer_file: str = key(
        "a tokenizer.json to use, from `intlm tokenizer train`, a run or an export, in place of data.tokenizer and its "
        "settings", "", path=True,
    )  # fmt: skip
    share: int = key("this corpus's share of a mixture, relative to the shares of the others", 1, low=1, high=INT32_MAX)
    mixture: str = key(
        "other corpora to mix in, separated by commas: for each a share, and a TOML file with its [data] section",
        "", shares=True,
    )  # fmt: skip
    prepared: str = key(
        "directory of the token shards; empty: prepared/NAME-DIGEST in the working directory", "", path=True
    )
    processes: int = key(
        "worker processes that prepare the text; 0: one per core; never changes the result", 0, low=0, high=1024
    )

    @property
    def others(self) -> list[tuple[int, str]]:
        """The mixture's shares and files."""
        entries = (entry.strip().split(maxsplit=1) for entry in self.mixture.split(",") if entry.strip())
        return [(int(share), path) for share, path in entries]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The run as a whole."""

    seed: int = key("seed of all random bits", 0, low=0, high=2**64 - 1)
    engine: str = key(
        "the program that evaluates the population; all give the same bits; auto: the fastest that works here",
        "auto", choices=("auto", "native", "gpu", "xla"),
    )  # fmt: skip
    threads: int = key("threads of the native engine; 0: one per core; never changes the result", 0, low=0, high=1024)
    objective: Objective = choice("the task of each member, and its loss", OBJECTIVES, "next_token")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    eggroll: EggrollConfig = dataclasses.field(default_factory=EggrollConfig)
    train: TrainConfig = TrainConfig()
    data: DataConfig


# Keys of earlier versions -> what they are now; {key} stands for the value of another key.
RENAMED = {
    **{
        f"eggroll.{name}": f"eggroll.member.{name}"
        for name in ("rank", "sigma_shift", "noise_reuse", "group_size", "fitness")
    },
    **{
        f"eggroll.{name}": f"eggroll.{{eggroll.optimizer}}.{name}"
        for name in ("alpha", "step", "momentum", "weight_decay", "warmup_updates", "decay_updates")
    },
    **{f"data.{name}": f"data.{{data.tokenizer}}.{name}" for name in ("vocab_size", "sample_bytes")},
    "train.targets": "next_token.targets",
}


def keys() -> dict[str, Key]:
    """Every key by its full name, those of all parts that can be chosen included, in the order of the dataclasses."""
    return {setting.name: setting for setting in settings.keys_of(Config)}


Given = dict[str, tuple[str, Any]]  # key -> where it was given and its value
Layers = Sequence[tuple[Path, Mapping[str, Any]]]  # files, each with dotted keys and their values, as TOML has them


def load(path: Path, overrides: Mapping[str, str] | None = None, layers: Layers = (), trained: bool = False) -> Config:
    """The configuration in the TOML file `path`, with `overrides` (dotted key -> text of the value) over it.

    layers: keys of other files, over those of `path` and under `overrides`. trained: it is that of a model which is to
    be used, not trained: parts of plugins that only training needs may be missing. Raises ConfigError for a file that
    cannot be read or is not TOML, and for the first key that is not valid.
    """
    return from_toml(read_text(path), path, overrides, layers, trained)


def from_toml(
    text: str, path: Path, overrides: Mapping[str, str] | None = None, layers: Layers = (), trained: bool = False
) -> Config:
    """As `load`, for `text` already read; `path` is named in errors and anchors relative paths."""
    tables = parse_toml(text, path)

    here = Path(os.path.abspath(Path(path).parent))
    written_in = tables.pop(_WRITTEN_IN, str(here))
    if not isinstance(written_in, str):
        raise ConfigError(f"{path}: {_WRITTEN_IN} = {shown(written_in)}: expected the path of a directory")
    if not (here / "tokenizer.json").is_file():  # not of a run or an export: a copy means what it says
        written_in = str(here)
    known = keys()
    tables.pop("plugins", None)  # `intlm.plugins` has loaded them, where they are to be
    needed = tables.pop("needs_plugins", [])
    given: Given = {}
    for source, named in (
        (str(path), dotted(tables, str(path))),
        *((str(source), named) for source, named in layers),
        (COMMAND_LINE, overrides or {}),
    ):
        named = _renamed(named, source, given, known)
        # Where a later source chooses another part, the settings of the one before are no mistake.
        for name in [n for n in given if n in known and any(named.get(f, part) != part for f, part in known[n].of)]:
            del given[name]
        if "train.updates" in named and "train.minutes" not in named:
            given.pop("train.minutes", None)  # of an earlier source
        given.update((name, (source, value)) for name, value in named.items())

    values = _missing(given, known, needed, trained)
    for name, (source, value) in given.items():
        if name not in known:
            raise ConfigError(f"{source}: {name}: unknown key{nearest(name)}")
        directory = Path.cwd() if source == COMMAND_LINE else Path(os.path.abspath(Path(source).parent))
        values[name] = known[name].valid(value, source, directory, written_in if source == str(path) else directory)
    for name, (source, value) in given.items():
        for family, part in known[name].of:
            chosen = values.get(family, known[family].default)
            if chosen != part:
                raise ConfigError(
                    f'{source}: {name} = {shown(value)}: a setting of {family} = "{part}", but {family} is '
                    f'"{chosen}": remove it, or choose "{part}"'
                )
    both = [name for name in ("train.minutes", "train.updates") if given.get(name, ("",))[0] == COMMAND_LINE]
    if len(both) == 2 and values["train.minutes"]:
        what = " and ".join(f"{name} = {values[name]:g}" for name in both)
        raise ConfigError(f"{COMMAND_LINE}: {what}: expected one of them")
    if not values.get("data.train"):
        raise ConfigError(f"{path}: data.train: missing: expected {known['data.train'].help}")

    config: Config = settings.build(Config, values)
    if not config.data.prepared:
        asked = flatten(dataclasses.replace(config.data, processes=0))
        for name, text in asked.items():  # seen from here, so that a project that is moved finds its text again
            asked[name] = known[f"data.{name}"].each_path(text, lambda place: os.path.relpath(place))
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        prepared = Path.cwd() / "prepared" / f"{Path(path).stem}-{digest[:8]}"
        if not settings.is_utf8(str(prepared)):
            raise ConfigError(f"data.prepared: expected a directory; its default for {path} is no UTF-8 path")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(prepared)))
    for names, message in (*_conflicts(config), *_beyond_limits(config, None)):
        sources = dict.fromkeys(given[name][0] for name in names if name in given)
        raise ConfigError(f"{', '.join(sources) or path}: {message}")
    return config


def _missing(given: Given, known: Mapping[str, Key], needed: Any, trained: bool) -> dict[str, Any]:
    """The choices of parts that are not here, taken out of `given` with their settings, where they may be missing.

    needed: the plugins that a run's configuration names. Raises ConfigError where such a part is needed.
    """
    missing: dict[str, Any] = {}
    for name in [name for name in given if name in known]:
        family, (source, value) = known[name].family or known[name].some_of, given.get(name, ("", None))
        if not family or not isinstance(value, str):
            continue
        if set(names_in(value) if known[name].some_of else [value]) <= family.parts().keys():
            continue
        if trained and family.of_training:
            missing[name] = value
            section = f"{known[name].section}.{value}".lstrip(".")
            for other in [other for other in given if other in (name, section) or other.startswith(f"{section}.")]:
                del given[other]
        elif isinstance(needed, list) and needed:
            flags = " ".join(f"--plugin {file}" for file in needed)
            raise ConfigError(
                f"{source}: {name} = {shown(value)}: there is no {family.kind} of that name; the run was started "
                f"with {flags}: give the flag again if you trust the file"
            )
    return missing


def dotted(tables: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """The keys of TOML tables, nested or with dots in their names, by their full names.

    Raises ConfigError, which begins with `where`, for a value in a section's place.
    """
    sections = {setting.section for setting in keys().values()}
    sections |= {parent for section in sections for parent in _parents(section)}
    given: dict[str, Any] = {}
    for name, value in tables.items():
        name = prefix + name
        if name in sections and isinstance(value, dict):
            given |= dotted(value, where, f"{name}.")
        elif name in sections and name not in RENAMED:
            raise ConfigError(f"{where}: {name} = {shown(value)}: expected a section, [{name}]")
        else:
            given[name] = value
    return given


def _parents(section: str) -> Iterator[str]:
    while section:
        section = section.rpartition(".")[0]
        yield section


def _renamed(named: Mapping[str, Any], source: str, earlier: Given, known: Mapping[str, Key]) -> dict[str, Any]:
    """The values that a source gives, keys of earlier versions under their present names. Prints a line about those.

    earlier: the values that the sources before it gave.
    """
    old = [name for name in named if name in RENAMED]
    if not old:
        return dict(named)
    values = {name: value for name, value in named.items() if name not in old}
    said = []
    optimizer = "eggroll.optimizer"
    if values.get(optimizer) == "momentum" and str(named.get("eggroll.momentum", 0)) == "0":
        values[optimizer] = "sgd"
        said.append(f'{optimizer} = "momentum" with eggroll.momentum = 0 is now {optimizer} = "sgd"')
    for name in old:
        new, family, part = RENAMED[name], "", ""
        if of := re.search(r"\{(.*)\}", new):
            family = of[1]
            part = str(values.get(family, earlier.get(family, ("", known[family].default))[1]))
            new = new.replace(of[0], part)
        if new in known:
            values.setdefault(new, named[name])
            said.append(f"{name} is now {new}")
        elif source == COMMAND_LINE:
            raise ConfigError(f'{source}: {name} = {shown(named[name])}: {family} = "{part}" has no such setting')
        # else a setting of a part that is not chosen, over which earlier versions passed
    if said:
        more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
        _say_once(f"intlm: {source}: written for an earlier version: {said[0]}{more}")
    return values


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def dumps(config: Config, directory: Path | None = None) -> str:
    """`config` as TOML with every key written out. `from_toml` gives an equal Config back.

    directory: where the file will be. Moved from there with the files that it names, it finds them again.
    """
    place = os.path.abspath(directory).encode("utf-8", "replace").decode() if directory else ""
    needed = plugins.needed(config)
    beside = ({_WRITTEN_IN: place} if place else {}) | ({"needs_plugins": needed} if needed else {})
    return tomli_w.dumps(beside | tables(config))


def tables(config: Config) -> dict[str, Any]:
    """Every key in nested dictionaries, as TOML has them."""
    tables: dict[str, Any] = {}
    for name, value in flatten(config).items():
        *path, leaf = name.split(".")
        table = tables
        for section in path:
            table = table.setdefault(section, {})
        table[leaf] = value
    return tables


def check_limits(config: Config, vocab_size: int | None) -> None:
    """Refuse what the integer arithmetic cannot hold; docs/numerics.md proves that these limits suffice.

    `load` calls it without the vocabulary, the trainer again once the tokenizer is known.
    Raises ConfigError that names the key and the limit.
    """
    for _, message in _beyond_limits(config, vocab_size):
        raise ConfigError(message)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag a key, `--section.key VALUE`, grouped by section. Values stay text: `load` parses them."""
    groups: dict[str, Any] = {}
    for name, found in keys().items():
        if found.section not in groups:
            title = f"configuration keys of [{found.section}]" if found.section else "configuration keys"
            groups[found.section] = parser.add_argument_group(title, _about(found))
        default = "required" if found.default is dataclasses.MISSING else f"default {shown(found.default)}"
        text = f"{found.help} ({found.expected}; {default})"
        metavar = (
            "|".join(found.choices)
            if found.choices
            else "PATH"
            if found.is_path
            else "N"
            if found.is_number or found.is_decimal
            else "TEXT"
        )
        groups[found.section].add_argument(f"--{name}", dest=name, metavar=metavar, help=text.replace("%", "%%"))
    for name in RENAMED:
        parser.add_argument(f"--{name}", dest=name, help=argparse.SUPPRESS)


def _about(setting: Key) -> str:
    """The purpose of a key's section, in a line."""
    if setting.of:
        family, part = setting.of[-1]
        cls = keys()[family].family.parts()[part]  # type: ignore[union-attr]
        return f'Settings of {family} = "{part}". {(cls.__doc__ or "").splitlines()[0]}'
    by_section = {field.name: field.type for field in dataclasses.fields(Config)}
    if setting.section:
        return by_section[setting.section].__doc__ or ""
    return "A flag overrides the file. A key that is in neither has its default."


def overrides_from(args: argparse.Namespace) -> dict[str, str]:
    """The keys given as flags, dotted key -> text, from a parser that `add_arguments` extended."""
    given = vars(args)
    return {name: given[name] for name in (*keys(), *RENAMED) if given.get(name) is not None}


def _beyond_limits(config: Config, vocab_size: int | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every arithmetic limit that `config` exceeds: the keys that it involves, and the message."""
    tokens = config.train.tokens_per_update
    for part in settings.parts_of(config):
        yield from part.check(config)
    if tokens > MAX_TOKENS_PER_UPDATE:
        yield (
            ("train.tokens_per_update",),
            f"train.tokens_per_update = {tokens}: must be at most {MAX_TOKENS_PER_UPDATE} (a text's loss is "
            "summed in int32)",
        )
    if vocab_size is not None and not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        yield (
            ("data.tokenizer",),
            f"data.tokenizer = {shown(config.data.tokenizer.name)}: a vocabulary of {vocab_size} tokens; must be "
            f"{MIN_VOCAB} to {MAX_VOCAB} (tokens are stored in 16 bits; the loss is proved for that range)",
        )


def _conflicts(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that are fine alone and wrong together: the keys, and the message."""
    data = config.data
    for name, named in (("data.valid", data.valid), ("data.valid_split", data.valid_split)):
        if named and data.valid_bytes:
            yield (
                ("data.valid_bytes", name),
                f"data.valid_bytes = {data.valid_bytes}: must be 0 where {name} names the held-out text",
            )
    if data.valid and data.valid_split:
        yield (
            ("data.valid_split", "data.valid"),
            f"data.valid_split = {shown(data.valid_split)}: must be empty where data.valid names the held-out text",
        )
    try:
        schedule.parse(config.train.schedule)
    except ValueError as error:
        yield ("train.schedule",), f"train.schedule = {shown(config.train.schedule)}: {error}"


def nearest(name: str) -> str:
    """The clause that suggests a valid key for an unknown one, or nothing."""
    known = keys()
    leaf = name.rpartition(".")[2]
    # The right key under the wrong header comes first: in TOML, whatever follows [data] belongs to it.
    same_leaf = [key for key in known if key.rpartition(".")[2] == leaf]
    sections = {setting.section for setting in known.values()} - {""}
    close = same_leaf or difflib.get_close_matches(name, [*known, *sections], 1)
    if not close:
        leaves = {key.rpartition(".")[2]: key for key in known}
        close = [leaves[near] for near in difflib.get_close_matches(leaf, leaves, 1)]
    return f"; did you mean {close[0]}?" if close else ""
